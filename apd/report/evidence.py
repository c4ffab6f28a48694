"""Evidence on perspectives: for each test image, how far its own is from the shared one, and what each method scores.

`python -m apd.report.evidence` makes one file under `book/results/perspectives/` for each context shift and seed whose
runs are finished, and trains nothing. What the numbers mean stands in :mod:`apd.report.perspectives`.
"""

import argparse
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from apd.config.datasets import build_split
from apd.config.experiment import Experiment, ExperimentError
from apd.config.identity import fingerprint, from_dict, to_dict
from apd.report.perspectives import own_perspectives, scores_by_image, trained_distiller
from apd.study.campaigns import scenes_experiment
from apd.training.checkpoint import write_atomically
from apd.training.distributed import choose_device
from apd.training.exit_codes import exit_code_of
from apd.training.provenance import provenance
from apd.training.record import RecordError, read_record
from apd.training.run import records_folder, run_folder, trained_network

SCHEMA = 1
LARGEST = {"distance": 2.0, "divergence": math.inf, "disagreement": 1.0, "own_right": 1.0, "shared_right": 1.0}
"""Numbers of an image's perspective with their largest possible value."""
REVEALED = "revealed"
"""What an image's own perspective shows and the shared one hides: `own_right` minus `shared_right`; not stored."""
NUMBERS = (*LARGEST, REVEALED)
SCORES = ("miou", "right")
"""Scores of an image: mIoU over the classes in its labels, and share of valid pixels right."""
NEEDED = ("teacher", "pixel_kd", "apd")
STUDENTS = ("student", "pixel_kd", "apd", "apd_without_kd")
"""Measured students. Those that are not needed have runs at the two extreme context shifts only."""
AGAIN = "Restore the file, or delete it and have it made again by python -m"

Values = NDArray[np.float64]


def rounded(values: Sequence[float], digits: int) -> list[float | None]:
    """As numbers stand in a file: with that many decimals, null in place of NaN."""
    return [None if math.isnan(value) else round(value, digits) for value in values]


@dataclass(frozen=True)
class Evidence:
    """Validated evidence of one context shift and seed. `content` is the JSON as it stands in the file.

    Its entries: `experiment` (of APD), `runs` (fingerprint and weights' sha256 of each network), `data`, provenance,
    `valid` (pixels of each image), `furthest` (class whose prototype is furthest from its row), `perspective` (number
    -> images) and `scores` (network -> score -> images). RecordError at construction names the first wrong entry.
    """

    content: dict[str, Any]
    source: str = "evidence"

    def __post_init__(self) -> None:
        content = self.content
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            schema = content.get("schema") if isinstance(content, dict) else type(content).__name__
            raise self._error(f"schema {schema!r} is not {SCHEMA}, which this code reads")
        for entry in ("experiment", "runs", "data", "git", "versions", "device", "perspective", "scores"):
            self._check_type(content, entry, dict)
        self._check_type(content, "command", str)
        for entry in ("name", "split", "fingerprint"):
            self._check_type(content["data"], entry, str, "data.")
        self._check_runs()
        images, names = content["data"].get("images"), content["data"].get("class_names")
        if not isinstance(images, int) or isinstance(images, bool) or images < 1:
            raise self._error(f"data.images = {images!r:.80} is not a number of images")
        if not isinstance(names, list) or len(names) < 2 or not all(isinstance(name, str) for name in names):
            raise self._error("data.class_names must be a list of at least two texts")
        lists = {"valid": (content.get("valid"), math.inf), "furthest": (content.get("furthest"), len(names) - 1)}
        lists |= {f"perspective.{n}": (content["perspective"].get(n), most) for n, most in LARGEST.items()}
        for network, score in itertools.product(content["runs"], SCORES):
            scores = content["scores"].get(network)
            lists[f"scores.{network}.{score}"] = (scores.get(score) if isinstance(scores, dict) else None, 1.0)
        for entry, (values, most) in lists.items():
            kind = int if entry in ("valid", "furthest") else (int, float)
            if not isinstance(values, list) or len(values) != images:
                raise self._error(f"{entry} must be a list with one value for each of {images} images")
            for image, value in enumerate(values):
                number = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
                if value is not None and not (number and 0 <= value <= most):
                    expected = f"expected null or a number from 0 to {most:g}"
                    raise self._error(f"{entry}[{image}] = {value!r:.80}: {expected}")

    def _check_type(self, entries: Mapping[str, Any], entry: str, kind: type, path: str = "") -> None:
        if not isinstance(entries.get(entry), kind):
            what = "mapping" if kind is dict else "text"
            raise self._error(f"{path}{entry} = {entries.get(entry)!r:.80} is not a {what}")

    def _check_runs(self) -> None:
        runs = self.content["runs"]
        if missing := [network for network in NEEDED if network not in runs]:
            raise self._error(f"runs.{missing[0]} is missing")
        for network, run in runs.items():
            if not isinstance(run, dict) or not {str} == {type(run.get(e)) for e in ("fingerprint", "weights_sha256")}:
                raise self._error(f"runs.{network} must hold fingerprint and weights_sha256, both texts")
        try:
            named = fingerprint(self.experiment)
        except ExperimentError as error:
            raise self._error(str(error)) from error
        if named != runs["apd"]["fingerprint"]:
            raise self._error(f"runs.apd.fingerprint is not that of the experiment ({named}): the file was edited")

    def _error(self, what: str) -> RecordError:
        return RecordError(f"{self.source}: {what}")

    @cached_property
    def experiment(self) -> Experiment:
        """The run of APD."""
        return from_dict(self.content["experiment"])

    def number(self, name: str) -> Values:
        """(N,) one of NUMBERS, NaN where an image has none."""
        if name == REVEALED:
            return self.number("own_right") - self.number("shared_right")
        return np.array(self.content["perspective"][name], dtype=np.float64)

    def score(self, network: str, name: str) -> Values:
        """(N,) the images' scores of one network, NaN where an image has none."""
        return np.array(self.content["scores"][network][name], dtype=np.float64)

    def gain(self, method: str, reference: str) -> Values:
        """(N,) one method's mIoU of each image minus another's."""
        return self.score(method, "miou") - self.score(reference, "miou")

    def save(self, path: Path) -> Self:
        """Write the file atomically, one entry or list of numbers a line, and return the evidence."""
        write_atomically(path, _lines(self.content) + "\n")
        return self


