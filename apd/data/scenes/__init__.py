"""The built-in data: street scenes drawn by a program, so that the study runs anywhere and knows every label exactly.

A scene has ten classes under perspective: stuff (sky, building, pole, road, pavement, tree, fence) and things that are
counted (sign, car, pedestrian). Layout and look come from two independent streams of random numbers, both a function
of (seed, split, index) alone: the same street can be seen at any size and at any `context_shift`, the study's dial
(`apd.data.scenes.light` says what it models), with the same labels.
"""

import hashlib
import json
from functools import lru_cache
from numbers import Real
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from apd.data.scenes.canvas import Canvas
from apd.data.scenes.layout import draw_layout
from apd.data.scenes.light import develop, draw_look
from apd.data.scenes.objects import paint_thing
from apd.data.scenes.street import begin, paint_street
from apd.data.scenes.world import Dice
from apd.data.specs import SCENES, DatasetSpec, Sample

GENERATOR_VERSION = 1
"""Part of every fingerprint. Raise it whenever any pixel or label of any scene changes."""

SMALLEST = 32
"""Least height and width in pixels: below it most objects are smaller than their own border."""

Split = Literal["train", "val", "test"]
_CELLS = 2  # canvas cells per pixel along each side, averaged for smooth edges
_BORDER_PER_PIXEL = 240  # pixels of the shorter side for each pixel of border width
_KEPT_PIXELS = 128 * 128  # pictures up to this size are kept after drawing, the last _KEPT of them: at most 128 MiB
_KEPT = 2048


class Scene(NamedTuple):
    """One drawn scene and everything known about it.

    Attributes:
        image_HW3: uint8 RGB.
        labels_HW: uint8, the class of each pixel; 255 on the thin borders where two regions meet.
        instances_HW: uint16, 0 for stuff, else the number 1..n of the thing seen there, border included.
        instance_classes_N: int64 (n,), class of things 1..n, in the order of their numbers (far to near).
        boxes_N4: int64 (n, 4), x0, y0, x1, y1 around the visible pixels of each thing; x1 and y1 are one past the last
            pixel, so a width is x1 - x0 and `instances_HW[y0:y1, x0:x1]` is the cut-out. Far or hidden things can be
            as small as one pixel.
    """

    image_HW3: NDArray[np.uint8]
    labels_HW: NDArray[np.uint8]
    instances_HW: NDArray[np.uint16]
    instance_classes_N: NDArray[np.int64]
    boxes_N4: NDArray[np.int64]


def draw_scene(
    seed: int, index: int, *, height: int, width: int, context_shift: float = 0.5, split: Split = "train"
) -> Scene:
    """Draw one scene.

    Args:
        seed: which family of scenes; any integer from 0.
        index: which scene of the family; any integer from 0.
        height, width: size of the picture in pixels, at least 32 each.
        context_shift: 0 = every picture has the same light, palette and textures, 1 = every picture has its own.
            It changes `image_HW3` only.
        split: "train", "val" or "test"; the splits of one seed share no random numbers.

    Raises:
        ValueError: an argument outside what is said above.

    Example:
        >>> scene = draw_scene(0, 0, height=96, width=128)
        >>> scene.image_HW3.shape, scene.labels_HW.shape, scene.boxes_N4.shape == (scene.instances_HW.max(), 4)
        ((96, 128, 3), (96, 128), True)
    """
    _check(height=height, width=width, context_shift=context_shift, seed=seed, split=split)
    if not _is_count(index):
        raise ValueError(f"index={index!r}; expected an integer from 0")
    origin = (seed, get_args(Split).index(split), index)
    layout = draw_layout(Dice(*origin, 0))
    view = begin(layout, _CELLS * height, _CELLS * width)
    paint_street(view, layout)
    for thing in layout.things:
        paint_thing(view, thing)
    image_HW3 = develop(view, draw_look(Dice(*origin, 1), float(context_shift)))
    return Scene(image_HW3, *_label(view.canvas))


def _label(
    canvas: Canvas,
) -> tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.int64], NDArray[np.int64]]:
    """Labels, instances, their classes and their boxes of a painted canvas, at one pixel for 2 x 2 cells."""
    region_HW = canvas.region_of_part().take(canvas.parts_HW[::_CELLS, ::_CELLS])
    classes = np.array([class_index for class_index, _ in canvas.regions])
    things = np.array([thing for _, thing in canvas.regions])
    visible = np.zeros(len(classes), dtype=bool)
    visible[region_HW] = True
    shown = np.flatnonzero(visible & things)
    number_of = np.zeros(len(classes), dtype=np.uint16)
    number_of[shown] = np.arange(1, len(shown) + 1)
    instances_HW = number_of.take(region_HW)
    labels_HW = classes.astype(np.uint8).take(region_HW)
    labels_HW[_borders(region_HW)] = SCENES.ignore_index
    return labels_HW, instances_HW, classes[shown].astype(np.int64), _boxes(instances_HW, len(shown))


