"""The distillers of an experiment in detection: one frozen, validated configuration for each method.

The module of a method and the sources of its values are in :mod:`apd.detection`. Nothing here imports torch. The
default of a field is never changed: fingerprints leave it out.
"""

from dataclasses import dataclass
from typing import Literal

from apd.study.field_checks import LEAVE_OUT, require, require_types, require_weights

LEVELS = ("0", "1", "2", "3", "pool")
"""A detector's pyramid, from stride 4 to stride 64."""


def _require_levels(owner: object, *, ordered: bool = False) -> None:
    """Some of :data:`LEVELS`, each once; a list, as JSON has it, becomes a tuple."""
    levels = owner.levels
    if isinstance(levels, list):
        object.__setattr__(owner, "levels", levels := tuple(levels))
    require_types(owner)
    known = tuple(level for level in LEVELS if level in levels)
    legal = bool(levels) and (levels == known if ordered else sorted(levels) == sorted(known))
    require(legal, owner, "levels", f"some of {', '.join(LEVELS)}, each once" + (", in this order" if ordered else ""))


def _require_apd(owner: object, terms: tuple[str, ...]) -> None:
    require(owner.width is None or owner.width >= 1, owner, "width", "None or an integer >= 1")
    for name in ("scale", "teacher_head_rate"):
        require(getattr(owner, name) > 0, owner, name, "a number > 0")
    trains_a_head = owner.width is not None or owner.regularisation == 0
    require_weights(owner, *terms)
    require(trains_a_head, owner, "regularisation", "0 where width is None: it trains the teacher's head only")


@dataclass(frozen=True, kw_only=True)
class RoIAPDConfig:
    """Adaptive perspective distillation of the student's boxes, as `apd.detection.RoIAPD`."""

    method: Literal["roi_apd"] = "roi_apd"
    width: int | None = 256
    """Width of both projection heads (own choice); None leaves them out."""
    scale: float = 10.0
    """Cosine scale of the observations (released segmentation code: 10)."""
    regularisation: float = 1.0
    """Weight of the teacher's cross-entropy through its adaptive perspective (trains its head only)."""
    alignment: float = 10.0
    """Weight of the prototypes' cosine distance (released segmentation code: 10)."""
    observation: float = 1.0
    """Weight of the observations' KL, things and background apart."""
    pixel_kd: float = 1.0
    """Weight of the KL between the class layers' logits of the boxes; 0 leaves it out."""
    temperature: float = 1.0
    """Temperature of that KL."""
    teacher_head_rate: float = 1e-3
    """Adam rate of the teacher's head (as in segmentation)."""
    teacher_head_schedule: Literal["constant", "poly"] = "constant"
    """Constant (released segmentation code), or falling as the student's."""

    def __post_init__(self) -> None:
        require_types(self)
        require(self.temperature > 0, self, "temperature", "a number > 0")
        _require_apd(self, ("regularisation", "alignment", "observation", "pixel_kd"))


@dataclass(frozen=True, kw_only=True)
class DenseAPDConfig:
    """Adaptive perspective distillation of the pyramid's pixels, as `apd.detection.dense_apd`."""

    method: Literal["dense_apd"] = "dense_apd"
    levels: tuple[str, ...] = ("1",)
    """Levels of the pyramid: "0" (stride 4) to "3" (stride 32), and "pool"."""
    width: int | None = 256
    """Width of both projection heads of a level (own choice); None leaves them out."""
    scale: float = 10.0
    """Cosine scale of the observations (released segmentation code: 10)."""
    regularisation: float = 1.0
    """Weight of the teacher's cross-entropy through its adaptive perspective (trains its head only)."""
    alignment: float = 10.0
    """Weight of the prototypes' cosine distance (released segmentation code: 10)."""
    observation: float = 1.0
    """Weight of the observations' KL."""
    teacher_head_rate: float = 1e-3
    """Adam rate of the teacher's heads (as in segmentation)."""
    teacher_head_schedule: Literal["constant", "poly"] = "constant"
    """Constant (released segmentation code), or falling as the student's."""

    def __post_init__(self) -> None:
        _require_levels(self)
        _require_apd(self, ("regularisation", "alignment", "observation"))


@dataclass(frozen=True, kw_only=True)
class RoIKDConfig:
    """Ordinary distillation of the boxes' logits, as `apd.detection.roi_kd`."""

    method: Literal["roi_kd"] = "roi_kd"
    weight: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        require_types(self)
        require(self.weight > 0, self, "weight", LEAVE_OUT)
        require(self.temperature > 0, self, "temperature", "a number > 0")


@dataclass(frozen=True, kw_only=True)
class RoIDKDConfig:
    """Decoupled distillation of the boxes' logits, as `apd.detection.roi_dkd`; defaults are its authors' on COCO."""

    method: Literal["roi_dkd"] = "roi_dkd"
    target: float = 1.0
    """Weight of the KL between the probabilities of the labelled class; 0 leaves it out."""
    non_target: float = 0.25
    """Weight of the KL among the other classes; 0 leaves it out."""
    temperature: float = 1.0

    def __post_init__(self) -> None:
        require_types(self)
        require_weights(self, "target", "non_target")
        require(self.temperature > 0, self, "temperature", "a number > 0")


@dataclass(frozen=True, kw_only=True)
class PyramidMatchingConfig:
    """Feature matching of the pyramids, as `apd.detection.pyramid_matching`."""

    method: Literal["pyramid_matching"] = "pyramid_matching"
    levels: tuple[str, ...] = LEVELS
    weight: float = 1.0
    """Own choice; no published one is known."""

    def __post_init__(self) -> None:
        _require_levels(self)
        require(self.weight > 0, self, "weight", LEAVE_OUT)


@dataclass(frozen=True, kw_only=True)
class ReviewKDConfig:
    """Knowledge review of the pyramids, as `apd.detection.ReviewKD`."""

    method: Literal["review_kd"] = "review_kd"
    levels: tuple[str, ...] = LEVELS
    """From fine to coarse."""
    width: int = 256
    """Channels of what is handed down from level to level (published: 256)."""
    weight: float = 1.0
    """Published for ResNet-50; see there for other students."""

    def __post_init__(self) -> None:
        _require_levels(self, ordered=True)
        require(self.width >= 1, self, "width", "an integer >= 1")
        require(self.weight > 0, self, "weight", LEAVE_OUT)


DetectionDistillerConfig = (
    RoIAPDConfig | DenseAPDConfig | RoIKDConfig | RoIDKDConfig | PyramidMatchingConfig | ReviewKDConfig
)
DETECTION_DISTILLERS: dict[str, type[DetectionDistillerConfig]] = {
    "roi_apd": RoIAPDConfig,
    "dense_apd": DenseAPDConfig,
    "roi_kd": RoIKDConfig,
    "roi_dkd": RoIDKDConfig,
    "pyramid_matching": PyramidMatchingConfig,
    "review_kd": ReviewKDConfig,
}
