"""Data and networks of a detection experiment, and the checks of fields that data of both tasks have."""

from dataclasses import dataclass
from typing import Any, Literal

from apd.fields import require, require_at_least, require_types

# pixels of a side: from here on maps of stride 32, on which batch norm trains, have 2 × 2 cells
SMALLEST_DETECTION_SIDE = 64


def require_images(data: Any) -> None:
    """Raise ExperimentError unless the fields that data of both tasks have, augmentation and scenes, are in range."""
    require(0 < data.scale_min <= data.scale_max, data, "scale_min", f"0 < scale_min <= scale_max {data.scale_max}")
    require(0 <= data.flip <= 1, data, "flip", "a probability between 0 and 1")
    require(0 <= data.jitter < 1, data, "jitter", "0 <= jitter < 1")
    require(0 <= data.context_shift <= 1, data, "context_shift", "a number between 0 and 1")
    require_at_least(1, data, "train_images", "evaluation_images")
    require_at_least(0, data, "world")


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
    weights: Literal["none", "imagenet"] = "none"  #: Initial weights of the backbone: none, or torchvision's.

    def __post_init__(self) -> None:
        require_types(self)
        require_at_least(1, self, "width", "box_width", "smallest_anchor", "proposals", "rois", "detections")
