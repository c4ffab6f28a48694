"""The distillers of an experiment: one frozen, validated configuration for each method.

The module of a method, its formula and the sources of its published weights are in :mod:`apd.distillers` and
:class:`apd.APDLoss`. Nothing here imports torch. The default of a field is never changed: fingerprints leave it out.
"""

from dataclasses import dataclass
from typing import Literal

from apd.fields import LEAVE_OUT, ExperimentError, require, require_types, require_weights


@dataclass(frozen=True, kw_only=True)
class PixelKDConfig:
    """Ordinary pixel distillation of the logits."""

    method: Literal["pixel_kd"] = "pixel_kd"
    weight: float = 1.0
    """Weight of the term."""
    temperature: float = 1.0
    reduction: Literal["pixel", "element"] = "pixel"
    """Mean over valid pixels, or over all pixels and classes (released code): there, 10 weighs 10 / K per pixel."""
    upsample_logits: bool = False
    """Whether logits are compared on the labels' grid (released code) instead of their own."""

    def __post_init__(self) -> None:
        require_types(self)
        require(self.weight > 0, self, "weight", LEAVE_OUT)
        require(self.temperature > 0, self, "temperature", "a number > 0")


@dataclass(frozen=True, kw_only=True)
class APDConfig:
    """Adaptive perspective distillation: every choice of `apd.APDLoss`, and the rate of the teacher's head."""

    method: Literal["apd"] = "apd"
    width: int | None = 128
    """Width of both projection heads (released code: 512); None leaves them out."""
    scale: float = 10.0
    """Cosine scale of the observations (released code: 10)."""
    scope: Literal["image", "batch"] = "image"
    """What a prototype is pooled over: an image (paper) or the batch (released code)."""
    reduction: Literal["pixel", "element"] = "pixel"
    absent: Literal["mask", "zero"] = "mask"
    regularisation: float = 1.0
    """Weight of the teacher's cross-entropy through its adaptive perspective (trains its head only)."""
    alignment: float = 10.0
    """Weight of the prototypes' cosine distance (released code: 10)."""
    observation: float = 1.0
    """Weight of the observations' KL."""
    pixel_kd: float = 1.0
    """Weight of the logits' KL; 0 leaves it out."""
    temperature: float = 1.0
    """Temperature of the logits' KL."""
    teacher_head_rate: float = 1e-3
    """Adam rate of the teacher's head (released code: 1e-5 for schedules twenty to eighty times longer)."""
    teacher_head_schedule: Literal["constant", "poly"] = "constant"
    """Constant (released code), or falling as (1 - t/T)^power, whatever the student's does."""
    labels_from: Literal["truth", "teacher"] = "truth"
    """Labels of the perspectives: the data's, or the teacher's predictions, which images without labels have too."""
    detach_prototypes: bool = False
    """Whether the observation term moves the student's pixels only and not its prototypes."""
    upsample_logits: bool = False
    """Whether pixel_kd compares logits on the labels' grid (released code) instead of their own."""

    def __post_init__(self) -> None:
        require_types(self)
        require(self.width is None or self.width >= 1, self, "width", "None or an integer >= 1")
        for name in ("scale", "temperature", "teacher_head_rate"):
            require(getattr(self, name) > 0, self, name, "a number > 0")
        terms = ("regularisation", "alignment", "observation", "pixel_kd")
        for name in terms:
            require(getattr(self, name) >= 0, self, name, "a number >= 0")
        trains_a_head = self.width is not None or self.regularisation == 0
        require(trains_a_head, self, "regularisation", "0 where width is None: it trains the teacher's head only")
        if not any(getattr(self, name) for name in terms):
            raise ExperimentError(f"APDConfig: {', '.join(terms)} are all 0: expected one above 0")


@dataclass(frozen=True, kw_only=True)
class FitNetConfig:
    """Feature matching, as `apd.FitNet`."""

    method: Literal["fitnet"] = "fitnet"
    weight: float = 10.0

    def __post_init__(self) -> None:
        require_types(self)
        require(self.weight > 0, self, "weight", LEAVE_OUT)


@dataclass(frozen=True, kw_only=True)
class AttentionTransferConfig:
    """Attention transfer, as `apd.AttentionTransfer`."""

    method: Literal["attention_transfer"] = "attention_transfer"
    weight: float = 10_000.0

    def __post_init__(self) -> None:
        require_types(self)
        require(self.weight > 0, self, "weight", LEAVE_OUT)


@dataclass(frozen=True, kw_only=True)
class SKDConfig:
    """The pair-wise term of structured knowledge distillation, as `apd.PairwiseSimilarity`."""

    method: Literal["skd"] = "skd"
    weight: float = 0.5
    pool: float = 0.5
    """Side of a pooling window as a share of the map's."""

    def __post_init__(self) -> None:
        require_types(self)
        require(self.weight > 0, self, "weight", LEAVE_OUT)
        require(0 < self.pool <= 1, self, "pool", "0 < pool <= 1")


@dataclass(frozen=True, kw_only=True)
class IFVDConfig:
    """Intra-class feature variation distillation, as `apd.IFVD`."""

    method: Literal["ifvd"] = "ifvd"
    weight: float = 200.0

    def __post_init__(self) -> None:
        require_types(self)
        require(self.weight > 0, self, "weight", LEAVE_OUT)


