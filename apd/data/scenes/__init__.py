"""Street scenes drawn by a program; layout and appearance are independent functions of (seed, split, index) alone."""

import hashlib
import json
from functools import lru_cache
from numbers import Real
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from apd.data.instances import InstanceSample, InstanceSpec
from apd.data.scenes.canvas import Canvas
from apd.data.scenes.layout import Dice, draw_layout
from apd.data.scenes.light import develop, draw_appearance
from apd.data.scenes.objects import paint_object
from apd.data.scenes.street import begin, paint_street
from apd.data.specs import SCENES, DatasetSpec, Sample

GENERATOR_VERSION = 1  # part of every fingerprint: raise it whenever any pixel or label of any scene changes

SMALLEST = 32  # least height and width in pixels: below it most objects are smaller than their own border
LEAST_PIXELS = 16  # own choice, 4 × 4: objects with fewer visible pixels need not be found
OBJECTS = InstanceSpec("scenes", SCENES.thing_names)
_OBJECT = {SCENES.index(name): label for label, name in enumerate(OBJECTS.class_names)}  # its label, by its class's

Split = Literal["train", "val", "test"]
_CELLS = 2  # canvas cells per pixel along each side, averaged for smooth edges
_BORDER_PER_PIXEL = 240  # pixels of the shorter side for each pixel of border width
_KEPT_PIXELS = 128 * 128  # scenes up to this size are kept after drawing, the last _KEPT of them: at most 192 MiB
_KEPT = 2048


class Scene(NamedTuple):
    """One drawn scene and everything known about it; objects are numbered 1..n from far to near."""

    image_HW3: NDArray[np.uint8]  #: RGB
    labels_HW: NDArray[np.uint8]  #: the class of each pixel; 255 on the thin borders where two regions meet
    instances_HW: NDArray[np.uint16]  #: 0 for stuff, else the number of the object seen there, border included
    instance_classes_N: NDArray[np.int64]  #: class of each object
    boxes_N4: NDArray[np.int64]  #: x0, y0, x1, y1 around each object's visible pixels; x1, y1 are one past the last


def draw_scene(
    seed: int, index: int, *, height: int, width: int, context_shift: float = 0.5, split: Split = "train"
) -> Scene:
    """Draw scene `index` of the family `seed` at `height` x `width` pixels, at least 32 each.

    `context_shift` 0 gives every image the same light, palette and textures, 1 each its own; labels do not change.
    `split` is "train", "val" or "test"; the splits of one seed share no random numbers.
    """
    _check(context_shift, split, height=height, width=width, seed=seed, index=index)
    origin = (seed, get_args(Split).index(split), index)
    layout = draw_layout(Dice(*origin, 0))
    view = begin(layout, _CELLS * height, _CELLS * width)
    paint_street(view, layout)
    for each in layout.objects:
        paint_object(view, each)
    image_HW3 = develop(view, draw_appearance(Dice(*origin, 1), float(context_shift)))
    return Scene(image_HW3, *_labels(view.canvas))


_kept_scene = lru_cache(maxsize=_KEPT)(draw_scene)


def _labels(canvas: Canvas) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    region_HW = np.array(canvas.region_of_part, dtype=np.uint16).take(canvas.parts_HW[::_CELLS, ::_CELLS])
    classes, counted = (np.array(column) for column in zip(*canvas.regions, strict=True))
    shown = np.flatnonzero((np.bincount(region_HW.ravel(), minlength=len(classes)) > 0) & counted)
    number_of = np.zeros(len(classes), dtype=np.uint16)
    number_of[shown] = np.arange(1, len(shown) + 1)
    instances_HW = number_of.take(region_HW)
    labels_HW = classes.astype(np.uint8).take(region_HW)
    labels_HW[_borders(region_HW)] = SCENES.ignore_index
    places = (np.nonzero(instances_HW == number) for number in range(1, len(shown) + 1))
    boxes = [(x.min(), y.min(), x.max() + 1, y.max() + 1) for y, x in places]
    boxes_N4 = np.array(boxes, dtype=np.int64).reshape(-1, 4)
    return labels_HW, instances_HW, classes[shown].astype(np.int64), boxes_N4


