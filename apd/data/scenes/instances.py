"""The built-in scenes as a data set for detection: their signs, cars and pedestrians, each with box and mask."""

import hashlib
import json
from functools import lru_cache

import numpy as np
import torch

from apd.data.instances import InstanceSample, InstanceSpec
from apd.data.scenes import GENERATOR_VERSION, Scene, Scenes, Split, draw_scene
from apd.data.specs import SCENES

THINGS = InstanceSpec("scenes", SCENES.thing_names)
"""What can be counted in the scenes."""

_KEPT_PIXELS = 128 * 128  # scenes up to this size are kept after drawing, the last _KEPT of them: at most 100 MB
_KEPT = 1024
LEAST_PIXELS = 16
"""Default for the fewest visible pixels of a thing that has to be found (own choice, 4 × 4)."""


class SceneInstances:
    """The things of :class:`apd.data.scenes.Scenes`; nothing is stored on disk, small scenes are kept in memory.

    A scene has about a dozen things, far ones of a few pixels among them, which nobody could tell apart. Those of
    fewer than `least_pixels` visible pixels are marked as crowd: neither asked for nor counted as a mistake.

    Args:
        count, height, width, context_shift, seed, split: as in :class:`apd.data.scenes.Scenes`.
        least_pixels: see above (default 16, own choice; 1 asks for all).

    Raises:
        ValueError: an argument outside what :class:`apd.data.scenes.Scenes` allows, or `least_pixels` below 1.

    Example:
        >>> data = SceneInstances(100, height=96, width=128, context_shift=0.5, seed=0)
        >>> sample = data[3]
        >>> sample.image_3HW.shape, sample.boxes_N4.shape[1], sample.masks_NHW.shape[1:]
        (torch.Size([3, 96, 128]), 4, torch.Size([96, 128]))
    """

    spec: InstanceSpec = THINGS

    def __init__(
        self,
        count: int,
        *,
        height: int,
        width: int,
        context_shift: float,
        seed: int,
        split: Split = "train",
        least_pixels: int = LEAST_PIXELS,
    ) -> None:
        if not isinstance(least_pixels, int) or isinstance(least_pixels, bool) or least_pixels < 1:
            raise ValueError(f"least_pixels={least_pixels!r}; expected an integer from 1")
        self.scenes = Scenes(count, height=height, width=width, context_shift=context_shift, seed=seed, split=split)
        self.least_pixels = least_pixels
        self._label_of = np.full(SCENES.num_classes, -1)  # a scene's class -> its number among the things
        self._label_of[[SCENES.index(name) for name in SCENES.thing_names]] = range(len(SCENES.thing_names))

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> InstanceSample:
        """Sample `index` from 0; IndexError past the end."""
        scene = self._scene(index)
        numbers_N11 = np.arange(1, len(scene.boxes_N4) + 1, dtype=np.uint16)[:, None, None]
        masks_NHW = torch.from_numpy(scene.instances_HW == numbers_N11)
        pixels_N = masks_NHW.flatten(1).sum(1)
        return InstanceSample(
            torch.tensor(scene.image_HW3).permute(2, 0, 1).contiguous(),
            torch.from_numpy(scene.boxes_N4).float(),
            torch.from_numpy(self._label_of[scene.instance_classes_N]),
            masks_NHW,
            pixels_N < self.least_pixels,
            pixels_N.float(),
            f"scenes-{self.scenes.split}-{self.scenes.seed}-{index}",
        )

    def _scene(self, index: int) -> Scene:
        scenes = self.scenes
        if not 0 <= index < len(scenes) or scenes.height * scenes.width > _KEPT_PIXELS:
            return scenes.scene(index)
        return _kept_scene(scenes.seed, index, scenes.height, scenes.width, scenes.context_shift, scenes.split)

    def fingerprint(self) -> str:
        """Hex sha256 of the generator's version and the settings: equal means the same pixels and things."""
        settings = {"generator": GENERATOR_VERSION, "least_pixels": self.least_pixels, **vars(self.scenes)}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=_KEPT)
def _kept_scene(seed: int, index: int, height: int, width: int, context_shift: float, split: Split) -> Scene:
    return draw_scene(seed, index, height=height, width=width, context_shift=context_shift, split=split)
