"""One file of evidence on perspectives: numbers and scores of single images, validated whenever it is read.

The file is made by :mod:`apd.report.perspective_study` and lies under `book/results/perspectives/`.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from apd.config.experiment import Experiment, ExperimentError
from apd.config.identity import fingerprint, from_dict
from apd.training.checkpoint import write_atomically
from apd.training.record import RecordError
from apd.training.run import records_folder

SCHEMA = 1
LARGEST: dict[str, float] = {
    "distance": 2.0,
    "divergence": math.inf,
    "disagreement": 1.0,
    "own_right": 1.0,
    "shared_right": 1.0,
}
"""Numbers of an image's perspective (see :mod:`apd.report.perspective_distance`) with their largest possible value."""
REVEALED = "revealed"
"""What an image's own perspective shows and the shared one hides: `own_right` minus `shared_right`. Not stored."""
NUMBERS = (*LARGEST, REVEALED)
SCORES = ("miou", "right")
"""Scores of an image: mIoU over the classes in its labels, and share of valid pixels right."""
NEEDED = ("teacher", "pixel_kd", "apd")
"""Networks that every file has scores of."""


def rounded(values: Sequence[float], digits: int) -> list[float | None]:
    """As numbers stand in a file: with that many decimals, null in place of NaN.

    >>> rounded([0.123456, float("nan")], 4)
    [0.1235, None]
    """
    return [None if math.isnan(value) else round(value, digits) for value in values]


@dataclass(frozen=True)
class Evidence:
    """Validated evidence of one context shift and seed. `content` is the JSON as it stands in the file.

    Its entries: `experiment` (that of APD, whose data, teacher and seed all runs share), `runs` (fingerprint and
    weights' sha256 of each network), `data`, the provenance of a record, `valid` (pixels of each image), `furthest`
    (class whose prototype is furthest from its row), `perspective` (number -> images) and `scores` (network -> score ->
    images).

    Raises:
        RecordError: at construction, when an entry is missing, of the wrong type or contradicts another.
    """

    content: dict[str, Any]
    source: str = "evidence"

    def __post_init__(self) -> None:
        if not isinstance(self.content, dict):
            raise self._error(f"expected a JSON object, got {type(self.content).__name__}")
        if self.content.get("schema") != SCHEMA:
            raise self._error(f"schema {self.content.get('schema')!r} is not {SCHEMA}, which this code reads")
        for entry in ("experiment", "runs", "data", "git", "versions", "device", "perspective", "scores"):
            if not isinstance(self.content.get(entry), dict):
                raise self._error(f"{entry} = {self.content.get(entry)!r:.80} is not a mapping")
        if not isinstance(self.content.get("command"), str):
            raise self._error(f"command = {self.content.get('command')!r:.80} is not a text")
        self._check_runs()
        data = self.content["data"]
        images, names = data.get("images"), data.get("class_names")
        if not isinstance(images, int) or isinstance(images, bool) or images < 1:
            raise self._error(f"data.images = {images!r:.80} is not a number of images")
        if not isinstance(names, list) or len(names) < 2 or not all(isinstance(name, str) for name in names):
            raise self._error("data.class_names must be a list of at least two texts")
        for entry in ("name", "split", "fingerprint"):
            if not isinstance(data.get(entry), str):
                raise self._error(f"data.{entry} = {data.get(entry)!r:.80} is not a text")
        self._check_list(self.content.get("valid"), "valid", whole=True)
        self._check_list(self.content.get("furthest"), "furthest", len(names) - 1, whole=True)
        for number, largest in LARGEST.items():
            self._check_list(self.content["perspective"].get(number), f"perspective.{number}", largest)
        for network in self.content["runs"]:
            scores = self.content["scores"].get(network)
            for score in SCORES:
                found = scores.get(score) if isinstance(scores, dict) else None
                self._check_list(found, f"scores.{network}.{score}", 1.0)

    def _check_runs(self) -> None:
        runs = self.content["runs"]
        for network in NEEDED:
            if network not in runs:
                raise self._error(f"runs.{network} is missing")
        for network, run in runs.items():
            fine = isinstance(run, dict) and all(isinstance(run.get(e), str) for e in ("fingerprint", "weights_sha256"))
            if not fine:
                raise self._error(f"runs.{network} must hold fingerprint and weights_sha256, both texts")
        try:
            named = fingerprint(self.experiment)
        except ExperimentError as error:
            raise self._error(str(error)) from error
        if named != runs["apd"]["fingerprint"]:
            raise self._error(f"runs.apd.fingerprint is not that of the experiment ({named}): the file was edited")

    def _check_list(self, values: Any, entry: str, largest: float = math.inf, *, whole: bool = False) -> None:
        """A list with one number (or null) from 0 to `largest` for each image."""
        images, kind = self.content["data"]["images"], int if whole else (int, float)
        if not isinstance(values, list) or len(values) != images:
            raise self._error(f"{entry} must be a list with one value for each of {images} images")
        for image, value in enumerate(values):
            number = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
            if value is not None and not (number and 0 <= value <= largest):
                raise self._error(f"{entry}[{image}] = {value!r:.80}: expected null or a number from 0 to {largest:g}")

    def _error(self, told: str) -> RecordError:
        return RecordError(f"{self.source}: {told}")

    @cached_property
    def experiment(self) -> Experiment:
        """The run of APD."""
        return from_dict(self.content["experiment"])

    @property
    def context_shift(self) -> float:
        """How far every image has a look of its own."""
        return self.experiment.data.context_shift

    @property
    def seed(self) -> int:
        """Of the students."""
        return self.experiment.seed

    @property
    def networks(self) -> list[str]:
        """Whose scores there are."""
        return list(self.content["runs"])

    def number(self, name: str) -> NDArray[np.float64]:
        """(N,) one of NUMBERS, NaN where an image has none."""
        if name == REVEALED:
            return self.number("own_right") - self.number("shared_right")
        return np.array(self.content["perspective"][name], dtype=np.float64)

    def score(self, network: str, name: str) -> NDArray[np.float64]:
        """(N,) the images' scores of one network, NaN where an image has none."""
        return np.array(self.content["scores"][network][name], dtype=np.float64)

    def save(self, path: Path) -> Self:
        """Write the file atomically, one entry or list of numbers a line, and return the evidence.

        Raises:
            CheckpointError: the disk is full or read-only.
        """
        write_atomically(path, _lines(self.content) + "\n")
        return self


