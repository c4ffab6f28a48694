"""What augmentation does to one scene, step by step, and another draw of the same."""

import numpy as np
from PIL import Image
from scenes import GAP

from apd.data.augment import Augmentation, augment
from apd.data.batches import generator_for
from apd.data.scenes import Scenes
from apd.data.specs import SCENES, Sample

HEIGHT, WIDTH, STREET = 180, 240, 8
WHOLE = {"crop": (HEIGHT, WIDTH), "scale": (1.0, 1.0), "flip": 0.0}
CROPPED = {**WHOLE, "scale": (0.5, 2.0)}
TURNED = {**CROPPED, "rotation": 10.0}
BLURRED = {**TURNED, "blur": 0.5}
FLIPPED = {**BLURRED, "flip": 0.5}
STEPS = ((WHOLE, 0), (CROPPED, 0), (TURNED, 0), (BLURRED, 0), (FLIPPED, 0), (FLIPPED, 1))
"""Settings of each column and which of `DRAWS` it takes: one draw with more and more switched on, then another."""
DRAWS = (55, 189)  # the first enlarges, the second reduces; both turn, blur and flip
ACROSS = 3


def columns() -> list[Sample]:
    """The sample that each column shows."""
    street = Scenes(STREET + 1, height=HEIGHT, width=WIDTH, context_shift=0.0, seed=0, split="train")[STREET]
    return [
        Sample(*augment(street, Augmentation(**settings), generator_for(0, DRAWS[draw])), street.name)
        for settings, draw in STEPS
    ]


def draw() -> Image.Image:
    """One image: rows of three, each with its labels below."""
    made = columns()
    down, across = HEIGHT + GAP, WIDTH + GAP
    rows = -(-len(made) // ACROSS) * 2
    sheet_HW3 = np.full((rows * down - GAP, ACROSS * across - GAP, 3), 128, dtype=np.uint8)
    for place, sample in enumerate(made):
        top, left = place // ACROSS * 2 * down, place % ACROSS * across
        sheet_HW3[top : top + HEIGHT, left : left + WIDTH] = sample.image_3HW.permute(1, 2, 0).numpy()
        sheet_HW3[top + down : top + down + HEIGHT, left : left + WIDTH] = SCENES.colourise(sample.labels_HW.numpy())
    return Image.fromarray(sheet_HW3)
