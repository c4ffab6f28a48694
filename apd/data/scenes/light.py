"""The appearance of a scene: light, palette and textures, and the context shift that makes them differ between images.

Within an image a class keeps its appearance. At `context_shift` 0 it is that of every image; at 1 classes take the
standard colours in another order, turned in hue, under a light of their own; between, all move continuously.
"""

from functools import lru_cache
from math import cos, pi, sin, sqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from apd.data.scenes.canvas import Floats, Surface
from apd.data.scenes.layout import Dice
from apd.data.scenes.street import SKY, View
from apd.data.specs import SCENES

_TABLE_N6 = np.loadtxt(Path(__file__).with_name("appearance.txt"), usecols=range(1, 7))
_STANDARD_LAB, _DETAIL_LAB = np.split(_TABLE_N6[:, :3], [SCENES.num_classes])
_TEXTURES = _TABLE_N6[: SCENES.num_classes, 3:].tolist()
_CALM = (0.4, *(1.0,) * (SCENES.num_classes - 1))  # share of a drawn texture's strength: skies have little
_TILE = 256
_CANDIDATES = 8  # orders of the palette to choose from
_MUTED = 0.8  # chroma of an image's own palette: what is a spot of colour on a sign is loud on a whole road


class Appearance(NamedTuple):
    """Everything an image's pixels share. Colours of classes in OkLab; light in linear RGB."""

    class_lab_K3: NDArray[np.float64]
    textures: tuple[tuple[tuple[int, float, float], ...], ...]  # two layers of (tile, side, strength) per class
    cast_3: Floats
    contrast: float
    haze: float  # metres at which half of the colour is the air's
    glow: float  # how much lighter the sky is at the horizon


def draw_appearance(dice: Dice, context_shift: float) -> Appearance:
    """Draw an image's own appearance and mix it with the common one; every context shift draws the same numbers."""
    # eased in, so that what colour alone says of the class falls about evenly (tests/data/test_scenes.py measures it)
    own = context_shift * (1 + context_shift) / 2
    turn, count = dice.uniform(-pi, pi), SCENES.num_classes
    orders_NK = np.argsort([[dice.uniform(0.0, 1.0) for _ in range(count)] for _ in range(_CANDIDATES)], axis=1)
    class_lab_K3 = _mix_palettes(orders_NK, turn, np.array([dice.tint(0.05, 0.02) for _ in range(count)]), own)
    warmth, tinge, exposure = dice.uniform(-1, 1), dice.uniform(-1, 1), dice.uniform(0.5, 1.15)
    cast = (1 + 0.28 * warmth, 1 + 0.10 * tinge, 1 - 0.28 * warmth)
    contrast, haze, glow = dice.uniform(0.78, 1.15), dice.uniform(60.0, 400.0), dice.uniform(0.0, 0.5)
    own_textures = tuple(
        (dice.integer(0, 7), dice.uniform(2.5, 8.0), own * calm * dice.uniform(0.04, 0.2)) for calm in _CALM
    )
    return Appearance(
        class_lab_K3=class_lab_K3,
        textures=(tuple((tile, side, (1 - own) * by) for tile, side, by in _TEXTURES), own_textures),
        cast_3=np.array([1 + own * (value * exposure - 1) for value in cast], dtype=np.float32),
        contrast=1 + own * (contrast - 1),
        haze=220.0 + own * (haze - 220.0),
        glow=0.25 + own * (glow - 0.25),
    )