def _lines(content: Any, depth: int = 1) -> str:
    """JSON whose mappings of mappings are laid out in lines, everything else compactly: small diffs, small files."""
    if not isinstance(content, dict) or not any(isinstance(value, dict | list) for value in content.values()):
        return json.dumps(content, separators=(",", ":"))
    pad = " " * depth
    entries = (f"{pad}{json.dumps(key)}: {_lines(value, depth + 1)}" for key, value in content.items())
    return "{\n" + ",\n".join(entries) + "\n" + pad[1:] + "}"


def evidence_folder() -> Path:
    """Where the committed evidence lies."""
    return records_folder("perspectives")


def read_evidence(path: Path) -> Evidence:
    """Read and check one file.

    Raises:
        RecordError: it is not JSON or does not follow the schema.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        return Evidence(content, source=str(path))
    except (OSError, ValueError) as error:  # a RecordError, too, is a ValueError
        told = str(error) if isinstance(error, RecordError) else f"{path}: cannot be read as JSON: {error}"
        raise RecordError(
            f"{told}. Restore the file, or delete it and have it made again by python -m apd.report.perspective_study"
        ) from error


def read_all_evidence(folder: Path | None = None) -> list[Evidence]:
    """Every file of a folder (default: the committed ones) by context shift and seed; empty where there is none.

    Raises:
        RecordError: one of the files is wrong.
    """
    found = [read_evidence(path) for path in sorted((folder or evidence_folder()).glob("*.json"))]
    return sorted(found, key=lambda evidence: (evidence.context_shift, evidence.seed))
