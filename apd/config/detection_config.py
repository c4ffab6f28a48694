"""Data and networks of detection, checks of fields that data of both tasks have, and what does not go together."""

from dataclasses import dataclass
from typing import Any, Literal

from apd.config.inference_options import WHOLE_IMAGE
from apd.distillers.base import DISTILLERS
from apd.fields import LONGEST_SIDE, MOST, WIDEST, ExperimentError, require, require_range, require_types

# pixels of a side: from here on maps of stride 32, on which batch norm trains, have 2 × 2 cells
SMALLEST_DETECTION_SIDE = 64


def require_images(data: Any) -> None:
    """Raise ExperimentError unless the fields that data of both tasks have, augmentation and scenes, are in range."""
    require(0 < data.scale_min <= data.scale_max, data, "scale_min", f"0 < scale_min <= scale_max {data.scale_max}")
    require(0 <= data.flip <= 1, data, "flip", "a probability between 0 and 1")
    require(0 <= data.jitter < 1, data, "jitter", "0 <= jitter < 1")
    require(0 <= data.context_shift <= 1, data, "context_shift", "a number between 0 and 1")
    require_range(0, 16, data, "scale_max")
    require_range(1, MOST, data, "train_images", "evaluation_images")
    require_range(0, 2**63, data, "world")


@dataclass(frozen=True, kw_only=True)
class InstanceDataConfig:
    """Which images with annotated objects, at which size, and how they are augmented in training."""

    kind: Literal["instances"] = "instances"  #: Says that this is data for detection.
    name: Literal["scenes", "coco"] = "scenes"
    """The built-in scenes' signs, cars and pedestrians, or a data set with annotations as COCO has them."""
    folder: str = ""  #: COCO only: its folder below APD_DATA, such as coco or tiny_coco.
    annotations: str = "annotations/instances_{split}.json"  #: COCO only: a split's file; {split} is its name.
    pictures: str = "{split}"  #: COCO only: the folder of a split's images in that folder.
    train_part: str = "train2017"  #: COCO only: name of the split that is trained on.
    val_part: str = "val2017"  #: COCO only: the split that is scored; `train_part` again measures the training fit.
    masks: bool = True  #: COCO only: read the objects' masks; False where the file has boxes alone.
    height: int = 96
    """Rows of a scene. An image's shorter side becomes the smaller of both, unless the longer exceeds the greater."""
    width: int = 128  #: Columns of a scene; see `height`.
    evaluation_split: Literal["val", "test"] = "val"  #: Split of the final scores; COCO has val only.
    flip: float = 0.5  #: Probability of a horizontal flip (torchvision, Detectron2: 0.5).
    scale_min: float = 1.0  #: Smallest random scale, after which an image is padded to its size (torchvision: none).
    scale_max: float = 1.0  #: Largest random scale, after which an image is cropped to its size (torchvision: none).
    jitter: float = 0.0  #: Strength of brightness, contrast and saturation jitter; 0 switches it off.
    context_shift: float = 0.5  #: Scenes only: how far light, palette and texture differ between images, 0 to 1.
    train_images: int = 200  #: Scenes only: images in the training split.
    evaluation_images: int = 100  #: Scenes only: images in val and in test.
    world: int = 0  #: Scenes only: seed of the data set itself; the experiment's seed never changes the data.
    least_pixels: int = 16  #: Scenes only: objects with fewer visible pixels are crowd (own choice, 4 × 4).

    def __post_init__(self) -> None:
        require_types(self)
        require_range(SMALLEST_DETECTION_SIDE, LONGEST_SIDE, self, "height", "width")
        if self.name == "coco":
            require(bool(self.folder), self, "folder", "the name of a folder below APD_DATA, such as coco")
            require(self.evaluation_split == "val", self, "evaluation_split", "val: test's annotations are not public")
            for name in ("annotations", "pictures", "train_part", "val_part"):
                require(bool(getattr(self, name)), self, name, "a text that is not empty")
        require_images(self)
        require_range(1, MOST, self, "least_pixels")


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
        require_range(1, WIDEST, self, "width", "box_width", "smallest_anchor")
        require_range(1, MOST, self, "proposals", "rois", "detections")


