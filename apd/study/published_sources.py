"""Where each value of the paper's recipes comes from, field by field.

Three sources are told apart. *Released code*: read in the authors' repository, of which nothing is copied. *Paper*: its
abstract, since its body could not be obtained. *Own choice*: a decision of this project, with its reason. A field that
is not named here has the default of its class.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from apd.config.experiment import Experiment
from apd.distillers.configs import DISTILLERS
from apd.distillers.detection_configs import DETECTION_DISTILLERS
from apd.study.published_recipes import CLASSES_SEEN, CORRECTED, PaperMethod, PaperSize, paper_recipe, published_of

Where = Literal["released code", "paper", "own choice", "ReviewKD's code", "torchvision", "Detectron2"]
"""The last three are of detection only, see :mod:`apd.study.coco_sources`."""


class Source(NamedTuple):
    """Where a value was read, and what else there is to know about it."""

    where: Where
    note: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.note}" if self.note else self.where


RELEASED = Source("released code")
_NETWORK = {
    "backbone": RELEASED,
    "head": RELEASED,
    "head_width": RELEASED,
    "output_stride": RELEASED,
    "weights": RELEASED,
    "dropout": RELEASED,
    "dilation": Source("released code", "another rule where there are 60 classes"),
}
_TRAINING = {
    "iterations": Source("released code", "its epochs, with the incomplete batches that its loader leaves out"),
    "batch_size": Source("released code", "on four GPUs together, batch norm over all of them"),
    "optimiser": RELEASED,
    "learning_rate": RELEASED,
    "head_multiplier": RELEASED,
    "momentum": RELEASED,
    "weight_decay": RELEASED,
    "schedule": RELEASED,
    "power": RELEASED,
    "milestones": Source("released code", "none: its schedule has no steps"),
    "warmup": Source("released code", "none"),
    "auxiliary_weight": RELEASED,
    "evaluations": Source("own choice", "released code: after every epoch, on centre crops; nothing is chosen by it"),
}
_AS_THE_STUDENT = Source("own choice", "as the student; how the released teachers were trained is not known")


def _under(prefix: str, sources: dict[str, Source]) -> dict[str, Source]:
    return {f"{prefix}.{name}": source for name, source in sources.items()}


COMMON = MappingProxyType(
    {
        "seed": Source("own choice", "released code: 123 or none, of other random numbers than these"),
        "data.name": RELEASED,
        "data.height": Source("released code", "0: every image keeps its own size in training"),
        "data.width": Source("released code", "0: as height"),
        "data.long_side": RELEASED,
        "data.evaluation_split": RELEASED,
        "data.crop_height": RELEASED,
        "data.crop_width": RELEASED,
        "data.scale_min": RELEASED,
        "data.scale_max": RELEASED,
        "data.flip": RELEASED,
        "data.jitter": Source("released code", "none"),
        "data.rotation": RELEASED,
        "data.blur": Source("released code", "the probability is that of semseg, on which it builds"),
        **_under("network", _NETWORK),
        "network.weights_file": Source("own choice", "yours to give: the released code's file is published nowhere"),
        **_under("training", _TRAINING),
        "precision": Source("released code", "no mixed precision"),
        **_under("teacher.network", _NETWORK),
        "teacher.network.weights": Source("own choice", "timm's file; the released code's is published nowhere"),
        **_under("teacher.training", dict.fromkeys(_TRAINING, _AS_THE_STUDENT)),
        "teacher.weights_file": Source("own choice", "yours to give; empty: the teacher is trained first"),
        "inference.window": RELEASED,
        "inference.stride": RELEASED,
        "inference.flip": Source("released code", "always; `apd evaluate` tells how it is without"),
        "inference.scales": RELEASED,
        "distillers.pixel_kd.weight": RELEASED,
        "distillers.pixel_kd.temperature": RELEASED,
        "distillers.pixel_kd.reduction": RELEASED,
        "distillers.pixel_kd.upsample_logits": RELEASED,
        "distillers.apd.width": RELEASED,
        "distillers.apd.scale": RELEASED,
        "distillers.apd.scope": Source("released code", "the images of a process; the paper: an image"),
        "distillers.apd.reduction": RELEASED,
        "distillers.apd.absent": RELEASED,
        "distillers.apd.regularisation": RELEASED,
        "distillers.apd.alignment": RELEASED,
        "distillers.apd.observation": RELEASED,
        "distillers.apd.pixel_kd": RELEASED,
        "distillers.apd.temperature": RELEASED,
        "distillers.apd.teacher_head_rate": RELEASED,
        "distillers.apd.teacher_head_schedule": Source("released code", "its schedule passes this rate over"),
        "distillers.apd.labels_from": RELEASED,
        "distillers.apd.detach_prototypes": RELEASED,
        "distillers.apd.upsample_logits": RELEASED,
    }
)
"""Of the experiments as released. A distiller's fields stand under its method's name."""

_PER_PIXEL = Source("own choice", "sums over classes, means over valid pixels")
_OVER_CLASSES = Source("own choice", "the released 10 over the number of classes")
_OWN_GRID = Source("own choice", "the same information at 1/64 of the memory")
IN_THE_CORRECTED = MappingProxyType(
    {
        "distillers.pixel_kd.weight": _OVER_CLASSES,
        "distillers.pixel_kd.reduction": _PER_PIXEL,
        "distillers.pixel_kd.upsample_logits": _OWN_GRID,
        "distillers.apd.scope": Source("paper", "abstract: a perspective for each sample"),
        "distillers.apd.reduction": _PER_PIXEL,
        "distillers.apd.absent": Source("own choice", "left out, as the observations leave them out"),
        "distillers.apd.observation": Source("own choice", f"the released 10 over {CLASSES_SEEN} classes in sight"),
        "distillers.apd.pixel_kd": _OVER_CLASSES,
        "distillers.apd.upsample_logits": _OWN_GRID,
    }
)
"""Where the corrected experiments part from :data:`COMMON`."""


def source_of(size: PaperSize, method: PaperMethod, field: str) -> Source | None:
    """Where the value of a field in a recipe comes from; None for the default of its class.

    Example:
        >>> print(source_of("ade20k_corrected", "apd", "distillers.apd.scope"))
        paper: abstract: a perspective for each sample
        >>> source_of("ade20k", "apd", "training.ema_decay") is None
        True
    """
    if field == "teacher.expected_miou":
        near = published_of(size).near_teacher
        told = f"semseg's README has {near} per cent" if near else "and no near figure is"
        return Source("own choice", f"yours to give: the paper's is not known, {told}")
    if field == "distillers.apd.pixel_kd" and method == "apd_without_kd":
        return Source("own choice", "left out, to see the other terms alone")
    corrected = IN_THE_CORRECTED.get(field) if size.endswith(CORRECTED) else None
    return corrected or COMMON.get(field)


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(name, value, default) of every field of an experiment, nested ones as dotted names."""
    for field in fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name}"
        if is_dataclass(value):
            yield from leaves(value, f"{name}.")
        elif field.name == "distillers":
            for distiller in value:
                assert type(distiller) is (DISTILLERS | DETECTION_DISTILLERS)[distiller.method]
                yield from leaves(distiller, f"{name}.{distiller.method}.")
        elif field.name not in ("name", "method") or prefix == "data.":
            default = field.default
            yield name, value, default


def sourced_lines(name: str) -> Iterator[str]:
    """The recipe of a name such as "cityscapes-apd": every field with its value and the source of it.

    Example:
        >>> [line for line in sourced_lines("cityscapes-apd") if line.startswith("training.l")]
        ['training.learning_rate               0.005            released code']
    """
    size, method = name.rsplit("-", 1)
    yield from lines_with_sources(paper_recipe(size, method), partial(source_of, size, method))


def lines_with_sources(experiment: Experiment, source_of_field: Callable[[str], Source | None]) -> Iterator[str]:
    """Every field of an experiment with its value and the source of it."""
    for field, value, _ in leaves(experiment):
        source = source_of_field(field)
        shown = f"{value:.6g}" if isinstance(value, float) else repr(value) if value == "" else str(value)
        yield f"{field:36s} {shown:16s} {source or 'default of this project'}"
