"""What a run leaves behind: one JSON file from which every number of the book is drawn.

A record holds no score. It holds confusion matrices, or tables of average precision, and scores are computed from them
whenever it is read, so a number in the book cannot disagree with its evidence.
"""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch

from apd.config.compatibility import TaskName
from apd.config.experiment import Experiment, ExperimentError
from apd.config.identity import fingerprint, from_dict
from apd.evaluation.average_precision import APScores, Kind, ap_scores, tables_of, what_is_wrong
from apd.evaluation.metrics import Scores, scores
from apd.training.checkpoint import write_atomically

SCHEMA = 1
_TYPES: dict[str, type | tuple[type, ...]] = {
    "schema": int,
    "experiment": dict,
    "fingerprint": str,
    "data": dict,
    "git": dict,
    "versions": dict,
    "device": dict,
    "command": str,
    "started": str,
    "wall_seconds": (int, float),
    "seconds_per_iteration": (int, float),
    "peak_memory_bytes": int,
    "parameters": int,
    "curves": dict,
    "evaluations": list,
    "teacher": (dict, type(None)),
    "weights_sha256": str,
}
_KIND_NAMES = {
    int: "a whole number",
    (int, float): "a finite number",
    str: "a text",
    dict: "a mapping",
    list: "a list",
    (dict, type(None)): "a mapping or null",
}


class RecordError(ValueError):
    """A record that does not follow the schema; the message names the file and the entry."""


def _is_number(value: Any, kind: type | tuple[type, ...] = (int, float)) -> bool:
    """A finite number, no bool."""
    return isinstance(value, kind) and not isinstance(value, bool) and (isinstance(value, int) or math.isfinite(value))


def _check_matrix(value: Any, classes: int, entry: str, source: str) -> None:
    rows = value if isinstance(value, list) else []
    whole = len(rows) == classes and all(isinstance(row, list) and len(row) == classes for row in rows)
    if not whole or not all(_is_number(count, int) and 0 <= count < 2**63 for row in rows for count in row):
        raise RecordError(f"{source}: {entry} must be a {classes} x {classes} matrix of counts >= 0")