_NOT_IN_DETECTION = {
    "accumulation": "1 in detection: torchvision's losses are means over the boxes of a part, not of the batch",
    **dict.fromkeys(("compile", "cuda_graph"), "False in detection: its number of boxes varies"),
    **dict.fromkeys(("class_weights", "label_smoothing", "added_loss"), "the default: its losses are torchvision's"),
    "device_augmentation": "False in detection: the loader cuts and drops objects with their boxes and masks",
    "gradient_checkpointing": "False in detection: it is there for segmentation only",
    "auxiliary_weight": "0.4, the default: a detector has no auxiliary head",
}
"""Fields of a training that detection can use at their default only, and what is expected."""


def require_fit(experiment: Any) -> None:
    """Raise ExperimentError where an experiment's parts are of two tasks, or its task is asked for what it lacks."""
    data, teacher, detection = experiment.data, experiment.teacher, experiment.task == "detection"
    kind = type(data).__name__
    segmentation = "a NetworkConfig; detection wants an InstanceDataConfig as data"
    wanted = "a DetectorConfig; segmentation wants a DataConfig as data" if detection else segmentation
    for name, owner in {"network": experiment, "teacher.network": teacher}.items():
        if owner is not None and isinstance(owner.network, DetectorConfig) != detection:
            found = f"Experiment.{name} is a {type(owner.network).__name__} beside data = {kind}"
            raise ExperimentError(f"{found}: expected {wanted}")
    known = sorted(name for name, of in DISTILLERS.items() if of.task == experiment.task)
    for method in [d.method for d in experiment.distillers if d.method not in known]:
        wrong = f"{method} is none for {experiment.task}, the task of data = {kind}"
        raise ExperimentError(f"Experiment.distillers: {wrong}: expected some of {', '.join(known)}")
    for owner in filter(None, (experiment, teacher)):
        training, custom = owner.training, getattr(owner.network, "builder", "")
        if getattr(owner.network, "auxiliary", ()):
            require(training.auxiliary_weight > 0, training, "auxiliary_weight", "above 0 beside network.auxiliary")
        elif custom:
            expected = "0, or 0.4, the default: a builder's network has no auxiliary head without network.auxiliary"
            require(training.auxiliary_weight in (0, 0.4), training, "auxiliary_weight", expected)
        expected = "last: val_part is train_part, so that no image is left to choose by"
        own = data.name != "coco" or not detection or data.train_part != data.val_part
        require(own or training.keep == "last", training, "keep", expected)
        if detection:
            for name, expected in _NOT_IN_DETECTION.items():
                require(getattr(training, name) == getattr(type(training), name), training, name, expected)
        elif data.rotation or data.blur:
            expected = f"False beside rotation {data.rotation} and blur {data.blur}, which only the loader does"
            require(not training.device_augmentation, training, "device_augmentation", expected)
    if detection:
        expected = "fp32, or auto, which is fp32 here: coordinates of boxes are too coarse in bf16"
        require(experiment.precision != "bf16", experiment, "precision", expected)
        expected = "the default: a detector sees the whole image, once"
        require(experiment.inference == WHOLE_IMAGE, experiment, "inference", expected)
        kinds = [network.kind for network in (experiment.network, teacher and teacher.network) if network]
        methods = [distiller.method for distiller in experiment.distillers]
        with_masks = [name for name in (*kinds, *methods) if name in ("mask_rcnn", "dense_apd")]
        if with_masks and data.name == "coco":
            require(data.masks, data, "masks", f"True: {with_masks[0]} learns from masks")
    for distiller in experiment.distillers:
        if getattr(distiller, "width", 0) is None:  # no heads bring features to one width
            name = {"apd": "head_width", "roi_apd": "box_width"}.get(distiller.method, "width")
            widths = [getattr(network, name) for network in (experiment.network, teacher.network)]
            got = f"network.{name} = {widths[0]} and teacher.network.{name} = {widths[1]}"
            right = widths[0] == widths[1] or any(getattr(o.network, "builder", "") for o in (experiment, teacher))
            require(right, distiller, "width", f"features of equal width then, got {got}")
