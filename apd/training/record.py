"""What a run leaves behind: one JSON file, without scores; they are computed from its evidence when it is read."""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from apd.config.experiment import Experiment, ExperimentError
from apd.evaluation.average_precision import APScores, Kind, ap_scores, tables_of
from apd.evaluation.inference import Scores, scores
from apd.training.checkpoint import write_atomically
from apd.training.schema import RecordError, checked, read_json, with_digest

REPEATED = ("data", "confusion", "ap", "other_splits", "evaluations", "kept", "teacher", "curves", "weights_sha256")
"""Entries that the same experiment gives again, bit by bit, on the same machine with the same libraries."""


@dataclass(frozen=True)
class Record:
    """A validated record; `content` is the JSON of the file. RecordError where an entry contradicts the schema."""

    content: dict[str, Any]
    source: str = "record"
    experiment: Experiment = field(init=False, repr=False, compare=False)
    """The configuration that was run."""

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "experiment", checked(self.content))
        except RecordError as error:
            raise RecordError(f"{self.source}: {error}") from error

    @cached_property
    def class_names(self) -> list[str]:
        """Names in the order of the matrices' rows and columns."""
        return self.content["data"]["class_names"]

    @cached_property
    def identities(self) -> dict[str, dict[str, Any]]:
        """What is known of each split, see `Splits.identities`; an older kind of record says little of labels."""
        data = self.content["data"]
        scored = {"class_names": data["class_names"], "fingerprint": data["fingerprint"]}
        return data.get("identities", {"train": {"fingerprint": data["training_fingerprint"]}, data["split"]: scored})

    @cached_property
    def headline(self) -> tuple[str, float]:
        """Name and value of the one score by which runs of this task are compared: "mIoU", or "box AP"."""
        return ("box AP", self.ap["boxes"].ap) if self.experiment.task == "detection" else ("mIoU", self.scores.miou)

    def _ap(self, owner: dict[str, Any] | None) -> dict[Kind, APScores] | None:
        if self.experiment.task != "detection":
            raise RecordError(f"{self.source}: a record of segmentation has no average precision: use Record.scores")
        return owner and {kind: ap_scores(table) for kind, table in tables_of(owner["ap"]).items()}

    def _scores(self, owner: dict[str, Any] | None, entry: str = "confusion") -> Scores | None:
        if self.experiment.task != "segmentation":
            raise RecordError(f"{self.source}: a record of detection has no scores of pixels: use Record.ap")
        return owner and scores(torch.tensor(owner[entry]))

    @cached_property
    def ap(self) -> dict[Kind, APScores]:
        """AP of the kept weights, as in `scores`, on the evaluation split: "boxes", and "masks" of a Mask R-CNN."""
        return self._ap(self.content)

    @cached_property
    def teacher_ap(self) -> dict[Kind, APScores] | None:
        """The teacher's average precision on the same images; None when there is no teacher."""
        return self._ap(self.content["teacher"])

    @cached_property
    def scores(self) -> Scores:
        """Scores of the kept weights (the last, the average, or the best on val) on the evaluation split.

        RecordError where the record is one of detection.
        """
        return self._scores(self.content)

    def scores_on(self, split: str) -> Scores:
        """Scores on the evaluation split or another that was scored with it; RecordError where there is none."""
        known = {self.content["data"]["split"]: self.content, **self.content.get("other_splits", {})}
        if split not in known:
            raise RecordError(f"{self.source}: split {split!r} was not scored; expected one of {', '.join(known)}")
        return self._scores(known[split])

    @cached_property
    def teacher_scores(self) -> Scores | None:
        """The teacher's scores on the same images; None when there is no teacher."""
        return self._scores(self.content["teacher"])

    @cached_property
    def agreement(self) -> float | None:
        """Share of valid pixels on which student and teacher name the same class; None when there is no teacher."""
        agreed = self._scores(self.content["teacher"], "agreement")
        return agreed and agreed.aacc

    def save(self, path: Path) -> Self:
        """Write the file, an entry a line, and return the record with its digest. CheckpointError: the disk refuses."""
        content = with_digest(self.content)
        lines = (f" {json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in content.items())
        write_atomically(path, "{\n" + ",\n".join(lines) + "\n}\n")
        return replace(self, content=content)


def differences(recorded: Any, repeated: Any, entry: str = "") -> Iterator[str]:
    """A line for each entry of a record that came out otherwise when the experiment was run again.

    Of two contents, those that :data:`REPEATED` names are compared, as far as the first has them.

    >>> list(differences({"confusion": [[5, 1], [0, 2]]}, {"confusion": [[5, 1], [1, 1]]}))
    ['confusion: 2 of 4 numbers differ, the first is 0 in the record and 1 here']
    """
    if isinstance(recorded, dict) and isinstance(repeated, dict):
        for name in recorded if entry else [name for name in REPEATED if name in recorded]:
            yield from differences(recorded[name], repeated.get(name), f"{entry}.{name}".lstrip("."))
    elif isinstance(recorded, list) and isinstance(repeated, list) and any(isinstance(e, dict) for e in recorded):
        for number, (part, again) in enumerate(zip_longest(recorded, repeated)):
            yield from differences(part, again, f"{entry}[{number}]")
    elif recorded != repeated:
        which, ours, theirs = "", _numbers(recorded), _numbers(repeated)
        if len(ours) == len(theirs) > 1:
            pairs = [pair for pair in zip(ours, theirs, strict=True) if pair[0] != pair[1]]
            which = f"{len(pairs)} of {len(ours)} numbers differ, the first is "
            recorded, repeated = pairs[0]
        yield f"{entry}: {which}{recorded!r:.80} in the record and {repeated!r:.80} here"


def _numbers(value: Any) -> list[Any]:
    return [number for part in value for number in _numbers(part)] if isinstance(value, list) else [value]


def read_record(path: Path) -> Record:
    """Read and check one record. RecordError where the file is no JSON, contradicts the schema or itself."""
    try:
        return Record(read_json(Path(path)), source=str(path))
    except RecordError as error:
        fix = "Restore the file (records are committed), or delete it to have it made again"
        fix = fix if os.path.lexists(path) else "Give the path of a record.json"
        raise RecordError(f"{error}. {fix}") from error


def read_records(folder: Path) -> list[Record]:
    """Every record of a folder, sorted by file name. RecordError where it holds none, or one of them is wrong."""
    paths = sorted(Path(folder).glob("*.json"))
    if not paths:
        raise RecordError(f"{folder}: no records; run a campaign into it (apd campaign NAME --records {folder})")
    return [read_record(path) for path in paths]


def provenance(device: torch.device, precision: str, ranks: int = 1, libraries: Sequence[str] = ()) -> dict[str, Any]:
    """The entries of a record that say where it came from: commit, versions (also of `libraries`), device, command."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "git": _git_state(),
        "versions": {"python": platform.python_version(), "apd": _version("adaptive-perspective-distillation")}
        | {name: _version(name) for name in ("torchvision", "timm", "numpy", *libraries)}
        | {"torch": str(torch.__version__)},  # with the suffix of its build, which the package's version lacks
        "device": {"type": device.type, "name": name, "threads": torch.get_num_threads(), "precision": precision}
        | ({"ranks": ranks} if ranks > 1 else {}),
        "command": shlex.join(Path(part).name if Path(part).is_absolute() else part for part in sys.argv),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    """The processor's model name as Linux gives it, else what Python knows."""
    linux = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*: *(.*)", linux.read_text() if linux.exists() else "", re.MULTILINE)
    return named[1].strip() if named else platform.processor() or platform.machine()


@cache
def _git_state() -> dict[str, Any]:
    """Commit of this project's checkout as the first run begins, if the package lies in one, and whether it differs."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        own = f"--git-dir={root / '.git'}", f"--work-tree={root}"  # the environment or a folder above may name another
        done = subprocess.run(["git", *own, *arguments], cwd=root, capture_output=True, text=True, timeout=20)
        return done.stdout.strip() if done.returncode == 0 else ""

    project, ours = root / "pyproject.toml", 'name = "adaptive-perspective-distillation"'
    try:
        checkout = (root / ".git").exists() and project.is_file() and ours in project.read_text(encoding="utf-8")
        commit = git("rev-parse", "HEAD") if checkout else ""
        if not commit and (given := os.environ.get("APD_COMMIT")):  # a copy without history, whose maker knows it
            if not re.fullmatch("[0-9a-f]{7,64}", given):
                raise ExperimentError(f"APD_COMMIT = {given!r:.80}: expected 7 to 64 hexadecimal digits")
            return {"commit": given, "clean": True}
        commit = commit if checkout else "not in a checkout"
        return {"commit": commit, "clean": checkout and bool(commit) and not git("status", "--porcelain", "--", "apd")}
    except (OSError, subprocess.TimeoutExpired):
        return {"commit": "", "clean": False}


def repository() -> Path:
    """The nearest folder above the working one that holds both `apd/` and `pyproject.toml`; else the working one."""
    above = (Path.cwd(), *Path.cwd().parents)
    return next((at for at in above if (at / "pyproject.toml").is_file() and (at / "apd").is_dir()), above[0])


def records_folder(campaign: str) -> Path:
    """Where the committed records of a campaign lie."""
    return repository() / "book" / "results" / campaign


@dataclass(frozen=True)
class Measured:
    """What a script measured of finished runs, as JSON; RecordError at construction names a wrong entry."""

    content: dict[str, Any]
    source: str = "a file"
    maker: ClassVar[str]
    folder: ClassVar[str]

    def __post_init__(self) -> None:
        try:
            if self.content["schema"] != 1:
                raise ValueError(f"schema {self.content['schema']!r} is not 1, which this code reads")
            self.check()
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else error
            raise RecordError(f"{self.source}: {what}") from error

    def check(self) -> None:
        """Raise where an entry is missing or does not fit another."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """One file; RecordError when it is not JSON, or :meth:`check` refuses it."""
        try:
            return cls(read_json(path), str(path))
        except RecordError as error:
            fix = f"Restore the file, or delete it and run python book/figures/{cls.maker}"
            raise RecordError(f"{error}. {fix}") from error

    @classmethod
    def read_all(cls, folder: Path | None = None) -> list[Self]:
        """Every file of a folder (default: the committed ones); empty where there is none."""
        return [cls.read(path) for path in sorted((folder or records_folder(cls.folder)).glob("*.json"))]
