"""The distillers of an experiment in detection: one frozen, validated configuration for each method.

The module of a method and the sources of its values are in :mod:`apd.distillers.roi_apd`. The
default of a field is never changed: fingerprints leave it out.
"""

from dataclasses import dataclass
from typing import Literal

from apd.distillers.configs import DKDConfig
from apd.fields import LEAVE_OUT, require, require_types, require_weights

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


@dataclass(frozen=True, kw_only=True)
class _PerspectivesConfig:
    """What both forms of APD have: the terms that need projection heads, and the teacher's head."""

    width: int | None = 256
    """Width of both projection heads, on a pyramid those of each level (own choice); None leaves them out."""
    scale: float = 10.0
    """Cosine scale of the observations (released segmentation code: 10)."""
    regularisation: float = 1.0
    """Weight of the teacher's cross-entropy through its adaptive perspective (trains its head only)."""
    alignment: float = 10.0
    """Weight of the prototypes' cosine distance (released segmentation code: 10)."""
    observation: float = 1.0
    """Weight of the observations' KL; of boxes, things and background apart."""
    teacher_head_rate: float = 1e-3
    """Adam rate of the teacher's head (as in segmentation)."""
    teacher_head_schedule: Literal["constant", "poly"] = "constant"
    """Constant (released segmentation code), or falling as the student's."""

    def _check(self, *terms: str) -> None:
        """The fields above, and that one of the terms has a weight."""
        require(self.width is None or self.width >= 1, self, "width", "None or an integer >= 1")
        for name in ("scale", "teacher_head_rate"):
            require(getattr(self, name) > 0, self, name, "a number > 0")
        require_weights(self, "regularisation", "alignment", "observation", *terms)
        trains_a_head = self.width is not None or self.regularisation == 0
        require(trains_a_head, self, "regularisation", "0 where width is None: it trains the teacher's head only")


@dataclass(frozen=True, kw_only=True)
class RoIAPDConfig(_PerspectivesConfig):
    """Adaptive perspective distillation of the student's boxes, as `apd.distillers.roi_apd.RoIAPD`."""

    method: Literal["roi_apd"] = "roi_apd"
    pixel_kd: float = 1.0
    """Weight of the KL between the class layers' logits of the boxes; 0 leaves it out."""
    temperature: float = 1.0
    """Temperature of that KL."""

    def __post_init__(self) -> None:
        require_types(self)
        require(self.temperature > 0, self, "temperature", "a number > 0")
        self._check("pixel_kd")


@dataclass(frozen=True, kw_only=True)
class DenseAPDConfig(_PerspectivesConfig):
    """Adaptive perspective distillation of the pyramid's pixels, as `apd.distillers.through_pixels.dense_apd`."""

    method: Literal["dense_apd"] = "dense_apd"
    levels: tuple[str, ...] = ("1",)
    """Levels of the pyramid: "0" (stride 4) to "3" (stride 32), and "pool"."""

    def __post_init__(self) -> None:
        _require_levels(self)
        self._check()


@dataclass(frozen=True, kw_only=True)
class RoIKDConfig:
    """Ordinary distillation of the boxes' logits, as `apd.distillers.through_pixels.roi_kd`."""

    method: Literal["roi_kd"] = "roi_kd"
    weight: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        require_types(self)
        require(self.weight > 0, self, "weight", LEAVE_OUT)
        require(self.temperature > 0, self, "temperature", "a number > 0")


@dataclass(frozen=True, kw_only=True)
class RoIDKDConfig(DKDConfig):
    """Decoupled distillation of the boxes' logits, as `roi_dkd` there; defaults are its authors' on COCO."""

    method: Literal["roi_dkd"] = "roi_dkd"


@dataclass(frozen=True, kw_only=True)
class PyramidMatchingConfig:
    """Feature matching of the pyramids, as `apd.distillers.through_pixels.pyramid_matching`."""

    method: Literal["pyramid_matching"] = "pyramid_matching"
    levels: tuple[str, ...] = LEVELS
    weight: float = 1.0
    """Own choice; no published one is known."""

    def __post_init__(self) -> None:
        _require_levels(self)
        require(self.weight > 0, self, "weight", LEAVE_OUT)


@dataclass(frozen=True, kw_only=True)
class ReviewKDConfig:
    """Knowledge review of the pyramids, as `apd.distillers.roi_apd.ReviewKD`."""

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
