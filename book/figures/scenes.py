"""Built-in scenes under a sweep of `context_shift`, as one image: the same streets in rows of growing shift."""

import numpy as np
from PIL import Image

from apd.data.scenes import draw_scene
from apd.data.specs import SCENES

STREETS, SHIFTS, SIZE, GAP = (3, 8, 14, 17), (0.0, 0.5, 1.0), (180, 240), 6


def draw() -> Image.Image:
    """Four streets side by side: three rows of images, and their labels below."""
    rows = [
        [draw_scene(0, street, height=SIZE[0], width=SIZE[1], context_shift=shift).image_HW3 for street in STREETS]
        for shift in SHIFTS
    ]
    rows.append(
        [
            SCENES.colourise(draw_scene(0, street, height=SIZE[0], width=SIZE[1], context_shift=0.0).labels_HW)
            for street in STREETS
        ]
    )
    height, width = (len(rows) * (SIZE[0] + GAP) - GAP, len(STREETS) * (SIZE[1] + GAP) - GAP)
    sheet_HW3 = np.full((height, width, 3), 128, dtype=np.uint8)
    for i, row in enumerate(rows):
        for j, image_HW3 in enumerate(row):
            top, left = i * (SIZE[0] + GAP), j * (SIZE[1] + GAP)
            sheet_HW3[top : top + SIZE[0], left : left + SIZE[1]] = image_HW3
    return Image.fromarray(sheet_HW3)