def _borders(region_HW: NDArray[np.uint16]) -> NDArray[np.bool_]:
    """Pixels whose right or lower neighbour shows another region; wider in larger images."""
    border_HW = np.zeros(region_HW.shape, dtype=bool)
    border_HW[:, :-1] = region_HW[:, 1:] != region_HW[:, :-1]
    border_HW[:-1] |= region_HW[1:] != region_HW[:-1]
    for step in range(border_width(*region_HW.shape) - 1):  # wider by one pixel at a time, to either side in turn
        before, after = (slice(1, None), slice(None, -1)) if step % 2 == 0 else (slice(None, -1), slice(1, None))
        border_HW[before] |= border_HW[after].copy()
        border_HW[:, before] |= border_HW[:, after].copy()
    return border_HW


def border_width(height: int, width: int) -> int:
    """Width in pixels of the ignored borders in an image of this size: 1 up to 359, then by size (own choice)."""
    return max(1, round(min(height, width) / _BORDER_PER_PIXEL))


class Scenes:
    """A data set of `count` scenes (see `draw_scene`); small ones are kept in memory, 192 MiB at most in a process."""

    spec: DatasetSpec = SCENES

    def __init__(
        self, count: int, *, height: int, width: int, context_shift: float, seed: int, split: Split = "train"
    ) -> None:
        _check(context_shift, split, height=height, width=width, seed=seed, count=count)
        self.count, self.height, self.width = int(count), int(height), int(width)
        self.context_shift, self.seed, self.split = float(context_shift), int(seed), split

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        """Sample `index` from 0; IndexError past the end, and no counting from the end."""
        scene = self.scene(index, kept=True)
        return Sample(image_of(scene), torch.tensor(scene.labels_HW), self.name(index))

    def name(self, index: int) -> str:
        """The name of sample `index`."""
        return f"scenes-{self.split}-{self.seed}-{index}"

    def scene(self, index: int, *, kept: bool = False) -> Scene:
        """The whole scene behind sample `index`; with `kept` one that is shared and must not be changed."""
        if not 0 <= index < self.count:
            raise IndexError(f"index {index} of a data set of {self.count} scenes; expected 0..{self.count - 1}")
        draw = _kept_scene if kept and self.height * self.width <= _KEPT_PIXELS else draw_scene
        settings = {name: getattr(self, name) for name in ("height", "width", "context_shift", "split")}
        return draw(self.seed, int(index), **settings)

    def fingerprint(self) -> str:
        """Hex sha256 of the generator's version and the settings: equal means the same samples."""
        settings = {"generator": GENERATOR_VERSION, **vars(self)}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def image_of(scene: Scene) -> torch.Tensor:
    """The scene's image as a tensor (3, H, W) of the caller's own."""
    return torch.tensor(scene.image_HW3).permute(2, 0, 1).contiguous()


class SceneInstances(Scenes):
    """The objects of :class:`Scenes`, each with box and mask, as a data set for detection.

    Those of fewer than `least_pixels` visible pixels (own choice) are crowd: nobody could recognise them.
    """

    spec: InstanceSpec = OBJECTS

    def __init__(self, count: int, *, least_pixels: int = LEAST_PIXELS, **settings: Any) -> None:
        super().__init__(count, **settings)
        _check(least_pixels=least_pixels)
        self.least_pixels = int(least_pixels)

    def __getitem__(self, index: int) -> InstanceSample:
        """Sample `index` from 0; IndexError past the end."""
        scene = self.scene(index, kept=True)
        numbers_N11 = np.arange(1, len(scene.boxes_N4) + 1, dtype=np.uint16)[:, None, None]
        masks_NHW = torch.from_numpy(scene.instances_HW == numbers_N11)
        pixels_N = masks_NHW.flatten(1).sum(1)
        labels_N = torch.tensor([_OBJECT[number] for number in scene.instance_classes_N.tolist()], dtype=torch.int64)
        boxes_N4, crowd_N = torch.from_numpy(scene.boxes_N4).float(), pixels_N < self.least_pixels
        objects = boxes_N4, labels_N, masks_NHW, crowd_N, pixels_N.float()
        return InstanceSample(image_of(scene), *objects, self.name(index))


def _check(context_shift: float = 0.0, split: str = "train", **integers: int) -> None:
    for name, value in integers.items():
        least = {"height": SMALLEST, "width": SMALLEST, "seed": 0, "index": 0}.get(name, 1)
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name}={value!r}; expected an integer from {least}")
    if isinstance(context_shift, bool) or not isinstance(context_shift, Real) or not 0 <= context_shift <= 1:
        expected = "a number from 0 (one appearance for all images) to 1 (each image its own)"
        raise ValueError(f"context_shift={context_shift!r}; expected {expected}")
    if split not in get_args(Split):
        raise ValueError(f"split={split!r:.80}; expected one of {', '.join(get_args(Split))}")
