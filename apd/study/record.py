"""What a run leaves behind: one JSON file from which every number of the book is drawn.

A record holds no score. It holds confusion matrices, and scores are computed from them whenever it is read, so a
number in the book cannot disagree with its evidence.
"""

import json
import math
import platform
import shlex
import subprocess
import sys
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

import torch

from apd.evaluate.confusion import Scores, agreement, scores
from apd.study.checkpoint import write_atomically
from apd.study.experiment import Experiment, ExperimentError
from apd.study.fingerprint import fingerprint, from_dict

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
    "confusion": list,
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
        classes = self._check_data()
        _check_matrix(self.content["confusion"], classes, "confusion", self.source)
        teacher = self.content["teacher"]
        if (teacher is None) != (experiment.teacher is None):
            raise RecordError(f"{self.source}: teacher must be there exactly when the experiment has one")
        for entry in () if teacher is None else ("confusion", "agreement"):
            _check_matrix(teacher.get(entry), classes, f"teacher.{entry}", self.source)
        self._check_progress(classes)

    def _check_data(self) -> int:
        """Check the entry `data` and return the number of classes."""
        data, names = self.content["data"], self.content["data"].get("class_names")
        if not isinstance(names, list) or len(names) < 2 or not all(isinstance(name, str) for name in names):
            raise RecordError(f"{self.source}: data.class_names must be a list of at least two texts")
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
                raise RecordError(f"{self.source}: {entry} must hold step (a whole number), split and confusion")
            _check_matrix(evaluation.get("confusion"), classes, f"{entry}.confusion", self.source)
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

    @cached_property
    def scores(self) -> Scores:
        """Scores of the last step's student on the evaluation split."""
        return scores(torch.tensor(self.content["confusion"]))

    @cached_property
    def teacher_scores(self) -> Scores | None:
        """The teacher's scores on the same images; None when there is no teacher."""
        teacher = self.content["teacher"]
        return None if teacher is None else scores(torch.tensor(teacher["confusion"]))

    @cached_property
    def agreement(self) -> float | None:
        """Share of valid pixels on which student and teacher name the same class; None when there is no teacher."""
        teacher = self.content["teacher"]
        return None if teacher is None else agreement(torch.tensor(teacher["agreement"]))

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
        told = str(error) if isinstance(error, RecordError) else f"{path}: cannot be read as JSON: {error}"
        raise RecordError(
            f"{told}. Restore the file (records are committed), or delete it to have it made again"
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


def provenance(device: torch.device, precision: str, ranks: int = 1) -> dict[str, Any]:
    """The entries of a record that say where it came from: commit, versions, device, command.

    `ranks`, the number of processes that shared the work, is told where it is not 1.
    """
    return {
        "git": _git_state(),
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in ("apd", "torchvision", "timm", "numpy")}
        | {"torch": str(torch.__version__)},  # with the suffix of its build, which the package's version lacks
        "device": {
            "type": device.type,
            "name": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
            "threads": torch.get_num_threads(),
            "precision": precision,
        }
        | ({"ranks": ranks} if ranks > 1 else {}),
        "command": shlex.join(Path(word).name if Path(word).is_absolute() else word for word in sys.argv),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    """The processor's model name as Linux tells it, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@cache
def _git_state() -> dict[str, Any]:
    """Commit of the source tree and whether the package differs from it; empty commit where there is no git.

    Asked once a process, when its first run begins: that is the code which runs, whatever is edited meanwhile.
    """
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=20)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "HEAD")
        return {"commit": commit, "clean": bool(commit) and not git("status", "--porcelain", "--", str(here.parent))}
    except (OSError, subprocess.TimeoutExpired):
        return {"commit": "", "clean": False}