def _mix_palettes(
    orders_NK: NDArray[np.intp], turn: float, jitter_K3: NDArray[np.float64], own: float
) -> NDArray[np.float64]:
    """Move to the same colours in another order, turned in hue: the one that keeps classes furthest apart.

    Both are taken around the palette's mean and the sum is rescaled, so that colours stay as far apart on the way.
    """
    middle_3 = _STANDARD_LAB.mean(axis=0)
    standard_K3 = _STANDARD_LAB - middle_3
    c, s = cos(turn), sin(turn)
    a_K, b_K = standard_K3[:, 1], standard_K3[:, 2]
    turned_K3 = standard_K3.copy()
    turned_K3[:, 1], turned_K3[:, 2] = _MUTED * (c * a_K - s * b_K), _MUTED * (s * a_K + c * b_K)
    own_NK3 = turned_K3[orders_NK] + jitter_K3

    def mix(share: float) -> NDArray[np.float64]:
        return ((1 - share) * standard_K3 + share * own_NK3) / sqrt((1 - share) ** 2 + share**2)

    closest_N = np.full(len(orders_NK), np.inf)
    for share in (0.5, 1.0):
        mixed_NK3 = mix(share) * (1.0, 1.7, 1.7)
        gaps_NKK = ((mixed_NK3[:, :, None] - mixed_NK3[:, None]) ** 2).sum(axis=3)
        nearest_NK = np.sort(gaps_NKK, axis=2)[:, :, 1]
        closest_N = np.minimum(closest_N, np.sort(nearest_NK, axis=1)[:, :5].sum(axis=1))
    return mix(own)[int(closest_N.argmax())] + middle_3


def _linear_rgb(lab_N3: NDArray[np.float64]) -> Floats:
    """OkLab (Ottosson 2020), (N, 3), to linear RGB, (3, N), cut to what a screen can show."""
    light, a, b = lab_N3.T
    long = light + 0.3963377774 * a + 0.2158037573 * b
    medium = light - 0.1055613458 * a - 0.0638541728 * b
    short = light - 0.0894841775 * a - 1.2914855480 * b
    # Products, since a power may differ in its last bit from one processor to the next.
    long, medium, short = long * long * long, medium * medium * medium, short * short * short
    red = 4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short
    green = -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short
    blue = -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short
    return np.clip(np.stack([red, green, blue]), 0.002, 1.0).astype(np.float32)


