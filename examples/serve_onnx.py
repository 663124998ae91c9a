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

if len(sys.argv) != 4:
    sys.exit(__doc__)
network, photo, labels_png = sys.argv[1:]
try:
    session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
except Exception as error:  # onnxruntime has errors of its own.
    sys.exit(f"{network} cannot be read as an .onnx file: {error}")
metadata = session.get_modelmeta().custom_metadata_map  # Each value is JSON.
if (metadata.get("output"), metadata.get("in_channels")) != ('"labels"', "3"):
    sys.exit(f"{network}: export a network of RGB images with --output labels")
palette, names = (json.loads(metadata[name]) for name in ("palette", "class_names"))
if len(palette) > 256:
    sys.exit(f"{network} has {len(palette)} classes, and a PNG has 256 colours")

try:
    image = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
except Exception as error:  # Garbled bytes end in errors of every kind.
    sys.exit(f"{photo} cannot be read as an image: {error}")
batch = np.asarray(image)[None]  # [1, H, W, 3] uint8
labels = session.run(["labels"], {"image": batch})[0][0]  # [H, W] int32

picture = Image.fromarray(labels.astype(np.uint8))
picture.putpalette(np.uint8(palette).tobytes())
try:
    picture.save(labels_png)
except (OSError, ValueError) as error:
    sys.exit(f"{labels_png} cannot be written: {error}")
for label in np.unique(labels):
    name = names[label] if names else f"class {label}"
    print(f"{name}: {100 * np.mean(labels == label):.1f} % of the pixels")
