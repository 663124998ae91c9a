"""Segments an image with a file of ``python -m fcn_jax export``, output labels.

Needs jax, flatbuffers, numpy and pillow; fcn_jax need not be installed:

    python serve.py fcn.npz photo.jpg labels.png
"""

import json
import sys

import jax.export
import numpy as np
from PIL import Image, ImageOps

network, photo, labels_png = sys.argv[1:]
with np.load(network) as file:
    program = jax.export.deserialize(bytearray(file["program"]))
    params = {name: file[name] for name in file if "/" in name}
    palette = json.loads(str(file["metadata"])).get("palette")
photo = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
image = np.asarray(photo)[None]  # [1, H, W, 3] uint8
labels = np.asarray(jax.jit(program.call)(params, image))[0]  # [H, W] int32
picture = Image.fromarray(labels.astype(np.uint8))
if not palette:  # The colours of PASCAL VOC: three bits of the class at a time.
    bits = [
        [[i >> 3 * k + c & 1 for k in range(8)] for c in range(3)] for i in range(256)
    ]
    palette = np.packbits(bits, axis=-1)
picture.putpalette(np.array(palette, np.uint8).tobytes())
picture.save(labels_png)  # The pixels are classes; a viewer shows the colours.