@lru_cache(maxsize=1)
def _texture_tiles() -> NDArray[np.int8]:
    """Eight periodic tiles of 256 x 256 in -127..127, one after the other: the same in every scene."""
    noise = np.random.Generator(np.random.PCG64(20220716)).random((3, _TILE, _TILE)).astype(np.float32) * 2 - 1

    def smooth(field: Floats, radius: int) -> Floats:
        for axis in (0, 1):
            field = sum(np.roll(field, shift, axis) for shift in range(-radius, radius + 1)) / (2 * radius + 1)
        return field / np.abs(field).max()

    i, j = np.mgrid[0:_TILE, 0:_TILE]
    grain, blotches = smooth(noise[0], 1), smooth(smooth(noise[1], 9), 9)
    across, down, hatch = (np.where(along // 16 % 2, 1.0, -1.0) for along in (i, j, i + j))
    bricks = np.where((i % 32 < 6) | ((j + i // 32 % 2 * 32) % 64 < 6), -1.0, 0.3)
    slabs = np.where((i % 64 < 6) | (j % 64 < 6), -1.0, 0.2) + np.where((i // 64 + j // 64) % 2, 0.3, -0.3)
    spots = np.where((i % 64 - 32) ** 2 + (j % 64 - 32) ** 2 < 300, 1.0, -0.4)
    # of two precisions: one array would round anew
    tiles = (grain, blotches, across, down, bricks, slabs, hatch, spots)
    return np.stack([np.rint(127 * np.clip(0.85 * t + 0.15 * grain, -1, 1)) for t in tiles]).astype(np.int8).ravel()


def develop(view: View, appearance: Appearance) -> NDArray[np.uint8]:
    """Colour a painted canvas: (2H, 2W) part numbers -> (H, W, 3) image. Each pixel averages its four cells."""
    canvas = view.canvas
    table_N9 = np.array(canvas.parts)
    lab_N3, (shade_N, class_N, detail_N, share_N, depth_N, surface_N) = table_N9[:, :3], table_N9[:, 3:].T
    class_N, surface_N = class_N.astype(np.uint8), surface_N.astype(np.uint8)
    lab_N3[:, 0] += shade_N
    detail_N3 = _DETAIL_LAB[detail_N.astype(np.intp)]
    detail_N3[:, 0] += np.minimum(shade_N, 0.0)
    lab_N3 = appearance.class_lab_K3[class_N] + lab_N3
    lab_N3 += (detail_N3 - lab_N3) * share_N[:, None]
    air_13 = appearance.class_lab_K3[SKY : SKY + 1] + (0.04, 0.0, 0.0)
    colour_3N = _linear_rgb(np.concatenate([lab_N3, air_13]))
    air_311 = colour_3N[:, -1:, None] * np.float32(1 + 0.5 * appearance.glow)
    colour_3N *= np.float32(0.25)
    cells_HW = canvas.parts_HW.astype(np.intp)
    part_HW = cells_HW[0::2, 0::2]
    image_3HW = colour_3N.take(part_HW, axis=1)
    for i, j in ((0, 1), (1, 0), (1, 1)):
        image_3HW += colour_3N.take(cells_HW[i::2, j::2], axis=1)

    surface_HW, class_HW = surface_N.take(part_HW), class_N.take(part_HW)
    rows, columns = canvas.rows[0::2] + np.float32(0.5), canvas.columns[0::2] + np.float32(0.5)  # of pixels' centres
    below = np.maximum(rows - np.float32(view.horizon), np.float32(0.5))
    beside = np.maximum(np.abs(columns - np.float32(view.centre)), np.float32(0.5))
    focal, height = np.float32(view.focal), np.float32(view.camera.height)
    on_ground, on_wall = surface_HW == Surface.GROUND.value, surface_HW == Surface.WALL.value
    depth_HW = depth_N.astype(np.float32).take(part_HW)
    ground_z, wall_z = focal * height / below, focal * np.float32(6.5) / beside
    depth_HW = np.where(on_ground, ground_z[:, None], np.where(on_wall, wall_z, depth_HW))

    image_3HW *= 1 + _texture(view, appearance, class_HW, (on_ground, on_wall), depth_HW, rows, columns)
    air_HW = depth_HW / (depth_HW + np.float32(appearance.haze))
    low_H = np.clip(rows / np.float32(view.horizon), 0, 1)
    air_HW = np.where(class_HW == SKY, (np.float32(appearance.glow) * low_H * low_H)[:, None], air_HW)
    image_3HW += (air_311 - image_3HW) * air_HW
    image_3HW *= appearance.cast_3[:, None, None]
    np.sqrt(image_3HW, out=image_3HW)  # display gamma of 2: exact, unlike a power
    image_3HW -= np.float32(0.5)
    image_3HW *= np.float32(255 * appearance.contrast)
    image_3HW += np.float32(128)
    np.clip(image_3HW, 0, 255, out=image_3HW)
    return np.ascontiguousarray(image_3HW.astype(np.uint8).transpose(1, 2, 0))


def _texture(
    view: View, appearance: Appearance, class_HW: NDArray, where: tuple, depth_HW: Floats, rows: Floats, columns: Floats
) -> Floats:
    """Relative brightness (H, W) from the two texture layers, mapped along ground and walls, else on the screen."""
    (on_ground, on_wall), height = where, np.float32(view.camera.height)
    screen = np.float32(10 / min(view.canvas.height, view.canvas.width))
    metres = depth_HW * np.float32(1 / view.focal)
    across = (columns - np.float32(view.centre)) * metres
    up = (np.float32(view.horizon) - rows)[:, None] * metres
    u_HW = np.where(on_ground, across, np.where(on_wall, depth_HW, columns * screen))
    v_HW = np.where(on_ground, depth_HW, np.where(on_wall, up + height, (rows * screen)[:, None]))
    total_HW = np.zeros_like(u_HW)
    for layer in appearance.textures:
        tile, side, strength = np.array(layer).T
        if not strength.any():
            continue
        texels = (_TILE / side).astype(np.float32).take(class_HW)
        at = ((v_HW * texels).astype(np.int32) & (_TILE - 1)) * _TILE
        at += (u_HW * texels).astype(np.int32) & (_TILE - 1)
        at += (tile * _TILE * _TILE).astype(np.int32).take(class_HW)
        total_HW += _texture_tiles().take(at) * (strength / 127).astype(np.float32).take(class_HW)
    return total_HW * np.where(on_ground | on_wall, 14 / (14 + depth_HW), np.float32(1))
