"""Segments an image with a file of ``python -m fcn_jax export``, output labels.

Needs jax, flatbuffers, numpy and pillow; fcn_jax need not be installed:

    python serve.py fcn.npz photo.jpg labels.png

The PNG holds class indices, and shows them in the colours of the network.
"""

import json
import sys
import zipfile

import jax.export
import numpy as np
from PIL import Image, ImageOps

if len(sys.argv) != 4:
    sys.exit(__doc__)
network, photo, labels_png = sys.argv[1:]
if not zipfile.is_zipfile(network):
    sys.exit(f"{network} is missing, or it is not an .npz file")
try:
    with np.load(network) as file:
        metadata = json.loads(str(file["metadata"]))
        program = jax.export.deserialize(bytearray(file["program"]))
        params = {name: file[name] for name in file if "/" in name}
except Exception as error:  # Garbled bytes end in errors of every kind.
    sys.exit(f"{network} cannot be read as a file of fcn_jax export for JAX: {error}")
if (metadata["output"], metadata.get("in_channels", 3)) != ("labels", 3):
    sys.exit(f"{network}: export a network of RGB images with --output labels")
palette = metadata.get("palette")

try:
    image = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
except Exception as error:
    sys.exit(f"{photo} cannot be read as an image: {error}")
batch = np.asarray(image)[None]  # [1, H, W, 3] uint8
labels = np.asarray(jax.jit(program.call)(params, batch))[0]  # [H, W] int32
if labels.max() > 255:
    sys.exit(f"{network} gives class {labels.max()}, and a PNG has 256 colours")

if not palette:  # The colours of PASCAL VOC: three bits of the class at a time.
    bits = [
        [[i >> 3 * k + c & 1 for k in range(8)] for c in range(3)] for i in range(256)
    ]
    palette = np.packbits(bits, axis=-1)
picture = Image.fromarray(labels.astype(np.uint8))
picture.putpalette(np.array(palette, np.uint8).tobytes())
try:
    picture.save(labels_png)
except (OSError, ValueError) as error:
    sys.exit(f"{labels_png} cannot be written: {error}")
