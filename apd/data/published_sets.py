"""The published data sets of the paper's kind: `DatasetSpec` of Cityscapes, ADE20K, PASCAL-Context and COCO-Stuff.

Each describes the label maps that the data set's script makes (`data_scripts/`), which `apd.data.converted` reads. The
names and their order come from the publishers' own lists; tests/test_published_sets.py holds them to these.
"""

from apd.data.catalogue import DatasetSpec
from apd.data.palettes import distinct_colours

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
