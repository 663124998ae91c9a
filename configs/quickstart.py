"""A thin FCN-8s on coloured shapes, drawn on demand, from random parameters.

    python train.py --config configs/quickstart.py --workdir runs/quickstart

On two CPU cores of an AMD EPYC: 85 seconds, mean IU 0.89.
"""

from fcn_jax.data.shapes import CLASS_NAMES, PALETTE
from fcn_jax.training.config import Config, Data, Model, Optim


def get_config() -> Config:
    return Config(
        model=Model(variant="fcn8s", width=1 / 8, dropout=0.0, score_init="xavier"),
        data=Data(
            name="shapes",
            num_classes=len(CLASS_NAMES),
            class_names=CLASS_NAMES,
            palette=PALETTE,
            size=(64, 64),
        ),
        # A thin network with small random weights bears a far higher rate than
        # fine-tuning does.
        optim=Optim(learning_rate=4e-3, schedule="cosine", warmup_steps=50),
        steps=1800,
        batch_size=8,
        eval_every=300,
    )