def _boxes(instances_HW: NDArray[np.uint16], count: int) -> NDArray[np.int64]:
    """Bounds (x0, y0, x1, y1) of the pixels that carry each number 1..count."""
    rows, columns = np.nonzero(instances_HW)
    number = instances_HW[rows, columns] - 1
    boxes_N4 = np.empty((count, 4), dtype=np.int64)
    for axis, place, size in ((0, columns, instances_HW.shape[1]), (1, rows, instances_HW.shape[0])):
        seen = np.zeros((count, size), dtype=bool)
        seen[number, place] = True
        boxes_N4[:, axis] = seen.argmax(axis=1)
        boxes_N4[:, axis + 2] = size - seen[:, ::-1].argmax(axis=1)
    return boxes_N4


def _borders(region_HW: NDArray[np.uint16]) -> NDArray[np.bool_]:
    """Pixels on an outline: those whose right or lower neighbour shows another region; wider in larger pictures.

    A pixel's region is what its upper left corner sees, so an outline runs through the pixels it marks.
    """
    border_HW = np.zeros(region_HW.shape, dtype=bool)
    border_HW[:, :-1] = region_HW[:, 1:] != region_HW[:, :-1]
    border_HW[:-1] |= region_HW[1:] != region_HW[:-1]
    for step in range(border_width(*region_HW.shape) - 1):
        # Wider by one pixel at a time, to either side in turn.
        before, after = (slice(1, None), slice(None, -1)) if step % 2 == 0 else (slice(None, -1), slice(1, None))
        border_HW[before] |= border_HW[after].copy()
        border_HW[:, before] |= border_HW[:, after].copy()
    return border_HW


def border_width(height: int, width: int) -> int:
    """Width in pixels of the ignored borders in a picture of this size: 1 up to 359, then by size (own choice)."""
    return max(1, round(min(height, width) / _BORDER_PER_PIXEL))


class Scenes:
    """A data set of `count` scenes; nothing is stored on disk, every sample is drawn when asked for.

    Small pictures are kept in memory after the first time (128 MiB at most, shared by all data sets of the process):
    an epoch after the first, or the next run of a campaign, does not draw them again.

    Args:
        count: number of scenes, at least 1.
        height, width, context_shift, seed, split: as in `draw_scene`.

    Raises:
        ValueError: an argument outside what `draw_scene` allows, or a count below 1.

    Example:
        >>> data = Scenes(100, height=96, width=96, context_shift=1.0, seed=0, split="val")
        >>> data[3].image_3HW.shape, data[3].name
        (torch.Size([3, 96, 96]), 'scenes-val-0-3')
    """

    spec: DatasetSpec = SCENES

    def __init__(
        self, count: int, *, height: int, width: int, context_shift: float, seed: int, split: Split = "train"
    ) -> None:
        _check(height=height, width=width, context_shift=context_shift, seed=seed, split=split)
        if not _is_count(count) or count == 0:
            raise ValueError(f"count={count!r}; expected an integer from 1, the number of scenes")
        self.count, self.height, self.width = int(count), int(height), int(width)
        self.context_shift, self.seed, self.split = float(context_shift), int(seed), split

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        """Sample `index` from 0; IndexError past the end, and no counting from the end."""
        draw = _kept_pixels if self.height * self.width <= _KEPT_PIXELS else _pixels
        image_HW3, labels_HW = draw(*self._arguments(index))
        return Sample(  # copies: what is kept is not the caller's to change
            torch.tensor(image_HW3).permute(2, 0, 1).contiguous(),
            torch.tensor(labels_HW),
            f"scenes-{self.split}-{self.seed}-{index}",
        )

    def scene(self, index: int) -> Scene:
        """The whole scene behind sample `index`, with its instances and boxes."""
        return _draw(*self._arguments(index))

    def _arguments(self, index: int) -> tuple[int, int, int, int, float, Split]:
        if not 0 <= index < self.count:
            raise IndexError(f"index {index} of a data set of {self.count} scenes; expected 0..{self.count - 1}")
        return self.seed, int(index), self.height, self.width, self.context_shift, self.split

    def fingerprint(self) -> str:
        """Hex sha256 of the generator's version and the settings: equal means the same pixels and labels."""
        settings = {"generator": GENERATOR_VERSION, **vars(self)}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _draw(seed: int, index: int, height: int, width: int, context_shift: float, split: Split) -> Scene:
    return draw_scene(seed, index, height=height, width=width, context_shift=context_shift, split=split)


def _pixels(*arguments: Any) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Image and labels of a scene, all that training and evaluation look at."""
    scene = _draw(*arguments)
    return scene.image_HW3, scene.labels_HW


_kept_pixels = lru_cache(maxsize=_KEPT)(_pixels)


def _is_count(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 0


def _check(*, height: int, width: int, context_shift: float, seed: int, split: str) -> None:
    for name, value in (("height", height), ("width", width)):
        if not _is_count(value) or value < SMALLEST:
            raise ValueError(f"{name}={value!r}; expected a number of pixels from {SMALLEST}, such as 96")
    if isinstance(context_shift, bool) or not isinstance(context_shift, Real) or not 0 <= context_shift <= 1:
        raise ValueError(
            f"context_shift={context_shift!r}; expected a number from 0 (one look for all pictures) "
            f"to 1 (each picture its own)"
        )
    if not _is_count(seed):
        raise ValueError(f"seed={seed!r}; expected an integer from 0")
    if split not in get_args(Split):
        raise ValueError(f"split={split!r}; expected one of {', '.join(get_args(Split))}")
