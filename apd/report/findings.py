"""What three detectors find in the first scenes of a split, kept in a file that the book's figures are drawn from.

`python -m apd.report.findings` makes the files under `book/results/detection-findings/` from finished runs of the
campaign `scenes-detection`, and trains nothing. A file holds no image: scenes are drawn anew from their numbers.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from apd.config.experiment import Experiment, ExperimentError
from apd.data.augment_instances import evaluation_instance_batches
from apd.data.instances import InstanceSample, InstanceSpec
from apd.data.scenes import SceneInstances
from apd.evaluation.average_precision import Detections
from apd.evaluation.detections import detect
from apd.models.detector import build_detector
from apd.report.detections import LEAST_SCORE, BoxPerspectives, box_perspectives, first_with_all_classes
from apd.report.evidence import AGAIN
from apd.study.campaigns import experiments_of
from apd.training.checkpoint import write_atomically
from apd.training.detection import DetectionTask
from apd.training.distributed import choose_device
from apd.training.exit_codes import exit_code_of
from apd.training.provenance import provenance
from apd.training.record import RecordError, read_record
from apd.training.run import records_folder, run_folder, trained_network

SCHEMA = 1
CAMPAIGN, ALONE, DISTILLED, TEACHER = "scenes-detection", "student", "roi_apd", "teacher"
PICTURES = 60
"""How many images, from the first of the split (own choice: enough to choose from, and a file of some 100 kB)."""


@dataclass(frozen=True)
class Findings:
    """Findings of several detectors in the same scenes. `content` is the JSON as it stands in the file.

    Raises:
        RecordError: at construction, when an entry is missing or does not fit another.
    """

    content: dict[str, Any]
    source: str = "findings"

    def __post_init__(self) -> None:
        if not isinstance(self.content, dict) or self.content.get("schema") != SCHEMA:
            raise self._error(f"expected a JSON object of schema {SCHEMA}")
        for entry in ("runs", "data", "git", "versions", "device", "found", "boxes"):
            if not isinstance(self.content.get(entry), dict):
                raise self._error(f"{entry} = {self.content.get(entry)!r:.80} is not a mapping")
        if self.content["found"].keys() != self.content["runs"].keys():
            raise self._error(f"found is of {list(self.content['found'])}, runs of {list(self.content['runs'])}")
        pictures = self.content["data"].get("pictures")
        for network, found in self.content["found"].items():
            if len(found) != pictures:
                raise self._error(f"found.{network} is of {len(found)} pictures, but data.pictures = {pictures!r}")
            for place, each in enumerate(found):
                if len({len(each[part]) for part in ("boxes", "scores", "labels")}) != 1:
                    raise self._error(f"found.{network}[{place}]: boxes, scores and labels must be equally many")
        try:
            drawn = self.dataset().fingerprint()
        except (KeyError, TypeError, ValueError) as error:
            raise self._error(f"data.scenes are no settings of scenes: {error}") from error
        if drawn != self.content["data"].get("fingerprint"):
            raise self._error("data.fingerprint is not that of today's scenes: another generator drew them")

    def _error(self, what: str) -> RecordError:
        return RecordError(f"{self.source}: {what}. {AGAIN} apd.report.findings")

    def dataset(self) -> SceneInstances:
        """The scenes, drawn anew."""
        return SceneInstances(**self.content["data"]["scenes"])

    @property
    def pictures(self) -> int:
        """How many images of the split there are findings of, from its first."""
        return self.content["data"]["pictures"]

    def found(self, network: str) -> list[Detections]:
        """One network's findings, image by image."""
        size = [self.content["data"]["scenes"][side] for side in ("height", "width")]
        return [
            Detections(
                torch.tensor(each["boxes"], dtype=torch.float32).reshape(-1, 4),
                torch.tensor(each["scores"], dtype=torch.float32),
                torch.tensor(each["labels"], dtype=torch.int64),
                None if each["masks"] is None else [{"size": size, "counts": counts} for counts in each["masks"]],
            )
            for each in self.content["found"][network]
        ]

    @property
    def boxes_of(self) -> int:
        """The image whose drawn boxes are kept."""
        return self.content["boxes"]["picture"]

    def boxes(self) -> BoxPerspectives:
        """What distillation saw of that image at the end of training; without the class map."""
        kept = self.content["boxes"]
        return BoxPerspectives(
            torch.tensor(kept["boxes"], dtype=torch.float32).reshape(-1, 4),
            torch.tensor(kept["labels"], dtype=torch.int64),
            *(_from_nulls(kept[name]) for name in ("student", "teacher")),
            None,
        )

    def save(self, path: Path) -> Self:
        """Write the file atomically, an image a line, and return the findings."""
        entries = []
        for key, value in self.content.items():
            text = json.dumps(value, separators=(",", ":"))
            if key == "found":
                text = text.replace("},{", "},\n  {").replace(':[{"boxes"', ':[\n  {"boxes"')
            entries.append(f" {json.dumps(key)}: {text}")
        write_atomically(path, "{\n" + ",\n".join(entries) + "\n}\n")
        return self


