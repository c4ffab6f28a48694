"""What three detectors find in the first scenes of a split, kept in a file that chapter 9 is drawn from.

    python book/figures/detection_findings.py --seed 0

makes a file under `book/results/detection-findings/` from finished runs of the campaign `scenes-detection`, on the CPU.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from apd.config.experiment import ExperimentError
from apd.data.augment_instances import evaluation_instance_batches
from apd.data.batches import unit_range
from apd.data.instances import InstanceDataset, InstanceSample, as_target
from apd.data.scenes import SceneInstances
from apd.distillers.base import NO_BOX
from apd.evaluation.average_precision import Detections, detect
from apd.models.detector_hooks import DetectorTap, training_step
from apd.perspective import class_prototypes
from apd.report.detections import BASELINE, LEAST_SCORE, SCHEMA, TEACHER, Findings
from apd.study.campaigns import experiments_of
from apd.training.checkpoint import write_atomically
from apd.training.detection import DetectionTask
from apd.training.distributed import choose_device
from apd.training.exit_codes import exit_code_of
from apd.training.record import provenance, read_record
from apd.training.run import records_folder, run_folder, trained_network

CAMPAIGN, DISTILLED = "scenes-detection", "roi_apd"
IMAGES = 60
"""How many images, from the first of the split (own choice: enough to choose from, and a file of some 100 kB)."""


def first_with_all_classes(dataset: InstanceDataset) -> int:
    """The first image in which an object of each class has to be found; 0 where there is none."""
    for place in range(len(dataset)):
        sample = dataset[place]
        if len(sample.labels_N[~sample.crowd_N].unique()) == dataset.spec.num_classes:
            return place
    return 0


class BoxPerspectives(NamedTuple):
    """An image's boxes and the cosines between its classes, for a student and its teacher; all on the CPU."""

    boxes_N4: Tensor
    """Drawn from the student's proposals and the true boxes, to train its box head on; in pixels."""
    labels_N: Tensor
    """int64 label that each was matched with, 0 for the background."""
    student_KK: Tensor
    """Cosines between the prototypes of the labels, the background first; NaN where a label has no box."""
    teacher_KK: Tensor


def cosines_of_prototypes(vectors_C1N: Tensor, labels_1N: Tensor, num_labels: int) -> Tensor:
    """(K, K) cosines between the mean directions of the vectors of each label; NaN where a label has none."""
    found_1KC, present_1K = class_prototypes(vectors_C1N[None], labels_1N[None], num_labels, ignore_index=NO_BOX)
    prototypes_KC, present_K = found_1KC[0], present_1K[0]
    return torch.where(present_K[:, None] & present_K, prototypes_KC @ prototypes_KC.T, torch.nan)


@torch.no_grad()
def box_perspectives(
    student: GeneralizedRCNN, teacher: GeneralizedRCNN, sample: InstanceSample, *, seed: int = 0
) -> BoxPerspectives:
    """Let a student draw boxes in an image as it does in training, and observe them with both networks.

    The vectors are the box heads' own, before any projection. The student's batch norm stays as it is, its modes are
    put back, and torch's global generator is left as it was. ValueError: the teacher is in training mode.
    """
    device = next(student.parameters()).device
    target = {name: value.to(device) for name, value in as_target(sample).items()}
    modes = {module: module.training for module in student.modules()}
    student.train()
    for module in student.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    try:
        with torch.random.fork_rng(), DetectorTap(student) as tap:
            torch.manual_seed(seed)
            _, pair = training_step(student, tap, teacher, [unit_range(sample.image_3HW).to(device)], [target])
            boxes_N4, (height, width) = tap.boxes[0].cpu(), pair.student.image_sizes[0]
    finally:
        for module, mode in modes.items():
            module.training = mode
    rows, columns = sample.image_3HW.shape[1:]
    labels_1N, num_labels = pair.labels_B1N[0], pair.student.logits_BK1N.shape[1]
    cosines = [cosines_of_prototypes(view.vectors_BC1N[0], labels_1N, num_labels).cpu() for view in pair[:2]]
    boxes_N4 = boxes_N4 * boxes_N4.new_tensor([columns / width, rows / height]).repeat(2)
    return BoxPerspectives(boxes_N4, labels_1N[0].cpu(), *cosines)


def rounded(values: Tensor, digits: int) -> list[Any]:
    """As numbers stand in a file: with that many decimals, null in place of NaN.

    >>> rounded(torch.tensor([0.1234, float("nan")]), 3)
    [0.123, None]
    """
    if values.ndim > 1:
        return [rounded(row, digits) for row in values]
    return [None if value != value else round(value, digits) for value in values.tolist()]


def sure_findings(found: Detections) -> dict[str, Any]:
    """The detections that are sure enough to be drawn, as they stand in a file."""
    sure_N = found.scores_N >= LEAST_SCORE
    masks = None if found.masks is None else [m["counts"] for m, sure in zip(found.masks, sure_N, strict=True) if sure]
    return {
        "boxes": rounded(found.boxes_N4[sure_N], 1),
        "scores": rounded(found.scores_N[sure_N], 3),
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
        name: getattr(dataset.scenes, name) for name in ("height", "width", "context_shift", "seed", "split")
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
    place = first_with_all_classes(dataset)
    seen = box_perspectives(networks[distilled], networks[TEACHER], dataset[place])
    found = findings_of(networks, dataset)
    return Findings(
        {
            "schema": SCHEMA,
            "seed": seed,
            "runs": {name: {key: r[key] for key in ("fingerprint", "weights_sha256")} for name, r in records.items()},
            "data": {
                "pictures": len(found[distilled]),
                "scenes": settings_of(dataset),
                "fingerprint": dataset.fingerprint(),
            },
            **provenance(choose_device("cpu"), "fp32"),
            "boxes": {
                "picture": place,
                "boxes": rounded(seen.boxes_N4, 1),
                "labels": seen.labels_N.tolist(),
                "student": rounded(seen.student_KK, 3),
                "teacher": rounded(seen.teacher_KK, 3),
            },
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
