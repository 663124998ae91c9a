"""Segments an image with a file of ``python -m fcn_jax export``, output labels.

Needs jax, flatbuffers, numpy and pillow; fcn_jax need not be installed:

    python serve.py fcn.npz photo.jpg labels.png
"""

import sys

import jax.export
import numpy as np
from PIL import Image, ImageOps

network, photo, labels_png = sys.argv[1:]
with np.load(network) as file:
    program = jax.export.deserialize(bytearray(file["program"]))
    params = {name: file[name] for name in file if "/" in name}
photo = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
image = np.asarray(photo)[None]  # [1, H, W, 3] uint8
labels = np.asarray(jax.jit(program.call)(params, image))[0]  # [H, W] int32
Image.fromarray(labels.astype(np.uint8)).save(labels_png)
