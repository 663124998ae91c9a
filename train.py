"""Train and evaluate a network: python train.py --config FILE --workdir DIR.

This is the command ``python -m fcn_jax train``.
"""

import sys

from fcn_jax.__main__ import run

if __name__ == "__main__":
    run(["train", *sys.argv[1:]])