def _from_nulls(rows: Sequence[Sequence[float | None]]) -> Tensor:
    return torch.tensor([[torch.nan if value is None else value for value in row] for row in rows])


def _with_nulls(values_KK: Tensor) -> list[list[float | None]]:
    return [[None if value != value else round(value, 3) for value in row] for row in values_KK.tolist()]


def sure_findings(found: Detections) -> dict[str, Any]:
    """The findings that are sure enough to be drawn, as they stand in a file."""
    sure = (found.scores_N >= LEAST_SCORE).nonzero().flatten().tolist()
    masks = None if found.masks is None else [found.masks[i]["counts"] for i in sure]
    return {
        "boxes": [[round(value, 1) for value in found.boxes_N4[i].tolist()] for i in sure],
        "scores": [round(float(found.scores_N[i]), 3) for i in sure],
        "labels": [int(found.labels_N[i]) for i in sure],
        "masks": masks and [counts.decode() if isinstance(counts, bytes) else counts for counts in masks],
    }


def findings_of(
    networks: Mapping[str, nn.Module], dataset: SceneInstances, pictures: int = PICTURES, *, batch_size: int = 8
) -> dict[str, list[dict[str, Any]]]:
    """What each network (in eval mode, by name, on one device) finds in the first images, for the entry `found`."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in networks}
    device = next(next(iter(networks.values())).parameters()).device
    for images, _ in evaluation_instance_batches(dataset, batch_size):
        for name, network in networks.items():
            found[name] += [sure_findings(each) for each in detect(network, [image.to(device) for image in images])]
        if len(found[name]) >= pictures:
            break
    return {name: each[:pictures] for name, each in found.items()}


def settings_of(dataset: SceneInstances) -> dict[str, Any]:
    """The arguments with which the scenes can be drawn anew."""
    return {"count": len(dataset), "least_pixels": dataset.least_pixels} | {
        name: getattr(dataset.scenes, name) for name in ("height", "width", "context_shift", "seed", "split")
    }


def measure(runs: Mapping[str, Experiment], device: str | None = "cpu") -> Findings:
    """The findings of finished runs.

    Args:
        runs: by the names `student`, a distilled student's, and `teacher`, all on the same scenes.
        device: torch device; None is cuda where there is one, else cpu.

    Raises:
        ExperimentError: the runs are not on scenes, or on different ones, or on those of another generator.
        CheckpointError: a run has not finished, or what it left is damaged.
    """
    data = {run.data for run in runs.values()}
    if len(data) > 1 or next(iter(data)).name != "scenes":
        raise ExperimentError("runs: expected detection on one set of built-in scenes, as only these are shown")
    networks = {name: trained_network(run, device) for name, run in runs.items()}
    (config,) = data
    dataset = DetectionTask(runs[TEACHER]).split(config.evaluation_split)
    records = {name: read_record(run_folder(run) / "record.json").content for name, run in runs.items()}
    scored = {record["data"]["fingerprint"] for record in records.values()}
    if scored != {dataset.fingerprint()}:
        raise ExperimentError("runs: they were scored on other scenes than today's; run the campaign again")
    distilled = next(name for name in runs if name not in (ALONE, TEACHER))
    place = first_with_all_classes(dataset)
    seen = box_perspectives(networks[distilled], networks[TEACHER], dataset[place])
    found = findings_of(networks, dataset)
    return Findings(
        {
            "schema": SCHEMA,
            "seed": runs[distilled].seed,
            "runs": {name: {key: r[key] for key in ("fingerprint", "weights_sha256")} for name, r in records.items()},
            "data": {
                "pictures": len(found[distilled]),
                "scenes": settings_of(dataset),
                "fingerprint": dataset.fingerprint(),
            },
            **provenance(choose_device(device), "fp32"),
            "boxes": {
                "picture": place,
                "boxes": [[round(value, 1) for value in box] for box in seen.boxes_N4.tolist()],
                "labels": seen.labels_N.tolist(),
                "student": _with_nulls(seen.student_KK),
                "teacher": _with_nulls(seen.teacher_KK),
            },
            "found": found,
        }
    )


def findings_folder() -> Path:
    """Where the committed files lie."""
    return records_folder("detection-findings")


def read_findings(folder: Path | None = None) -> list[Findings]:
    """Every file of a folder (default: the committed ones); empty where there is none.

    Raises:
        RecordError: a file is no valid JSON, or not of today's scenes.
    """
    found = []
    for path in sorted((folder or findings_folder()).glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RecordError(f"{path}: cannot be read as JSON: {error}. Restore the file, or delete it") from error
        found.append(Findings(content, source=str(path)))
    return found


def write_findings(seed: int = 0, arm: str = DISTILLED, folder: Path | None = None, *, device: str = "cpu") -> Path:
    """Make the file of one seed: the baseline, a distilled student, and the teacher.

    Raises:
        ExperimentError: the campaign has no such run.
        CheckpointError: a run has not finished.
    """
    planned = {run.name: run for run in experiments_of(CAMPAIGN)}
    names = [f"{key}-seed{seed}" for key in (ALONE, arm)]
    if lacking := [name for name in names if name not in planned]:
        raise ExperimentError(f"{CAMPAIGN} plans no run {', '.join(lacking)}: it has {', '.join(planned)}")
    alone, distilled = (planned[name] for name in names)
    runs = {ALONE: alone, arm: distilled, TEACHER: distilled.teacher_experiment()}
    path = (folder or findings_folder()) / f"{arm}-seed{seed}.json"
    measure(runs, device).save(path)
    return path


class Example(NamedTuple):
    """A scene, its classes, what both networks make of the student's boxes, and whether they were trained."""

    sample: InstanceSample
    spec: InstanceSpec
    seen: BoxPerspectives
    trained: bool


