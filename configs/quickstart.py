"""Coloured shapes, drawn on demand: a thin FCN-8s that learns them from scratch.

python train.py --config configs/quickstart.py --workdir runs/quickstart
"""

from fcn_jax.data.shapes import CLASS_NAMES, IGNORE_LABEL
from fcn_jax.training.config import Config, Data, Model, Optim


def get_config() -> Config:
    return Config(
        model=Model(variant="fcn8s", width=0.25, dropout=0.0, score_init="xavier"),
        data=Data(
            name="shapes",
            num_classes=len(CLASS_NAMES),
            class_names=CLASS_NAMES,
            ignore_label=IGNORE_LABEL,
            size=(64, 64),
        ),
        optim=Optim(learning_rate=1e-3, schedule="cosine", warmup_steps=50),
        epochs=8,
        batch_size=16,
    )
