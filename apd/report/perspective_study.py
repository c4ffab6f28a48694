"""Evidence on perspectives: for each test image, how far its own is from the shared one, and what each method scores.

`python -m apd.report.perspective_study` makes one file for each context shift and seed whose runs are finished, and
trains nothing. What the numbers mean is told in :mod:`apd.report.perspective_distance`, what a file holds in
:mod:`apd.report.evidence_file`.
"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from apd.config.datasets import build_split
from apd.config.experiment import Experiment, ExperimentError
from apd.config.identity import fingerprint, to_dict
from apd.data.batches import evaluation_batches
from apd.data.specs import SegmentationDataset
from apd.distill import APDLoss
from apd.evaluation.inference import predict_dataset
from apd.models.segmenter import Segmenter
from apd.perspective import class_prototypes, observe, resize_labels
from apd.report.evidence_file import NEEDED, SCHEMA, Evidence, evidence_folder, read_evidence, rounded
from apd.report.perspective_distance import ImageScores, Views, compare_views, distance_to_shared, image_scores
from apd.report.trace import trained_distiller
from apd.study.campaigns import scenes_experiment
from apd.training.distributed import choose_device
from apd.training.exit_codes import exit_code_of
from apd.training.provenance import provenance
from apd.training.record import read_record
from apd.training.run import run_folder, trained_network

CONTEXT_SHIFTS = (0.0, 0.25, 0.5, 0.75, 1.0)
SEEDS = range(5)
STUDENTS = ("student", "pixel_kd", "apd", "apd_without_kd")
"""Measured students. Those that are not needed have runs at the ends of the dial only and are left out elsewhere."""


class OwnPerspectives(NamedTuple):
    """The numbers of a data set's images, one value for each of N images, on the CPU.

    Attributes:
        distance_N, cosines_NKK: see :class:`~apd.report.perspective_distance.Distance`.
        views: see :class:`~apd.report.perspective_distance.Views`.
    """

    distance_N: Tensor
    cosines_NKK: Tensor
    views: Views

    @property
    def furthest_N(self) -> Tensor:
        """The class whose prototype has the smallest cosine with its row; -1 for an image without a distance."""
        # rounded, because of an image's two only classes both have the same: the first is named
        furthest_N = self.cosines_NKK.diagonal(dim1=1, dim2=2).nan_to_num(torch.inf).round(decimals=4).argmin(1)
        return torch.where(self.distance_N.isnan(), -1, furthest_N)


@torch.no_grad()
def own_perspectives(
    teacher: Segmenter, distiller: APDLoss, dataset: SegmentationDataset, *, batch_size: int = 8
) -> OwnPerspectives:
    """Compare each image's own perspective with the teacher's classifier.

    Args:
        teacher: in eval mode.
        distiller: brings the head and the scale of the views; the distance uses neither.
        dataset: images with labels.
        batch_size: images at a time; the result does not depend on it.
    """
    parts = []
    device, spec = next(teacher.parameters()).device, dataset.spec
    for images_B3HW, labels_BHW, _names in evaluation_batches(dataset, batch_size):
        output = teacher(images_B3HW.to(device))
        labels_Bhw = resize_labels(labels_BHW.to(device), output.features.shape[2:])
        own_BKC, present_BK = class_prototypes(
            output.features, labels_Bhw, spec.num_classes, ignore_index=spec.ignore_index
        )
        found = distance_to_shared(teacher.classifier.weight.flatten(1), own_BKC, present_BK)
        projected_BDhw = distiller.teacher_head(output.features)
        own_BKD, _ = class_prototypes(projected_BDhw, labels_Bhw, spec.num_classes, ignore_index=spec.ignore_index)
        own_BKhw = observe(projected_BDhw, own_BKD, present_BK, scale=distiller.scale)
        views = compare_views(own_BKhw, output.logits, present_BK, labels_Bhw, ignore_index=spec.ignore_index)
        parts.append((*found, *views))
    distance_N, cosines_NKK, *views = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
    return OwnPerspectives(distance_N, cosines_NKK, Views(*views))


def scores_by_image(networks: Mapping[str, Segmenter], dataset: SegmentationDataset) -> dict[str, ImageScores]:
    """Every image's scores, by network; the networks must be in eval mode."""
    spec, parts = dataset.spec, {name: [] for name in networks}
    for predictions, labels_BHW, _names in predict_dataset(networks.values(), dataset):
        for name, prediction_BHW in zip(networks, predictions, strict=True):
            found = image_scores(prediction_BHW.cpu(), labels_BHW, spec.num_classes, ignore_index=spec.ignore_index)
            parts[name].append(found)
    return {name: ImageScores(*map(torch.cat, zip(*found, strict=True))) for name, found in parts.items()}


