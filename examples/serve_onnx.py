"""Segments an image with an .onnx file of ``python -m fcn_jax export``, output labels.

Needs onnxruntime, numpy and pillow alone:

    python serve_onnx.py fcn.onnx photo.jpg labels.png

The PNG holds class indices, and shows them in the colours that the file has for them.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

network, photo, labels_png = sys.argv[1:]
session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
metadata = session.get_modelmeta().custom_metadata_map  # Each value is JSON.
palette = json.loads(metadata["palette"])
if len(palette) > 256:
    sys.exit(f"{network} has {len(palette)} classes, and a PNG has 256 colours")

photo = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
image = np.asarray(photo)[None]  # [1, H, W, 3] uint8
labels = session.run(["labels"], {"image": image})[0][0]  # [H, W] int32

picture = Image.fromarray(labels.astype(np.uint8))
picture.putpalette(np.uint8(palette).tobytes())
picture.save(labels_png)
names = json.loads(metadata["class_names"])
for label in np.unique(labels):
    name = names[label] if names else f"class {label}"
    print(f"{name}: {100 * np.mean(labels == label):.1f} % of the pixels")
