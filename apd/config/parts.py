"""Parts of an experiment's configuration: inference with its check of image sizes, data and networks of detection."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from apd.data.images import DataError, image_size, long_side_size
from apd.fields import require, require_types

SMALLEST_SIDE = 32  # Pixels of the shortest side that a network takes.
# a detector's: from here on maps of stride 32, on which batch norm trains, have 2 × 2 cells
SMALLEST_DETECTION_SIDE = 64


@dataclass(frozen=True, kw_only=True)
class InferenceOptions:
    """Which views of an image are averaged, by their softmax probabilities. The default is the whole image, once.

    A score depends on all of this, so it belongs to the number: the released code's scores are those of
    ``InferenceOptions(window=(713, 713), flip=True)`` on Cityscapes and ``(473, 473)`` on the other two.

    Raises:
        ExperimentError: at construction, a field out of its range, with the value got and the one expected.
    """

    window: tuple[int, int] | None = None
    """Height and width of a sliding window, usually the training crop; None shows the whole image at once."""
    stride: float = 2 / 3
    """From one window to the next, as a part of the window's side (released code: 2/3); no part of whole images."""
    flip: bool = False  #: Average each view with that of its mirror image (released code: always).
    scales: tuple[float, ...] = (1.0,)  #: Sizes at which the image is shown, as multiples of its own.

    def __post_init__(self) -> None:
        for name in ("window", "scales"):  # JSON has lists
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        window, stride, scales = self.window, self.stride, self.scales
        two = isinstance(window, tuple) and len(window) == 2 and all(type(side) is int and side >= 1 for side in window)
        expected = "None or (height, width), two whole numbers of at least 1 pixel"
        require(window is None or two, self, "window", expected)
        expected = "a part of the window, above 0 and at most 1: windows may not leave gaps"
        require(_is_positive(stride) and stride <= 1, self, "stride", expected)
        require(isinstance(self.flip, bool), self, "flip", "True or False")
        some = isinstance(scales, tuple) and bool(scales) and all(map(_is_positive, scales))
        require(some, self, "scales", "at least one number above 0")
        # 1 and 1.0 make one experiment with one fingerprint
        object.__setattr__(self, "stride", float(stride))
        object.__setattr__(self, "scales", tuple(map(float, scales)))

    def least_side(self, height: int, width: int) -> int:
        """Pixels of the shortest side of what a network is shown of an image of that size."""
        if self.window is not None:
            return min(self.window)
        return min(scaled_side(side, scale) for side in (height, width) for scale in self.scales)


def scaled_side(side: int, scale: float) -> int:
    """Pixels of a side at a scale; at least 1."""
    return max(round(side * scale), 1)


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


WHOLE_IMAGE = InferenceOptions()  # The whole image, at its own size.


def shown_size(data: Any, height: int, width: int) -> tuple[int, int]:
    """(height, width) at which a run with these data shows its network an image of that size in evaluation."""
    size = (data.height, data.width) if data.height else (height, width)
    return long_side_size(*size, data.long_side) if data.long_side else size


def least_side(data: Any, inference: InferenceOptions, height: int, width: int) -> int:
    """Pixels of the shortest side that a network sees of an image of that size, at any scale and in any window."""
    return inference.least_side(*shown_size(data, height, width))


def require_sides(data: Any, inference: InferenceOptions, images: Iterable[tuple[object, tuple[int, int]]]) -> None:
    """Raise DataError unless every image, (what to call it, (height, width)), can be shown to a network."""
    for name, size in images:
        if (least := least_side(data, inference, *size)) >= SMALLEST_SIDE:
            continue
        if inference.window is not None:
            fix = f"use a window of at least {SMALLEST_SIDE}x{SMALLEST_SIDE} (--inference.window)"
        elif min(shown_size(data, *size)) >= SMALLEST_SIDE:
            fix = f"use larger --scales (of an experiment --inference.scales) than {min(inference.scales):g}"
        elif data.long_side:
            fix = f"use a larger --data.long-side than {data.long_side}"
        else:
            fix = "enlarge it or leave it out, or train with one size for all images (--data.height, --data.width)"
        seen = f"of which a network would be shown a side of {least} pixels; the least is {SMALLEST_SIDE}"
        raise DataError(f"{name} has {size[0]}×{size[1]} pixels (height × width), {seen}: {fix}")


def require_split_sides(data: Any, dataset: Any, inference: InferenceOptions = WHOLE_IMAGE) -> None:
    """Raise DataError unless every image of an evaluation split can be shown to a network; only headers are read."""
    if not data.height:  # of one size for all, the experiment is checked
        pairs = getattr(dataset, "dataset", dataset).pairs  # of what a LongSide wraps
        require_sides(data, inference, ((image, image_size(image)[::-1]) for image, _ in pairs))


def require_images(data: Any) -> None:
    """Raise ExperimentError unless the fields that data of both tasks have, augmentation and scenes, are in range."""
    require(0 < data.scale_min <= data.scale_max, data, "scale_min", f"0 < scale_min <= scale_max {data.scale_max}")
    require(0 <= data.flip <= 1, data, "flip", "a probability between 0 and 1")
    require(0 <= data.jitter < 1, data, "jitter", "0 <= jitter < 1")
    require(0 <= data.context_shift <= 1, data, "context_shift", "a number between 0 and 1")
    require_at_least(1, data, "train_images", "evaluation_images")
    require_at_least(0, data, "world")