@dataclass(frozen=True)
class Record:
    """A validated record. `content` is the JSON as it stands in the file.

    Raises:
        RecordError: at construction, when an entry is missing, of the wrong type or contradicts another.
    """

    content: dict[str, Any]
    source: str = "record"

    def __post_init__(self) -> None:
        if not isinstance(self.content, dict):
            raise RecordError(f"{self.source}: expected a JSON object, got {type(self.content).__name__}")
        for entry, kind in _TYPES.items():
            if entry not in self.content:
                raise RecordError(f"{self.source}: entry {entry!r} is missing")
            value = self.content[entry]
            number = isinstance(value, int | float)
            if not isinstance(value, kind) or (number and not _is_number(value)):
                raise RecordError(f"{self.source}: {entry} = {value!r:.80} is not {_KIND_NAMES[kind]}")
        if self.content["schema"] != SCHEMA:
            raise RecordError(f"{self.source}: schema {self.content['schema']} is not {SCHEMA}, which this code reads")
        try:
            experiment = from_dict(self.content["experiment"])
        except ExperimentError as error:
            raise RecordError(f"{self.source}: {error}") from error
        if fingerprint(experiment) != self.content["fingerprint"]:
            raise RecordError(
                f"{self.source}: fingerprint {self.content['fingerprint']} is not that of its experiment "
                f"({fingerprint(experiment)}): the file was edited, or a field's default was changed"
            )
        classes = self._check_data(least=1 if experiment.task == "detection" else 2)
        self._check_measured(self.content, classes, "")
        for split, other in self.content.get("other_splits", {}).items():
            self._check_measured(other, classes, f"other_splits.{split}.")
        teacher = self.content["teacher"]
        if (teacher is None) != (experiment.teacher is None):
            raise RecordError(f"{self.source}: teacher must be there exactly when the experiment has one")
        if teacher is not None:
            self._check_measured(teacher, classes, "teacher.")
            if experiment.task == "segmentation":
                _check_matrix(teacher.get("agreement"), classes, "teacher.agreement", self.source)
        self._check_progress(classes)

    def _check_measured(self, owner: dict[str, Any], classes: int, prefix: str) -> None:
        """Check what the task measured of a network: `confusion`, or `ap`."""
        entry, other = ("ap", "confusion") if self.experiment.task == "detection" else ("confusion", "ap")
        if other in owner:
            raise RecordError(f"{self.source}: {prefix}{other} is no entry of a record of {self.experiment.task}")
        if entry not in owner:
            raise RecordError(f"{self.source}: entry {f'{prefix}{entry}'!r} is missing")
        if entry == "confusion":
            _check_matrix(owner[entry], classes, f"{prefix}{entry}", self.source)
            return
        is_teacher = prefix == "teacher."
        network = self.experiment.teacher.network if is_teacher else self.experiment.network
        kinds: tuple[Kind, ...] = ("boxes", "masks") if network.kind == "mask_rcnn" else ("boxes",)
        if wrong := what_is_wrong(owner[entry], classes, kinds):
            raise RecordError(f"{self.source}: {prefix}ap {wrong}")

    def _check_data(self, least: int) -> int:
        """Check the entry `data`, with at least so many classes, and return their number."""
        data, names = self.content["data"], self.content["data"].get("class_names")
        if not isinstance(names, list) or len(names) < least or not all(isinstance(name, str) for name in names):
            number = {1: "one text", 2: "two texts"}[least]
            raise RecordError(f"{self.source}: data.class_names must be a list of at least {number}")
        for entry in ("name", "split", "fingerprint", "training_fingerprint"):
            if not isinstance(data.get(entry), str):
                raise RecordError(f"{self.source}: data.{entry} = {data.get(entry)!r:.80} must be a text")
        if not _is_number(data.get("images"), int):
            raise RecordError(f"{self.source}: data.images = {data.get('images')!r:.80} must be a whole number")
        return len(names)

    def _check_progress(self, classes: int) -> None:
        """Check what was noted on the way: `evaluations` and `curves`."""
        for number, evaluation in enumerate(self.content["evaluations"]):
            entry = f"evaluations[{number}]"
            if not isinstance(evaluation, dict) or not _is_number(evaluation.get("step"), int):
                raise RecordError(f"{self.source}: {entry} must hold step (a whole number), split and scores")
            self._check_measured(evaluation, classes, f"{entry}.")
        curves = self.content["curves"]
        if "iteration" not in curves:
            raise RecordError(f"{self.source}: curves.iteration is missing")
        for name, curve in curves.items():
            if not isinstance(curve, list) or not all(map(_is_number, curve)):
                raise RecordError(f"{self.source}: curves.{name} must be a list of finite numbers")
            if len(curve) != len(curves["iteration"]):
                raise RecordError(f"{self.source}: curves.{name} must be as long as curves.iteration")

    @cached_property
    def experiment(self) -> Experiment:
        """The configuration that was run."""
        return from_dict(self.content["experiment"])

    @cached_property
    def class_names(self) -> list[str]:
        """Names in the order of the matrices' rows and columns."""
        return self.content["data"]["class_names"]

    def _of(self, task: TaskName, wanted: str, instead: str) -> None:
        if self.experiment.task != task:
            message = f"a record of {self.experiment.task} has no {wanted}: use Record.{instead}"
            raise RecordError(f"{self.source}: {message}")

    @cached_property
    def headline(self) -> tuple[str, float]:
        """Name and value of the one score by which runs of this task are compared: "mIoU", or "box AP"."""
        return ("box AP", self.ap["boxes"].ap) if self.experiment.task == "detection" else ("mIoU", self.scores.miou)

    @cached_property
    def ap(self) -> dict[Kind, APScores]:
        """Average precision of the last step's student on the evaluation split: "boxes", and "masks" of a Mask R-CNN.

        Raises:
            RecordError: the record is of segmentation.
        """
        self._of("detection", "average precision", "scores")
        return {kind: ap_scores(table) for kind, table in tables_of(self.content["ap"]).items()}

    @cached_property
    def teacher_ap(self) -> dict[Kind, APScores] | None:
        """The teacher's average precision on the same images; None when there is no teacher. RecordError as `ap`."""
        self._of("detection", "average precision", "teacher_scores")
        teacher = self.content["teacher"]
        return None if teacher is None else {k: ap_scores(table) for k, table in tables_of(teacher["ap"]).items()}

    @cached_property
    def scores(self) -> Scores:
        """Scores of the last step's student on the evaluation split.

        Raises:
            RecordError: the record is of detection.
        """
        self._of("segmentation", "scores of pixels", "ap")
        return scores(torch.tensor(self.content["confusion"]))

    def scores_on(self, split: str) -> Scores:
        """Scores of the last step's student on the evaluation split or another that was scored with it.

        Raises:
            RecordError: the record has no such split, or is of detection.
        """
        others = self.content.get("other_splits", {})
        if split == self.content["data"]["split"]:
            return self.scores
        if split not in others:
            known = ", ".join((self.content["data"]["split"], *others))
            raise RecordError(f"{self.source}: split {split!r} was not scored; expected one of {known}")
        return scores(torch.tensor(others[split]["confusion"]))

    @cached_property
    def teacher_scores(self) -> Scores | None:
        """The teacher's scores on the same images; None when there is no teacher. RecordError as `scores`."""
        self._of("segmentation", "scores of pixels", "teacher_ap")
        teacher = self.content["teacher"]
        return None if teacher is None else scores(torch.tensor(teacher["confusion"]))

    @cached_property
    def agreement(self) -> float | None:
        """Share of valid pixels on which student and teacher name the same class; None when there is no teacher.

        Raises:
            RecordError: the record is of detection, where boxes of two networks have no common places to agree on.
        """
        self._of("segmentation", "agreement of pixels", "teacher_ap")
        teacher = self.content["teacher"]
        return None if teacher is None else scores(torch.tensor(teacher["agreement"])).aacc

    def save(self, path: Path) -> Self:
        """Write the file atomically and return the record; the folder is made.

        Raises:
            CheckpointError: the disk is full or read-only.
        """
        write_atomically(path, _compact_json(self.content) + "\n")
        return self


def _compact_json(content: dict[str, Any]) -> str:
    """JSON with one top-level entry a line: readable, and small diffs."""
    lines = (f" {json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in content.items())
    return "{\n" + ",\n".join(lines) + "\n}"


def read_record(path: Path) -> Record:
    """Read and check one record.

    Raises:
        RecordError: the file is not JSON or does not follow the schema.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        return Record(content, source=str(path))
    except (OSError, ValueError) as error:  # a RecordError, too, is a ValueError
        message = str(error) if isinstance(error, RecordError) else f"{path}: cannot be read as JSON: {error}"
        raise RecordError(
            f"{message}. Restore the file (records are committed), or delete it to have it made again"
        ) from error


def read_records(folder: Path) -> list[Record]:
    """Every record of a folder, sorted by file name.

    Raises:
        RecordError: the folder holds none, or one of them is wrong.
    """
    paths = sorted(Path(folder).glob("*.json"))
    if not paths:
        raise RecordError(f"{folder}: no records; run the campaign of that name (apd campaign {Path(folder).name})")
    return [read_record(path) for path in paths]
