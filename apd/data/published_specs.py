"""Colours for many classes: any number of them, as far apart as a simple choice makes them."""

from functools import cache

import numpy as np

from apd.data.specs import DatasetSpec


def distinct_colours(count: int) -> tuple[tuple[int, int, int], ...]:
    """`count` RGB colours (0..255), each chosen as far as possible in CIE Lab from white and from all before it.

    White is what ignored pixels are shown in. A longer list begins with the shorter ones.

    Raises:
        ValueError: `count` is below 1 or above 255, the most labels a map of 8 bits has beside the ignored one.

    Example:
        >>> distinct_colours(3) == distinct_colours(150)[:3]
        True
    """
    if not 1 <= count <= 255:
        raise ValueError(f"count={count}; expected 1 to 255 colours")
    return _sequence()[:count]


@cache
def _sequence() -> tuple[tuple[int, int, int], ...]:
    steps = np.linspace(0, 255, 16).round().astype(np.uint8)  # every 17th value of each channel
    candidates_N3 = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    lab_N3 = _cie_lab(candidates_N3)
    nearest_N = np.linalg.norm(lab_N3 - _cie_lab(np.array([[255, 255, 255]])), axis=1)
    chosen = []
    for _ in range(255):
        chosen.append(int(nearest_N.argmax()))
        nearest_N = np.minimum(nearest_N, np.linalg.norm(lab_N3 - lab_N3[chosen[-1]], axis=1))
    return tuple((int(red), int(green), int(blue)) for red, green, blue in candidates_N3[chosen])


def _cie_lab(rgb_N3: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of sRGB colours 0..255."""
    encoded = rgb_N3 / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    xyz = linear @ to_xyz.T / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


# The published data sets of the paper's kind: `DatasetSpec` of Cityscapes, ADE20K, PASCAL-Context and COCO-Stuff.

_CITYSCAPES = (  # names and colours of the 19 train ids, as in the table of github.com/mcordts/cityscapesScripts
    ("road", (128, 64, 128)),
    ("sidewalk", (244, 35, 232)),
    ("building", (70, 70, 70)),
    ("wall", (102, 102, 156)),
    ("fence", (190, 153, 153)),
    ("pole", (153, 153, 153)),
    ("traffic light", (250, 170, 30)),
    ("traffic sign", (220, 220, 0)),
    ("vegetation", (107, 142, 35)),
    ("terrain", (152, 251, 152)),
    ("sky", (70, 130, 180)),
    ("person", (220, 20, 60)),
    ("rider", (255, 0, 0)),
    ("car", (0, 0, 142)),
    ("truck", (0, 0, 70)),
    ("bus", (0, 60, 100)),
    ("train", (0, 80, 100)),
    ("motorcycle", (0, 0, 230)),
    ("bicycle", (119, 11, 32)),
)

# the first name of each class in objectInfo150.txt
_ADE20K = """
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door,
table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, armchair,
seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, chest of drawers,
counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table, pillow,
screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench, countertop,
stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel, light, truck,
tower, chandelier, awning, streetlight, booth, television, airplane, dirt track, apparel, pole, land, bannister,
escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything,
swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank,
trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase,
traffic light, tray, ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock,
flag
"""

_PASCAL_CONTEXT = """
aeroplane, bag, bed, bedclothes, bench, bicycle, bird, boat, book, bottle, building, bus, cabinet, car, cat, ceiling,
chair, cloth, computer, cow, cup, curtain, dog, door, fence, floor, flower, food, grass, ground, horse, keyboard,
light, motorbike, mountain, mouse, person, plate, platform, pottedplant, road, rock, sheep, shelves, sidewalk, sign,
sky, snow, sofa, table, track, train, tree, truck, tvmonitor, wall, water, window, wood
"""

_COCO_THINGS = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag,
tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard,
tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot,
hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote,
keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear,
hair drier, toothbrush
"""

_COCO_STUFF = """
banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other, ceiling-tile,
cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence, floor-marble, floor-other,
floor-stone, floor-tile, floor-wood, flower, fog, food-other, fruit, furniture-other, grass, gravel, ground-other,
hill, house, leaves, light, mat, metal, mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow,
plant-other, plastic, platform, playingfield, railing, railroad, river, road, rock, roof, rug, salad, sand, sea,
shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw, structural-other, table, tent, textile-other,
towel, tree, vegetable, wall-brick, wall-concrete, wall-other, wall-panel, wall-stone, wall-tile, wall-wood,
water-other, waterdrops, window-blind, window-other, wood
"""


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


CITYSCAPES = DatasetSpec(
    name="cityscapes",
    class_names=tuple(name for name, _ in _CITYSCAPES),
    palette=tuple(colour for _, colour in _CITYSCAPES),
    thing_names=("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
    splits=(("train", 2975), ("val", 500)),
)
"""Cityscapes with its 19 evaluated classes, in the publishers' colours; the labels of test are not public."""

ADE20K = DatasetSpec(
    name="ade20k",
    class_names=_names(_ADE20K),
    palette=distinct_colours(150),
    splits=(("train", 20210), ("val", 2000)),
)
"""ADE20K in the form of the MIT scene parsing benchmark: 150 classes; everything else (0 in its maps) is ignored."""

PASCAL_CONTEXT_60 = DatasetSpec(
    name="pascal_context_60",
    class_names=("background", *_names(_PASCAL_CONTEXT)),
    palette=distinct_colours(60),
    splits=(("train", 4998), ("val", 5105)),
)
"""PASCAL-Context with the 59 most frequent classes in alphabetical order, after the background that is all the rest.

The released code trains on these 60. Which order its checkpoints have is not known."""

PASCAL_CONTEXT_59 = DatasetSpec(
    name="pascal_context_59",
    class_names=PASCAL_CONTEXT_60.class_names[1:],
    palette=PASCAL_CONTEXT_60.palette[1:],
    file_values=tuple(range(1, 60)),
    void_values=(0,),
    splits=PASCAL_CONTEXT_60.splits,
)
"""PASCAL-Context's 59 classes without the background, which is ignored; it reads the same maps as the 60."""

COCO_STUFF = DatasetSpec(
    name="coco",
    class_names=(*_names(_COCO_THINGS), *_names(_COCO_STUFF)),
    palette=distinct_colours(171),
    thing_names=_names(_COCO_THINGS),
    splits=(("train", 118287), ("val", 5000)),
)
"""COCO 2017 with the pixel maps of COCO-Stuff: 80 things and 91 kinds of stuff; 11 things that never occur are out."""
