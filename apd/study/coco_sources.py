"""Where each value of COCO's recipes comes from, field by field.

What the paper did on COCO was never released: of its abstract it is known that there were gains. The recipes follow the
released configurations of ReviewKD, as far as torchvision's detectors go: it shares a first author with APD and is the
likely base of the paper's runs. Those build on Detectron2's defaults.
"""

from collections.abc import Iterator
from functools import partial
from types import MappingProxyType

from apd.study.coco_recipes import CocoSize, DetectionMethod, detection_recipe, with_masks
from apd.study.published_sources import Source, lines_with_sources

REVIEW_KD = Source("ReviewKD's code")
TORCHVISION = Source("torchvision", "its detectors' default, as Detectron2's")
DETECTRON2 = Source("Detectron2", "its default, which ReviewKD's configurations keep")
_OURS = "how the paper applies APD to detection was never released"
_AS_THE_STUDENT = Source("own choice", "as the student; ReviewKD's code takes trained ones of Detectron2")

_NETWORK = {
    "kind": REVIEW_KD,
    "width": DETECTRON2,
    "box_width": DETECTRON2,
    "smallest_anchor": REVIEW_KD,
    "proposals": Source("torchvision", "ReviewKD's code: 2000 of each level, 1000 of them kept"),
    "rois": DETECTRON2,
    "detections": Source("Detectron2", "COCO counts 100"),
    "weights": Source(
        "torchvision", "ImageNet weights, other ones than ReviewKD's; early stages and norms stay as they are"
    ),
}
_TRAINING = {
    "iterations": REVIEW_KD,
    "batch_size": REVIEW_KD,
    "optimiser": DETECTRON2,
    "learning_rate": REVIEW_KD,
    "head_multiplier": Source("Detectron2", "one rate for all parameters"),
    "momentum": DETECTRON2,
    "weight_decay": Source(
        "Detectron2", "there not of norms; here they are frozen below the pyramid, and there are none above"
    ),
    "schedule": DETECTRON2,
    "milestones": REVIEW_KD,
    "warmup": Source("Detectron2", "there from a thousandth of the rate"),
    "evaluations": Source("own choice", "nothing is chosen by them"),
    "clip_norm": Source("Detectron2", "none"),
}


def _under(prefix: str, sources: dict[str, Source]) -> dict[str, Source]:
    return {f"{prefix}.{name}": source for name, source in sources.items()}


def _ours(*names: str) -> dict[str, Source]:
    return dict.fromkeys(names, Source("own choice", _OURS))


COMMON = MappingProxyType(
    {
        "seed": Source("own choice"),
        "data.kind": Source("own choice", "tells this data from that of segmentation"),
        "data.name": REVIEW_KD,
        "data.folder": Source("own choice", "COCO 2017's own tree, below APD_DATA"),
        "data.train_part": REVIEW_KD,
        "data.val_part": REVIEW_KD,
        "data.masks": REVIEW_KD,
        "data.height": Source("torchvision", "ReviewKD's code: 640 to 800 at random in training, 800 in the test"),
        "data.width": TORCHVISION,
        "data.flip": TORCHVISION,
        "data.scale_min": Source("torchvision", "none"),
        "data.scale_max": Source("torchvision", "none"),
        "data.jitter": Source("torchvision", "none"),
        **_under("network", _NETWORK),
        **_under("training", _TRAINING),
        "precision": Source("ReviewKD's code", "no mixed precision"),
        **_under("teacher.network", _NETWORK),
        "teacher.network.backbone": REVIEW_KD,
        **_under("teacher.training", dict.fromkeys(_TRAINING, _AS_THE_STUDENT)),
        "teacher.weights_file": Source("own choice", "yours to give; empty: the teacher is trained first"),
        "teacher.expected_ap": Source("own choice", "yours to give: the paper's is not known"),
        **_under(
            "distillers.roi_kd", dict.fromkeys(("weight", "temperature"), Source("own choice", "no published one"))
        ),
        "distillers.review_kd.levels": REVIEW_KD,
        "distillers.review_kd.width": REVIEW_KD,
        "distillers.review_kd.weight": Source(
            "ReviewKD's code", "of this pair; MobileNetV2's where ours is MobileNetV3"
        ),
        **_under(
            "distillers.roi_apd",
            _ours(
                "width",
                "scale",
                "regularisation",
                "alignment",
                "observation",
                "pixel_kd",
                "temperature",
                "teacher_head_rate",
                "teacher_head_schedule",
            ),
        ),
        **_under(
            "distillers.dense_apd",
            _ours(
                "levels",
                "width",
                "scale",
                "regularisation",
                "alignment",
                "observation",
                "teacher_head_rate",
                "teacher_head_schedule",
            ),
        ),
    }
)
"""Of all of COCO's recipes. A distiller's fields stand under its method's name."""


def coco_source_of(size: CocoSize, method: DetectionMethod, field: str) -> Source | None:
    """Where the value of a field in a recipe comes from; None for the default of its class.

    Example:
        >>> print(coco_source_of("coco", "review_kd", "training.milestones"))
        ReviewKD's code
        >>> print(coco_source_of("coco_mobilenet", "roi_apd", "network.backbone"))
        own choice: torchvision's nearest to the MobileNetV2 of ReviewKD's code
    """
    if field == "network.backbone":
        if "mobilenet" in size:
            return Source("own choice", "torchvision's nearest to the MobileNetV2 of ReviewKD's code")
        return REVIEW_KD
    if field == "network.weights" and "mobilenet" in size:
        return Source("torchvision", "ImageNet weights, other ones than ReviewKD's, which lets all stages learn")
    if field == "data.masks" and not with_masks(size):
        return Source("own choice", "Faster R-CNN learns from boxes alone")
    return COMMON.get(field)


def coco_sourced_lines(name: str) -> Iterator[str]:
    """The recipe of a name such as "coco-roi_apd": every field with its value and the source of it.

    Example:
        >>> [line for line in coco_sourced_lines("coco-roi_apd") if line.startswith("training.m")][1]
        "training.milestones                  (120000, 160000) ReviewKD's code"
    """
    size, method = name.rsplit("-", 1)
    yield from lines_with_sources(detection_recipe(size, method), partial(coco_source_of, size, method))