def method_example(findings: Sequence[Findings]) -> Example:
    """From the first file of findings; where there is none, from small networks of random weights.

    The scene is the first of its split in which every class has to be found.

    >>> example = method_example([])
    >>> example.trained, len(example.seen.labels_N)
    (False, 64)
    """
    if findings:
        dataset = findings[0].dataset()
        return Example(dataset[findings[0].boxes_of], dataset.spec, findings[0].boxes(), True)
    dataset = SceneInstances(20, height=96, width=128, context_shift=1.0, seed=0, split="test")
    sizes = dict(min_size=96, max_size=128, smallest_anchor=8, proposals=200, rois=64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classes = dataset.spec.num_classes
        student = build_detector("mobilenet_v3_small", classes, width=32, box_width=64, **sizes)
        teacher = build_detector("resnet18", classes, width=48, box_width=96, **sizes).eval()
    sample = dataset[first_with_all_classes(dataset)]
    return Example(sample, dataset.spec, box_perspectives(student, teacher, sample), False)


def main(arguments: list[str] | None = None) -> int:
    """The command line of `python -m apd.report.findings`. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m apd.report.findings", description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of the students (default: 0)")
    parser.add_argument("--arm", default=DISTILLED, help=f"key of the distilled student (default: {DISTILLED})")
    parser.add_argument("--to", type=Path, help="folder of the file (default: book/results/detection-findings)")
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    chosen = parser.parse_args(arguments)

    def run() -> int:
        print(write_findings(chosen.seed, chosen.arm, chosen.to, device=chosen.device))
        return 0

    return exit_code_of(run, "apd.report.findings")


if __name__ == "__main__":
    raise SystemExit(main())
