"""Evidence on perspectives: for each test image, how far its own is from the shared one, and what each method scores.

    python book/figures/perspective_evidence.py

makes one file under `book/results/perspectives/` for each context shift and seed whose runs are finished, and trains
nothing. Chapter 6 reads them; what the numbers mean stands in `apd.report.perspectives`.
"""

import argparse
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from apd.config.datasets import build_split
from apd.config.experiment import Experiment, ExperimentError
from apd.config.identity import to_dict
from apd.report.correlations import NEEDED, Evidence
from apd.report.perspectives import own_perspectives, scores_by_image
from apd.study.campaigns import scenes_experiment
from apd.training.checkpoint import write_atomically
from apd.training.distributed import choose_device
from apd.training.exit_codes import exit_code_of
from apd.training.record import provenance, read_record, records_folder
from apd.training.run import run_folder, trained_distiller, trained_network

STUDENTS = ("student", "pixel_kd", "apd", "apd_without_kd")
"""Measured students. Those that are not needed have runs at the two extreme context shifts only."""


def rounded(values: Sequence[float], digits: int) -> list[float | None]:
    """As numbers stand in a file: with that many decimals, null in place of NaN."""
    return [None if math.isnan(value) else round(value, digits) for value in values]


def save(evidence: Evidence, path: Path) -> None:
    """Write the file atomically, one entry or list of numbers a line."""
    write_atomically(path, lines(evidence.content) + "\n")


def lines(content: Any, depth: int = 1) -> str:
    """JSON whose mappings of mappings are laid out in lines, everything else compactly: small diffs, small files."""
    if not isinstance(content, dict) or not any(isinstance(value, dict | list) for value in content.values()):
        return json.dumps(content, separators=(",", ":"))
    pad = " " * depth
    entries = (f"{pad}{json.dumps(key)}: {lines(value, depth + 1)}" for key, value in content.items())
    return "{\n" + ",\n".join(entries) + "\n" + pad[1:] + "}"


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
            "schema": 1,
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
    """The runs behind each file, by method: those of the campaigns `scenes-tiny` and `scenes-shifts`, seed by seed."""
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
            stored = Evidence.read(path).content["runs"]
            if all(stored.get(name) == _identity(run) for name, run in _with_teacher(finished).items()):
                continue
        save(measure(finished, device), path)
        written.append(path)
        print(f"{path.name} written", flush=True)
    print(f"perspectives: {len(plan) - len(lacking)} of {len(plan)} files are there", flush=True)
    if lacking:
        print(f"without finished runs: {', '.join(lacking)}", flush=True)
    return written


def main(arguments: list[str] | None = None) -> int:
    """The command line of `python book/figures/perspective_evidence.py`. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="perspective_evidence.py", description=__doc__.split("\n")[0])
    parser.add_argument("--to", type=Path, help="folder of the files (default: book/results/perspectives)")
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    chosen = parser.parse_args(arguments)

    def run() -> int:
        write_evidence(chosen.to, device=chosen.device)
        return 0

    return exit_code_of(run, "perspective_evidence")


if __name__ == "__main__":
    raise SystemExit(main())