def require_at_least(least: int, owner: Any, *names: str) -> None:
    """Raise ExperimentError unless each of these fields of `owner` has at least this value."""
    for name in names:
        kind = "a number" if isinstance(getattr(owner, name), float) else "an integer"
        require(getattr(owner, name) >= least, owner, name, f"{kind} >= {least}")


@dataclass(frozen=True, kw_only=True)
class InstanceDataConfig:
    """Which images with annotated objects, at which size, and how they are augmented in training."""

    kind: Literal["instances"] = "instances"  #: Says that this is data for detection.
    name: Literal["scenes", "coco"] = "scenes"
    """The built-in scenes' signs, cars and pedestrians, or a data set with annotations as COCO has them."""
    folder: str = ""  #: COCO only: its folder below APD_DATA, such as coco or tiny_coco.
    annotations: str = "annotations/instances_{split}.json"
    """COCO only: the file of a split in that folder; {split} stands for the split's name."""
    pictures: str = "{split}"  #: COCO only: the folder of a split's images in that folder.
    train_part: str = "train2017"  #: COCO only: name of the split that is trained on.
    val_part: str = "val2017"  #: COCO only: name of the split that is scored; `train_part` again tests the fit alone.
    masks: bool = True  #: COCO only: read the objects' masks; False where the file has boxes alone.
    height: int = 96
    """Rows of a scene. A detector brings an image's shorter side to the smaller of `height` and `width`, unless the
    longer would exceed the greater (COCO: 800 and 1333)."""
    width: int = 128  #: Columns of a scene; see `height`.
    evaluation_split: Literal["val", "test"] = "val"
    """Split of the final scores; intermediate ones always use val. COCO has val only: test's annotations are secret."""
    flip: float = 0.5  #: Probability of a horizontal flip (torchvision, Detectron2: 0.5).
    scale_min: float = 1.0  #: Smallest random scale, after which an image is padded to its size (torchvision: none).
    scale_max: float = 1.0  #: Largest random scale, after which an image is cropped to its size (torchvision: none).
    jitter: float = 0.0  #: Strength of brightness, contrast and saturation jitter; 0 switches it off.
    context_shift: float = 0.5  #: Scenes only: how far light, palette and texture differ between images, 0 to 1.
    train_images: int = 200  #: Scenes only: images in the training split.
    evaluation_images: int = 100  #: Scenes only: images in val and in test.
    world: int = 0  #: Scenes only: seed of the data set itself; the experiment's seed never changes the data.
    least_pixels: int = 16  #: Scenes only: objects with fewer visible pixels are no objects (own choice, 4 × 4).

    def __post_init__(self) -> None:
        require_types(self)
        require_at_least(SMALLEST_DETECTION_SIDE, self, "height", "width")
        if self.name == "coco":
            require(bool(self.folder), self, "folder", "the name of a folder below APD_DATA, such as coco")
            require(self.evaluation_split == "val", self, "evaluation_split", "val: test's annotations are not public")
            for name in ("annotations", "pictures", "train_part", "val_part"):
                require(bool(getattr(self, name)), self, name, "a text that is not empty")
        require_images(self)
        require_at_least(1, self, "least_pixels")


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """Mask R-CNN or Faster R-CNN with a feature pyramid, as :func:`apd.models.detector.build_detector` builds it.

    Defaults are torchvision's, for COCO's images; for images of 100 pixels see there.
    """

    kind: Literal["mask_rcnn", "faster_rcnn"] = "mask_rcnn"  #: Boxes and masks, or boxes alone.
    backbone: Literal["resnet18", "resnet50", "resnet101", "mobilenet_v3_large", "mobilenet_v3_small"] = "resnet18"
    """torchvision's classifier below the pyramid."""
    width: int = 256  #: Channels of the pyramid and of the mask head.
    box_width: int = 1024  #: Length of the box head's vector, the feature before the class layer.
    smallest_anchor: int = 32  #: Side in pixels of the smallest anchors; 8 suits images of 100 pixels.
    proposals: int = 2000  #: Most proposals of a training image; half as many in evaluation.
    rois: int = 512  #: Proposals of an image that the box head is trained on.
    detections: int = 100  #: Most detections in an image (COCO counts 100).
    weights: Literal["none", "imagenet", "coco"] = "none"
    """Initial weights, torchvision's: none, the backbone's of ImageNet, or a whole ResNet-50 detector's of COCO."""

    def __post_init__(self) -> None:
        require_types(self)
        require_at_least(1, self, "width", "box_width", "smallest_anchor", "proposals", "rois", "detections")
        built = self.weights != "coco" or (self.backbone, self.width, self.box_width) == ("resnet50", 256, 1024)
        sizes = "resnet50 with width 256 and box_width 1024"
        require(built, self, "weights", f"none or imagenet here: torchvision has COCO weights for {sizes}")
