"""What distillation methods share: the registry of their configurations, their weights, and the checks of a call."""

from dataclasses import dataclass, fields
from inspect import Parameter, Signature, signature
from typing import Any, ClassVar, NamedTuple, dataclass_transform

import torch
from torch import Tensor, nn

from apd.fields import MOST, WIDEST, ExperimentError, require, require_types
from apd.perspective import full_precision, match_grids, resize_labels, valid_pixels
from apd.validation import check_call, check_count, check_ignore_index, without_infinities

IGNORED = -1
"""What labels hold, inside this part of the package, at pixels that belong to no class."""

DISTILLERS: dict[str, type["DistillerConfig"]] = {}
"""The configuration of every method by its name, segmentation's and detection's: :class:`DistillerConfig` fills it."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
@dataclass(frozen=True, kw_only=True)
class DistillerConfig:
    """The settings of a distillation method: a frozen, validated part of an experiment, known by its `method`.

    Integers are at least 1 and numbers positive; weights of several `terms` may be 0, but not all. The default of a
    field is never changed: fingerprints leave it out. A subclass becomes a dataclass without a decorator, and is for
    detectors, whose ignored label is their own, with `task="detection"`. A wrong field is an `ExperimentError`; a
    second subclass of one `method`, a `TypeError`.
    """

    task: ClassVar[str]
    module: ClassVar[type["Distiller"] | None] = None  # the Distiller that was defined with this configuration
    terms: ClassVar[tuple[str, ...]] = ()  # fields that weigh the terms of their names; without any, `weight` does
    own_bounds: ClassVar[tuple[str, ...]] = ()  # fields whose bounds the subclass checks
    in_order: ClassVar[bool] = False  # whether `levels` of a pyramid go from fine to coarse

    def __init_subclass__(cls, *, task: str = "segmentation") -> None:
        cls.task = task
        if method := cls.__dict__.get("method"):
            if (other := DISTILLERS.get(method)) is not None:
                where = f"{other.__module__}.{other.__name__}"
                fix = f"choose another, or in a notebook first: del apd.distillers.base.DISTILLERS[{method!r}]"
                raise TypeError(f"{cls.__name__}.method = {method!r}: {where} is registered under this name; {fix}")
            DISTILLERS[method] = cls
        dataclass(frozen=True, kw_only=True)(cls)

    def __post_init__(self) -> None:
        require_types(self)
        for name in self.terms:
            require(getattr(self, name) >= 0, self, name, "a number >= 0")
        if self.terms and not any(self.weights.values()):
            raise ExperimentError(f"{type(self).__name__}: {', '.join(self.terms)} are all 0: expected one above 0")
        if (levels := self.settings.get("levels")) is not None:
            known = tuple(level for level in LEVELS if level in levels)
            legal = bool(known) and (known == levels if self.in_order else sorted(known) == sorted(levels))
            require(legal, self, "levels", f"some of {', '.join(LEVELS)}, each once{', in this order' * self.in_order}")
        for f in fields(self):
            value = getattr(self, f.name)
            if type(value) is int:
                require(value >= 1, self, f.name, f"{'None or ' if 'None' in str(f.type) else ''}an integer >= 1")
                most = WIDEST if f.name == "width" else MOST  # refused before so much memory is asked for
                require(value <= most, self, f.name, f"at most {most}")
            elif type(value) is float and f.name not in self.terms + self.own_bounds:
                hint = "; to leave the term out, leave the distiller out" if f.name == "weight" else ""
                require(value > 0, self, f.name, f"a number > 0{hint}")

    @property
    def weights(self) -> dict[str, float]:
        """Of the terms, by name."""
        return {name: getattr(self, name) for name in self.terms} or {self.method: self.weight}

    @property
    def settings(self) -> dict[str, Any]:
        """All fields but the method."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "method"}

    def build(self, student: nn.Module, teacher: nn.Module, *, ignore_index: int) -> nn.Module:
        """The loss module for two networks; :func:`build_distiller` calls it with a seeded generator."""
        sizes = (student.feature_channels, teacher.feature_channels, student.num_classes)
        own = sizes if issubclass(self.module, FeatureDistiller) else ()
        return self.module(*own, **self.settings, ignore_index=ignore_index)