def measure(experiments: Mapping[str, Experiment], device: str | None = "cpu") -> Evidence:
    """The evidence of one seed's finished runs.

    Args:
        experiments: by method; "pixel_kd" and "apd" at least, equal in all but their distillers.
        device: torch device; None is cuda where there is one, else cpu.

    Raises:
        ExperimentError: a method is missing, or the experiments differ in more than their distillers.
        CheckpointError: a run has not finished, or what it left is damaged.
        DataError: the data are missing or damaged.
    """
    _check_comparable(experiments)
    apd, where = experiments["apd"], choose_device(device)
    runs = {"teacher": apd.teacher_experiment(), **experiments}
    networks = {name: trained_network(run, device) for name, run in runs.items()}
    dataset = build_split(apd.data, apd.data.evaluation_split)
    own = own_perspectives(networks["teacher"], trained_distiller(apd, networks["apd"], networks["teacher"]), dataset)
    scores = scores_by_image(networks, dataset)
    numbers = {"distance": own.distance_N} | {
        field.removesuffix("_B"): values for field, values in own.views._asdict().items()
    }
    records = {name: read_record(run_folder(run) / "record.json").content for name, run in runs.items()}
    return Evidence(
        {
            "schema": SCHEMA,
            "experiment": to_dict(apd),
            "runs": {name: {key: r[key] for key in ("fingerprint", "weights_sha256")} for name, r in records.items()},
            "data": {
                "name": dataset.spec.name,
                "split": apd.data.evaluation_split,
                "images": len(dataset),
                "class_names": list(dataset.spec.class_names),
                "fingerprint": dataset.fingerprint(),
            },
            **provenance(where, "fp32"),
            "valid": scores["teacher"].valid_B.tolist(),
            "furthest": [None if label < 0 else label for label in own.furthest_N.tolist()],
            "perspective": {name: rounded(values.tolist(), 4) for name, values in numbers.items()},
            "scores": {
                name: {"miou": rounded(found.miou_B.tolist(), 3), "right": rounded(found.right_B.tolist(), 3)}
                for name, found in scores.items()
            },
        }
    )


def _check_comparable(experiments: Mapping[str, Experiment]) -> None:
    for method in NEEDED[1:]:
        if method not in experiments:
            raise ExperimentError(f"experiments lack {method!r}: expected {', '.join(NEEDED[1:])}")
    apd = experiments["apd"]
    for method, experiment in experiments.items():
        for field in ("seed", "data", "network", "training", "teacher"):
            value, expected = getattr(experiment, field), getattr(apd, field)
            if value != expected:
                raise ExperimentError(f"{method}: {field} = {value}, but that of apd is {expected}; they must be equal")


def planned() -> Iterator[dict[str, Experiment]]:
    """The runs behind each file, by method: those of the campaigns `scenes-tiny` and `scenes-dial`, seed by seed."""
    for seed in SEEDS:
        for context_shift in CONTEXT_SHIFTS:
            yield {method: scenes_experiment(method, seed, context_shift) for method in STUDENTS}


def write_evidence(folder: Path | None = None, *, device: str | None = "cpu") -> list[Path]:
    """Write the files whose runs are finished and that are not there yet, and return their paths.

    A file that was made from other runs than those found today is made again.

    Args:
        folder: where the files go; default `book/results/perspectives/`.
        device: torch device; None is cuda where there is one, else cpu.

    Raises:
        RecordError: a file that is there is damaged.
        CheckpointError: what a finished run left is damaged, or a file cannot be written.
    """
    folder, written, lacking = folder or evidence_folder(), [], []
    for runs in planned():
        apd = runs["apd"]
        name = f"context{apd.data.context_shift:g}-seed{apd.seed}"
        finished = {m: run for m, run in runs.items() if (run_folder(run) / "record.json").exists()}
        if not set(NEEDED[1:]) <= finished.keys():
            lacking.append(name)
            continue
        path = folder / f"{name}.json"
        if path.exists() and _is_of(read_evidence(path), finished):
            continue
        measure(finished, device).save(path)
        written.append(path)
        print(f"{path.name} written", flush=True)
    there = sum(1 for _ in planned()) - len(lacking)
    print(f"perspectives: {there} of {there + len(lacking)} files are there", flush=True)
    if lacking:
        print(f"without finished runs: {', '.join(lacking)}", flush=True)
    return written


def _is_of(evidence: Evidence, runs: Mapping[str, Experiment]) -> bool:
    """Whether a file holds every one of these runs, trained to the weights that lie there now."""
    for method, run in {"teacher": runs["apd"].teacher_experiment(), **runs}.items():
        weights = read_record(run_folder(run) / "record.json").content["weights_sha256"]
        if evidence.content["runs"].get(method) != {"fingerprint": fingerprint(run), "weights_sha256": weights}:
            return False
    return True


def main(arguments: list[str] | None = None) -> int:
    """The command line of `python -m apd.report.perspective_study`. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m apd.report.perspective_study", description=__doc__.split("\n")[0])
    parser.add_argument("--to", type=Path, help="folder of the files (default: book/results/perspectives)")
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    chosen = parser.parse_args(arguments)

    def run() -> int:
        write_evidence(chosen.to, device=chosen.device)
        return 0

    return exit_code_of(run, "apd.report.perspective_study")


if __name__ == "__main__":
    raise SystemExit(main())
