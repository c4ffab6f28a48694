"""What three detectors find in the first scenes of a split, kept in a file that chapter 9 is drawn from.

    python book/figures/detection_findings.py --seed 0

makes a file under `book/results/detection-findings/` from finished runs of the campaign `scenes-detection`, on the CPU.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from apd.config.experiment import ExperimentError
from apd.data.batches import evaluation_instance_batches
from apd.data.scenes import SceneInstances
from apd.evaluation.average_precision import Detections, detect
from apd.report.detections import BASELINE, LEAST_SCORE, TEACHER, Findings
from apd.study.campaigns import experiments_of
from apd.training.checkpoint import write_atomically
from apd.training.detection import DetectionTask
from apd.training.distributed import choose_device
from apd.training.exit_codes import exit_code_of
from apd.training.record import provenance, read_record, records_folder
from apd.training.run import run_folder, trained_network

CAMPAIGN, DISTILLED = "scenes-detection", "roi_apd"
IMAGES = 60
"""How many images, from the first of the split (own choice: enough to choose from, and a file of some 100 kB)."""


def sure_findings(found: Detections) -> dict[str, Any]:
    """The detections that are sure enough to be drawn, as they stand in a file."""
    sure_N = found.scores_N >= LEAST_SCORE
    masks = None if found.masks is None else [m["counts"] for m, sure in zip(found.masks, sure_N, strict=True) if sure]
    return {
        "boxes": [[round(x, 1) for x in box] for box in found.boxes_N4[sure_N].tolist()],
        "scores": [round(score, 3) for score in found.scores_N[sure_N].tolist()],
        "labels": found.labels_N[sure_N].tolist(),
        "masks": masks and [counts.decode() if isinstance(counts, bytes) else counts for counts in masks],
    }


def findings_of(
    networks: Mapping[str, nn.Module], dataset: SceneInstances, images: int = IMAGES
) -> dict[str, list[dict[str, Any]]]:
    """What each network (in eval mode, by name, on one device) finds in the first images, for the entry `found`."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in networks}
    device = next(next(iter(networks.values())).parameters()).device
    for batch, _ in evaluation_instance_batches(dataset, 8):
        for name, network in networks.items():
            found[name] += [sure_findings(each) for each in detect(network, [image.to(device) for image in batch])]
        if len(found[name]) >= images:
            break
    return {name: each[:images] for name, each in found.items()}


def settings_of(dataset: SceneInstances) -> dict[str, Any]:
    """The arguments with which the scenes can be drawn anew."""
    return {"count": len(dataset), "least_pixels": dataset.least_pixels} | {
        name: getattr(dataset, name) for name in ("height", "width", "context_shift", "seed", "split")
    }


def measure(seed: int = 0, distilled: str = DISTILLED) -> Findings:
    """The findings of one seed of the campaign, on the CPU: the baseline, a distilled student, and the teacher.

    Raises:
        ExperimentError: the campaign has no such run, or its runs were scored on other scenes than today's.
        CheckpointError: a run has not finished, or what it left is damaged.
    """
    planned = {run.name: run for run in experiments_of(CAMPAIGN)}
    names = {method: f"{method}-seed{seed}" for method in (BASELINE, distilled)}
    if lacking := [name for name in names.values() if name not in planned]:
        raise ExperimentError(f"{CAMPAIGN} plans no run {', '.join(lacking)}: it has {', '.join(planned)}")
    runs = {method: planned[name] for method, name in names.items()}
    runs[TEACHER] = runs[distilled].teacher_experiment()
    networks = {name: trained_network(run, "cpu") for name, run in runs.items()}
    dataset = DetectionTask(runs[TEACHER]).split(runs[TEACHER].data.evaluation_split)
    records = {name: read_record(run_folder(run) / "record.json").content for name, run in runs.items()}
    if {record["data"]["fingerprint"] for record in records.values()} != {dataset.fingerprint()}:
        raise ExperimentError("runs: they were scored on other scenes than today's; run the campaign again")
    found = findings_of(networks, dataset)
    return Findings(
        {
            "schema": 1,
            "seed": seed,
            "runs": {name: {key: r[key] for key in ("fingerprint", "weights_sha256")} for name, r in records.items()},
            "data": {
                "pictures": len(found[distilled]),
                "scenes": settings_of(dataset),
                "fingerprint": dataset.fingerprint(),
            },
            **provenance(choose_device("cpu"), "fp32"),
            "found": found,
        }
    )


def save(findings: Findings, path: Path) -> None:
    """Write the file atomically, an image a line."""
    entries = []
    for key, value in findings.content.items():
        text = json.dumps(value, separators=(",", ":"))
        if key == "found":
            text = text.replace("},{", "},\n  {").replace(':[{"boxes"', ':[\n  {"boxes"')
        entries.append(f" {json.dumps(key)}: {text}")
    write_atomically(path, "{\n" + ",\n".join(entries) + "\n}\n")


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of the students (default: 0)")
    parser.add_argument("--to", type=Path, help="folder of the file (default: book/results/detection-findings)")
    chosen = parser.parse_args(arguments)

    def run() -> int:
        path = (chosen.to or records_folder("detection-findings")) / f"{DISTILLED}-seed{chosen.seed}.json"
        save(measure(chosen.seed), path)
        print(path)
        return 0

    return exit_code_of(run, "detection_findings.py")


if __name__ == "__main__":
    raise SystemExit(main())
