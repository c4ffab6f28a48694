"""Records of detection that never took place, with chosen average precision, for tests of what is computed from them.

They have what the evidence reads of a :class:`~apd.training.record.Record` and of its experiment, and nothing else.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from apd.evaluation.average_precision import APScores, APTable, ap_scores

CLASSES = ("sign", "car", "pedestrian")


@dataclass(frozen=True, kw_only=True)
class Data:
    """Of the built-in scenes, or of pictures trained on and scored alike."""

    name: str = "scenes"
    height: int = 96
    width: int = 128
    context_shift: float = 1.0
    evaluation_split: str = "test"
    train_images: int = 3
    evaluation_images: int = 2
    world: int = 0
    least_pixels: int = 16
    train_part: str = "train2017"
    val_part: str = "val2017"


@dataclass(frozen=True, kw_only=True)
class Network:
    """A detector."""

    kind: str = "mask_rcnn"
    backbone: str = "mobilenet_v3_small"
    width: int = 32
    rois: int = 64


@dataclass(frozen=True, kw_only=True)
class Training:
    """A schedule."""

    iterations: int = 400
    batch_size: int = 8
    learning_rate: float = 0.02


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A teacher's network and training."""

    network: Network = field(default_factory=lambda: Network(backbone="resnet50", width=64))
    training: Training = field(default_factory=Training)


@dataclass(frozen=True, kw_only=True)
class Distiller:
    """A method and one of its settings."""

    method: str
    weight: float = 1.0
    levels: tuple[str, ...] = ("0", "1")


@dataclass(frozen=True, kw_only=True)
class DetectionExperiment:
    """The fields that all experiments have."""

    name: str
    seed: int
    data: Data = field(default_factory=Data)
    network: Network = field(default_factory=Network)
    training: Training = field(default_factory=Training)
    teacher: Teacher | None = field(default_factory=Teacher)
    distillers: tuple[Distiller, ...] = ()


def ap_of_a_network(level: float, *, masks: bool = True) -> dict[str, APScores]:
    """AP that is `level` for the first class and a tenth less for each next one, masks a fifth below boxes.

    Overlaps 0.5 and 0.75 are as the mean, things medium as it, small half of it, and large ones there are none.
    """
    by_class_K = torch.tensor([level * (1 - 0.1 * k) for k in range(len(CLASSES))], dtype=torch.float64)
    areas_A = torch.tensor([1.0, 0.5, 1.0, math.nan], dtype=torch.float64)
    table_TKA = (by_class_K[:, None] * areas_A).expand(10, -1, -1)
    kinds = {"boxes": 1.0, "masks": 0.8} if masks else {"boxes": 1.0}
    return {
        kind: ap_scores(APTable(table_TKA * factor, torch.full((len(CLASSES),), 9))) for kind, factor in kinds.items()
    }


@dataclass(frozen=True)
class DetectionRecord:
    """What a record of detection has."""

    experiment: DetectionExperiment
    ap: dict[str, APScores]
    teacher_ap: dict[str, APScores] | None
    content: dict[str, Any]

    @property
    def source(self) -> str:
        """The file's name."""
        return f"{self.experiment.name}.json"

    @property
    def class_names(self) -> list[str]:
        """The things."""
        return list(CLASSES)


def made_up(experiment: DetectionExperiment, level: float, *, teacher: float = 0.6, **ap: bool) -> DetectionRecord:
    """A record of an experiment whose first class has this AP."""
    has_teacher = experiment.teacher is not None
    return DetectionRecord(
        experiment,
        ap_of_a_network(level, **ap),
        ap_of_a_network(teacher, **ap) if has_teacher else None,
        {
            "data": {
                "name": experiment.data.name,
                "split": experiment.data.evaluation_split,
                "images": 100,
                "class_names": list(CLASSES),
                "fingerprint": "f" * 64,
                "training_fingerprint": "e" * 64,
            },
            "teacher": {"ap": {"level": teacher}} if has_teacher else None,
            "git": {"commit": "0123456789abcdef", "clean": True},
            "versions": {"torch": "2.15.0"},
            "device": {"type": "cpu", "name": "a processor", "threads": 1, "precision": "fp32"},
            "started": "2026-01-02T03:04:05+00:00",
            "wall_seconds": 30.0,
            "seconds_per_iteration": 0.1 + 0.05 * len(experiment.distillers),
            "peak_memory_bytes": 10**9,
            "curves": {"iteration": [200, 400], "loss": [2.0, 0.5]},
        },
    )


LEVELS = {
    "student": 0.30,
    "roi_kd": 0.33,
    "review_kd": 0.38,
    "roi_apd": 0.36,
    "dense_apd": 0.34,
    "roi_apd_and_review_kd": 0.42,
}
"""AP of the first class, by arm; the luck of a seed comes on top."""


def luck(arm: str, seed: int) -> float:
    """Of a run: that of the seed, which all arms share, and a little of its own."""
    return 0.02 * seed + 0.001 * ((3 * seed + len(arm)) % 4)


def campaign(
    arms: Sequence[str] = tuple(LEVELS), seeds: Sequence[int] = range(3), *, alone_has_teacher: bool = True, **ap: bool
) -> Iterator[DetectionRecord]:
    """Records of some arms and seeds, labelled as those of `scenes-detection`."""
    for seed in seeds:
        for arm in arms:
            methods = () if arm == "student" else arm.split("_and_")
            experiment = DetectionExperiment(
                name=f"{arm}-seed{seed}", seed=seed, distillers=tuple(Distiller(method=method) for method in methods)
            )
            if not methods and not alone_has_teacher:
                experiment = replace(experiment, teacher=None)
            yield made_up(experiment, LEVELS.get(arm, 0.35) + luck(arm, seed), **ap)