def build_distiller(
    config: DistillerConfig, *, student: nn.Module, teacher: nn.Module, seed: int, ignore_index: int = 255
) -> nn.Module:
    """The loss module of one distiller, on the student's device, its heads initialised from ``seed`` alone.

    The networks are two :class:`apd.models.Segmenter`, or two detectors of torchvision, whose labels are their own.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return config.build(student, teacher, ignore_index=ignore_index).to(next(student.parameters()).device)


class Distiller(nn.Module):
    """A distillation method behind the call of :class:`apd.APDLoss`: named terms, their weights and their sum.

    A subclass is defined with the class of its settings, ``class Mine(Distiller, config=MineConfig)``, whose fields are
    keywords of its constructor and become attributes, beside ``ignore_index`` (default 255). It computes :meth:`terms`,
    from logits unless it is a :class:`FeatureDistiller`. A wrong setting is an ``ExperimentError`` (a ``ValueError``)
    that names it; errors at the call are those of :class:`apd.APDLoss`.
    """

    Config: ClassVar[type[DistillerConfig]]
    kind: ClassVar[str] = "logits"  # of the maps that are compared

    def __init_subclass__(cls, *, config: type[DistillerConfig] | None = None) -> None:
        super().__init_subclass__()
        if config is not None:
            cls.Config, config.module = config, cls
            own = [p for p in signature(cls.__init__).parameters.values() if p.kind != Parameter.VAR_KEYWORD][1:]
            settings = [Parameter(f.name, Parameter.KEYWORD_ONLY, default=f.default) for f in fields(config)]
            settings.append(Parameter("ignore_index", Parameter.KEYWORD_ONLY, default=255))
            merged = {p.name: p for p in (*settings, *own) if p.name != "method"}.values()
            cls.__signature__ = Signature(sorted(merged, key=lambda p: p.kind))  # what help() shows

    def __init__(self, *, ignore_index: int = 255, **settings: Any) -> None:
        super().__init__()
        config = self.Config(**settings)
        for name, value in config.settings.items():
            setattr(self, name, value)
        self.weights = config.weights
        self.ignore_index = check_ignore_index(ignore_index)

    def terms(self, student: Tensor, teacher: Tensor, labels_Bhw: Tensor) -> dict[str, Tensor]:
        """The unweighted terms by name; those of weight 0 may be left out.

        Student and teacher come on one grid, finite and in full precision, the teacher detached; labels as int64 on
        that grid, :data:`IGNORED` at pixels that belong to no class.
        """
        raise NotImplementedError

    @full_precision
    def forward(
        self,
        *,
        labels: Tensor,
        student_features: Tensor | None = None,
        teacher_features: Tensor | None = None,
        student_logits: Tensor | None = None,
        teacher_logits: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The terms by name and ``"loss"``, their weighted sum; maps that are not compared may be left out."""
        maps = {"features": (student_features, teacher_features), "logits": (student_logits, teacher_logits)}
        return self._with_loss(self._terms_of(maps, labels))

    def _terms_of(self, maps: dict[str, tuple[Tensor | None, Tensor | None]], labels_BHW: Tensor) -> dict[str, Tensor]:
        """Of the student's and the teacher's maps by kind, as they were given."""
        return self.terms(*self._on_one_grid(self.kind, *maps[self.kind], labels_BHW))

    def student_parameters(self) -> list[nn.Parameter]:
        """Parameters of the student's adapter, for the student's optimiser (empty when there is none)."""
        return list(self.parameters())

    def teacher_parameters(self) -> list[nn.Parameter]:
        """Empty: nothing is trained on the teacher's side."""
        return []

    def extra_repr(self) -> str:
        """What ``print(module)`` says of the settings."""
        named = {f.name: getattr(self, f.name) for f in fields(self.Config) if f.name not in ("method", "weight")}
        values = {n: f"{v:g}" if isinstance(v, float) else repr(v) for n, v in (self.weights | named).items()}
        return ", ".join(f"{name}={value}" for name, value in values.items())

    def _with_loss(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        terms = {name: term for name, term in terms.items() if self.weights[name]}
        return terms | {"loss": sum(self.weights[name] * term for name, term in terms.items())}

    def _on_one_grid(
        self, kind: str, student: Tensor, teacher: Tensor, labels_BHW: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Checked maps of one ``kind`` and labels on the coarser grid."""
        maps = {f"student_{kind}": student, f"teacher_{kind}": teacher}
        student, teacher = check_call(self, maps, labels_BHW, self.ignore_index, trained=[f"student_{kind}"]).values()
        if kind == "logits":
            teacher = without_infinities(teacher)
        student, teacher = match_grids(student, teacher.detach())
        num_classes = getattr(self, "num_classes", student.shape[1])
        valid_BHW = valid_pixels(labels_BHW, num_classes, ignore_index=self.ignore_index)
        labels_BHW = torch.where(valid_BHW, labels_BHW.long(), IGNORED)
        return student, teacher, resize_labels(labels_BHW, student.shape[2:])


class FeatureDistiller(Distiller):
    """A :class:`Distiller` that compares features, given their channels, and checks labels by ``num_classes``."""

    kind = "features"
    adapted: ClassVar[bool] = False  # whether the student's go through a 1×1 convolution without bias, `adapter`

    def __init__(self, student_channels: int, teacher_channels: int, num_classes: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.student_channels = check_count("student_channels", student_channels)
        self.teacher_channels = check_count("teacher_channels", teacher_channels)
        self.num_classes = check_count("num_classes", num_classes)
        check_ignore_index(self.ignore_index, num_classes)
        if self.adapted:
            self.adapter = nn.Conv2d(student_channels, teacher_channels, kernel_size=1, bias=False)


def convolved(convolution: nn.Conv2d, features_BChw: Tensor) -> Tensor:
    """The convolution in the precision of its own parameters."""
    return convolution(features_BChw.to(convolution.weight.dtype))


# What methods for detectors are called with; `apd.models.detector_hooks` makes it in a training step.

LEVELS = ("0", "1", "2", "3", "pool")
"""A detector's pyramid, by torchvision's names: maps of strides 4, 8, 16, 32 and 64."""

NO_BOX = IGNORED
"""Label of what fills up the row of an image with fewer boxes than others, and of pixels beyond an image's edge."""


class DetectorView(NamedTuple):
    """One detector's pyramid by level, and of boxes, 0 where there is none, the vectors before the class layer and its
    logits, background first. ``image_sizes`` are the (height, width) of each image inside the padded batch."""

    pyramid: dict[str, Tensor]
    vectors_BC1N: Tensor
    logits_BK1N: Tensor
    image_sizes: list[tuple[int, int]]


class DetectorPair(NamedTuple):
    """The student's and the teacher's view of the student's boxes; the teacher's carries no gradient.

    ``labels_B1N`` are int64, 0 for background and :data:`NO_BOX` for none. The class map, in the student's padded
    batch, has :data:`NO_BOX` for ignored pixels, and is None where the targets have none; ``inside_BHW`` is 0 inside
    the images.
    """

    student: DetectorView
    teacher: DetectorView
    labels_B1N: Tensor
    class_map_BHW: Tensor | None
    inside_BHW: Tensor