@dataclass(frozen=True, kw_only=True)
class CWDConfig:
    """Channel-wise distillation, as `apd.CWD`."""

    method: Literal["cwd"] = "cwd"
    logits: float = 3.0
    """Weight of the term on the classifiers' logits; 0 leaves it out."""
    features: float = 0.0
    """Weight of the term on the features; 0 leaves it out."""
    temperature: float = 4.0

    def __post_init__(self) -> None:
        require_types(self)
        require_weights(self, "logits", "features")
        require(self.temperature > 0, self, "temperature", "a number > 0")


@dataclass(frozen=True, kw_only=True)
class CIRKDConfig:
    """Cross-image relational distillation, as `apd.CIRKD`, with queues a tenth as long as the published ones.

    Runs here are tens of times shorter than the published ones, and every checkpoint holds the queues.
    """

    method: Literal["cirkd"] = "cirkd"
    batch_pixels: float = 1.0
    """Weight of the relations between pixels of the batch; 0 leaves them out."""
    pixel_memory: float = 0.1
    """Weight of the relations with pixels of earlier batches; 0 leaves them out."""
    region_memory: float = 0.1
    """Weight of the relations with regions of earlier batches; 0 leaves them out."""
    temperature: float = 0.1
    most_pixels: int = 256
    """Pixels of an image, after averaging, in the relations of the batch (own choice)."""
    pixel_slots: int = 2000
    """Pixels that a class's queue holds (own choice; published: 20 000)."""
    region_slots: int = 200
    """Regions that a class's queue holds (own choice; published: 2000)."""
    pixel_samples: int = 4096
    """Pixels of the memory that a step compares with."""
    region_samples: int = 1024
    """Regions of the memory that a step compares with."""
    new_pixels: int = 16
    """Pixels of a class in an image that a step keeps."""

    def __post_init__(self) -> None:
        require_types(self)
        require_weights(self, "batch_pixels", "pixel_memory", "region_memory")
        require(self.temperature > 0, self, "temperature", "a number > 0")
        for name in ("most_pixels", "pixel_slots", "region_slots", "pixel_samples", "region_samples", "new_pixels"):
            require(getattr(self, name) >= 1, self, name, "an integer >= 1")


@dataclass(frozen=True, kw_only=True)
class DISTConfig:
    """Correlations of class probabilities, as `apd.DIST`."""

    method: Literal["dist"] = "dist"
    inter: float = 1.0
    """Weight of the correlation over a pixel's classes; 0 leaves it out."""
    intra: float = 1.0
    """Weight of the correlation over a class's pixels; 0 leaves it out."""
    temperature: float = 1.0

    def __post_init__(self) -> None:
        require_types(self)
        require_weights(self, "inter", "intra")
        require(self.temperature > 0, self, "temperature", "a number > 0")


@dataclass(frozen=True, kw_only=True)
class MGDConfig:
    """Masked generative distillation, as `apd.MGD`."""

    method: Literal["mgd"] = "mgd"
    weight: float = 2e-5
    """Of a sum over pixels and channels, so what it means depends on the grid."""
    masked: float = 0.75
    """Share of the student's pixels that are set to zero."""

    def __post_init__(self) -> None:
        require_types(self)
        require(self.weight > 0, self, "weight", LEAVE_OUT)
        require(0 <= self.masked < 1, self, "masked", "0 <= masked < 1")


@dataclass(frozen=True, kw_only=True)
class DKDConfig:
    """Decoupled distillation of the logits, pixel by pixel, as `apd.DKD`."""

    method: Literal["dkd"] = "dkd"
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
class LSKDConfig:
    """Distillation of standardised logits, as `apd.LSKD`."""

    method: Literal["lskd"] = "lskd"
    weight: float = 9.0
    temperature: float = 2.0

    def __post_init__(self) -> None:
        require_types(self)
        require(self.weight > 0, self, "weight", LEAVE_OUT)
        require(self.temperature > 0, self, "temperature", "a number > 0")


@dataclass(frozen=True, kw_only=True)
class I2CKDConfig:
    """Triplets of class prototypes, as `apd.I2CKD`."""

    method: Literal["i2ckd"] = "i2ckd"
    weight: float = 1.0
    margin: float = 1.0
    """By how much another class has to be farther than the own one."""

    def __post_init__(self) -> None:
        require_types(self)
        require(self.weight > 0, self, "weight", LEAVE_OUT)
        require(self.margin > 0, self, "margin", "a number > 0")


@dataclass(frozen=True, kw_only=True)
class IDDConfig:
    """Distances between class prototypes, as `apd.InterClassDistance`."""

    method: Literal["idd"] = "idd"
    weight: float = 10.0

    def __post_init__(self) -> None:
        require_types(self)
        require(self.weight > 0, self, "weight", LEAVE_OUT)


DistillerConfig = (
    PixelKDConfig
    | APDConfig
    | FitNetConfig
    | AttentionTransferConfig
    | SKDConfig
    | IFVDConfig
    | CWDConfig
    | CIRKDConfig
    | DISTConfig
    | MGDConfig
    | DKDConfig
    | LSKDConfig
    | I2CKDConfig
    | IDDConfig
)
DISTILLERS: dict[str, type[DistillerConfig]] = {
    "pixel_kd": PixelKDConfig,
    "apd": APDConfig,
    "fitnet": FitNetConfig,
    "attention_transfer": AttentionTransferConfig,
    "skd": SKDConfig,
    "ifvd": IFVDConfig,
    "cwd": CWDConfig,
    "cirkd": CIRKDConfig,
    "dist": DISTConfig,
    "mgd": MGDConfig,
    "dkd": DKDConfig,
    "lskd": LSKDConfig,
    "i2ckd": I2CKDConfig,
    "idd": IDDConfig,
}
