r"""FCN-8s on ADE20K's scene parsing benchmark, 150 classes, in one stage from VGG-16.

    python train.py --config configs/ade20k.py --workdir runs/ade20k \
        --config.data.root=ADEChallengeData2016

Download ADEChallengeData2016.zip (1 GB) from http://sceneparsing.csail.mit.edu and
unpack it. It has images/training, annotations/training, images/validation and
annotations/validation, with 20,210 and 2,000 images. The images are for non-commercial
research and education only; read the terms on the site of ADE20K. The value 0 of the
masks marks other objects, which the benchmark leaves out. The names are the first of
each line of objectInfo150.txt.
Made for one accelerator of 16 GB or more. Time and mean IU: not yet measured.
"""

from fcn_jax.training.config import Config, Data, Model
from fcn_jax.training.recipes import POOL_SCALES

CLASS_NAMES = """
    wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass,
    cabinet, sidewalk, person, earth, door, table, mountain, plant, curtain, chair,
    car, water, painting, sofa, shelf, house, sea, mirror, rug, field, armchair,
    seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box,
    column, signboard, chest of drawers, counter, sand, sink, skyscraper, fireplace,
    refrigerator, grandstand, path, stairs, runway, case, pool table, pillow, screen
    door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower,
    book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel
    chair, boat, bar, arcade machine, hovel, bus, towel, light, truck, tower,
    chandelier, awning, streetlight, booth, television, airplane, dirt track,
    apparel, pole, land, bannister, escalator, ottoman, bottle, buffet, poster,
    stage, van, ship, fountain, conveyer belt, canopy, washer, plaything, swimming
    pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball,
    food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher,
    screen, blanket, sculpture, hood, sconce, vase, traffic light, tray, ashcan,
    fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass,
    clock, flag
"""


def get_config() -> Config:
    names = tuple(" ".join(CLASS_NAMES.split()).split(", "))
    return Config(
        model=Model(variant="fcn8s", dtype="bfloat16", pool_scales=POOL_SCALES),
        data=Data(
            root="data/ADEChallengeData2016",
            images="images/{split}",
            labels="annotations/{split}",
            train_split="training",
            eval_split="validation",
            num_classes=len(names),
            class_names=names,
            reduce_zero_label=True,
            scale=(0.75, 1.5),
            crop=(512, 512),
            help=(
                "Download ADEChallengeData2016.zip from "
                "http://sceneparsing.csail.mit.edu, unpack it and pass "
                "--config.data.root=.../ADEChallengeData2016"
            ),
        ),
        init_from="vgg16",
        epochs=30,
        batch_size=8,
    )
