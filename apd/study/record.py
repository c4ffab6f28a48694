"""What a run leaves behind: one JSON file from which every number of the book is drawn.

A record holds no score. It holds confusion matrices, and scores are computed from them whenever it is read, so a
number in the book cannot disagree with its evidence.
"""

import json
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


class RecordError(ValueError):
    """A record that does not follow the schema; the message names the file and the entry."""


def _matrix(value: Any, classes: int, entry: str, source: str) -> torch.Tensor:
    try:
        matrix_KK = torch.tensor(value, dtype=torch.int64)
    except (TypeError, ValueError, RuntimeError):
        matrix_KK = torch.empty(0)
    if matrix_KK.shape != (classes, classes) or (matrix_KK < 0).any():
        raise RecordError(f"{source}: {entry} must be a {classes} x {classes} matrix of counts >= 0")
    return matrix_KK


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
            if not isinstance(self.content[entry], kind) or isinstance(self.content[entry], bool):
                raise RecordError(f"{self.source}: {entry} = {self.content[entry]!r:.80} has the wrong type")
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
        names = self.content["data"].get("class_names")
        if (
            not isinstance(names, list)
            or len(names) < 2
            or not isinstance(self.content["data"].get("fingerprint"), str)
        ):
            raise RecordError(f"{self.source}: data must hold class_names (a list) and fingerprint (a string)")
        _matrix(self.content["confusion"], len(names), "confusion", self.source)
        if self.content["teacher"] is not None:
            for entry in ("confusion", "agreement"):
                _matrix(self.content["teacher"].get(entry), len(names), f"teacher.{entry}", self.source)
        if (self.content["teacher"] is None) != (experiment.teacher is None):
            raise RecordError(f"{self.source}: teacher must be there exactly when the experiment has one")
        curves = self.content["curves"]
        if not all(isinstance(c, list) and len(c) == len(curves.get("iteration", ())) for c in curves.values()):
            raise RecordError(f"{self.source}: curves must be lists as long as curves.iteration")

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
        """Write the file atomically; the folder is made. Returns the record."""
        path.parent.mkdir(parents=True, exist_ok=True)
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
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: cannot be read as JSON: {error}") from error
    return Record(content, source=str(path))


def read_records(folder: Path) -> list[Record]:
    """Every record of a folder, sorted by file name.

    Raises:
        RecordError: the folder holds none, or one of them is wrong.
    """
    paths = sorted(Path(folder).glob("*.json"))
    if not paths:
        raise RecordError(f"{folder}: no records; run the campaign of that name (apd campaign {Path(folder).name})")
    return [read_record(path) for path in paths]


def provenance(device: torch.device, precision: str) -> dict[str, Any]:
    """The entries of a record that say where it came from: commit, versions, device, command."""
    return {
        "git": _git_state(),
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in ("apd", "torch", "torchvision", "timm", "numpy")},
        "device": {
            "type": device.type,
            "name": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
            "threads": torch.get_num_threads(),
            "precision": precision,
        },
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