def _lines(content: Any, depth: int = 1) -> str:
    """JSON whose mappings of mappings are laid out in lines, everything else compactly: small diffs, small files."""
    if not isinstance(content, dict) or not any(isinstance(value, dict | list) for value in content.values()):
        return json.dumps(content, separators=(",", ":"))
    pad = " " * depth
    entries = (f"{pad}{json.dumps(key)}: {_lines(value, depth + 1)}" for key, value in content.items())
    return "{\n" + ",\n".join(entries) + "\n" + pad[1:] + "}"


def read_evidence(path: Path) -> Evidence:
    """Read and check one file; RecordError when it is not JSON or does not follow the schema."""
    try:
        return Evidence(json.loads(Path(path).read_text(encoding="utf-8")), source=str(path))
    except (OSError, ValueError) as error:  # a RecordError, too, is a ValueError
        what = str(error) if isinstance(error, RecordError) else f"{path}: cannot be read as JSON: {error}"
        raise RecordError(f"{what}. {AGAIN} apd.report.evidence") from error


def read_all_evidence(folder: Path | None = None) -> list[Evidence]:
    """Every file of a folder (default: the committed ones) by context shift and seed; empty where there is none."""
    found = [read_evidence(path) for path in sorted((folder or records_folder("perspectives")).glob("*.json"))]
    return sorted(found, key=lambda one: (one.experiment.data.context_shift, one.experiment.seed))


def measure(experiments: Mapping[str, Experiment], device: str | None = "cpu") -> Evidence:
    """The evidence of one seed's finished runs by method, "pixel_kd" and "apd" at least, equal but for distillers.

    Raises:
        ExperimentError: a method is missing, or the experiments differ in more than their distillers.
        CheckpointError, DataError: a run has not finished, or what it left or the data are damaged.
    """
    if lacking := [method for method in NEEDED[1:] if method not in experiments]:
        raise ExperimentError(f"experiments lack {lacking[0]!r}: expected {', '.join(NEEDED[1:])}")
    apd = experiments["apd"]
    for (method, run), entry in itertools.product(
        experiments.items(), ("seed", "data", "network", "training", "teacher")
    ):
        value, expected = getattr(run, entry), getattr(apd, entry)
        if value != expected:
            raise ExperimentError(f"{method}: {entry} = {value}, but that of apd is {expected}; they must be equal")
    runs = _with_teacher(experiments)
    networks = {name: trained_network(run, device) for name, run in runs.items()}
    dataset = build_split(apd.data, apd.data.evaluation_split)
    own = own_perspectives(networks["teacher"], trained_distiller(apd, networks["apd"], networks["teacher"]), dataset)
    scores = scores_by_image(networks, dataset)
    numbers = {"distance": own.distance_N} | {k.removesuffix("_B"): values for k, values in own.views._asdict().items()}
    return Evidence(
        {
            "schema": SCHEMA,
            "experiment": to_dict(apd),
            "runs": {name: _identity(run) for name, run in runs.items()},
            "data": {
                "name": dataset.spec.name,
                "split": apd.data.evaluation_split,
                "images": len(dataset),
                "class_names": list(dataset.spec.class_names),
                "fingerprint": dataset.fingerprint(),
            },
            **provenance(choose_device(device), "fp32"),
            "valid": scores["teacher"].valid_B.tolist(),
            "furthest": [None if label < 0 else label for label in own.furthest_N.tolist()],
            "perspective": {name: rounded(values.tolist(), 4) for name, values in numbers.items()},
            "scores": {
                name: {"miou": rounded(found.miou_B.tolist(), 3), "right": rounded(found.right_B.tolist(), 3)}
                for name, found in scores.items()
            },
        }
    )


def _with_teacher(runs: Mapping[str, Experiment]) -> dict[str, Experiment]:
    return {"teacher": runs["apd"].teacher_experiment(), **runs}


def _identity(run: Experiment) -> dict[str, str]:
    """What names a finished run: its settings and the weights that it was trained to."""
    content = read_record(run_folder(run) / "record.json").content
    return {entry: content[entry] for entry in ("fingerprint", "weights_sha256")}


def planned() -> Iterator[dict[str, Experiment]]:
    """The runs behind each file, by method: those of the campaigns `scenes-tiny` and `scenes-dial`, seed by seed."""
    for seed, context_shift in itertools.product(range(5), (0.0, 0.25, 0.5, 0.75, 1.0)):
        yield {method: scenes_experiment(method, seed, context_shift) for method in STUDENTS}


def write_evidence(folder: Path | None = None, *, device: str | None = "cpu") -> list[Path]:
    """Write the files whose runs are finished, unless they are there and of the same weights; return their paths.

    Args:
        folder: where the files go; default `book/results/perspectives/`.
        device: torch device; None is cuda where there is one, else cpu.

    Raises:
        RecordError, CheckpointError: a file or what a run left is damaged, or a file cannot be written.
    """
    folder, written, lacking = folder or records_folder("perspectives"), [], []
    for runs in (plan := list(planned())):
        path = folder / f"context{runs['apd'].data.context_shift:g}-seed{runs['apd'].seed}.json"
        finished = {m: run for m, run in runs.items() if (run_folder(run) / "record.json").exists()}
        if not set(NEEDED[1:]) <= finished.keys():
            lacking.append(path.stem)
            continue
        if path.exists():
            stored = read_evidence(path).content["runs"]
            if all(stored.get(name) == _identity(run) for name, run in _with_teacher(finished).items()):
                continue
        measure(finished, device).save(path)
        written.append(path)
        print(f"{path.name} written", flush=True)
    print(f"perspectives: {len(plan) - len(lacking)} of {len(plan)} files are there", flush=True)
    if lacking:
        print(f"without finished runs: {', '.join(lacking)}", flush=True)
    return written


def main(arguments: list[str] | None = None) -> int:
    """The command line of `python -m apd.report.evidence`. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m apd.report.evidence", description=__doc__.split("\n")[0])
    parser.add_argument("--to", type=Path, help="folder of the files (default: book/results/perspectives)")
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    chosen = parser.parse_args(arguments)
    return exit_code_of(lambda: 0 * len(write_evidence(chosen.to, device=chosen.device)), "apd.report.evidence")


if __name__ == "__main__":
    raise SystemExit(main())
