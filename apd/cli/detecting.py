"""What `apd evaluate` and `apd predict` do for a finished run of detection."""

from pathlib import Path

from apd.config.experiment import ExperimentError
from apd.data.coco import coco_spec
from apd.data.images import DataError
from apd.data.instances import InstanceSample, InstanceSpec
from apd.data.rle import DetectionExtraMissing, coco_library
from apd.data.scenes import OBJECTS
from apd.evaluation.average_precision import Detections, ap_lines, scored
from apd.evaluation.predict import LEAST_SCORE, detect_in_images, drawn, save_image
from apd.training.exit_codes import UsageError
from apd.training.record import Record
from apd.training.run import task_of, trained_network


def evaluate_detector(run: Path, record: Record, split: str, *, pictures: Path | None, device: str | None) -> int:
    """Print AP of every class that occurs in a split, and of all; write drawn images where asked for."""
    _require_library()
    data, task = record.experiment.data, task_of(record.experiment)
    if data.name == "coco" and split == "test":
        raise UsageError(f"--split test: this run's data have train ({data.train_part}) and val ({data.val_part}) only")
    dataset = task.split(split)
    detector = trained_network(run, device=device)

    def write(sample: InstanceSample, found: Detections) -> None:
        picture = drawn(sample.image_3HW.permute(1, 2, 0).numpy(), found, dataset.spec)
        save_image(picture, pictures / f"{sample.name}-found.png")

    found = scored(
        detector,
        dataset,
        batch_size=task.at_a_time,
        progress=split,
        on_image=None if pictures is None else write,
    )
    for line in ap_lines(found.tables(), dataset.spec.class_names):
        print(line)
    print(f"{len(dataset)} images of {split_in_words(record, split)}")
    return 0


def predict_things(
    run: Path, record: Record, images: tuple[Path, ...], to: Path, *, least_score: float | None, device: str | None
) -> int:
    """Draw what is found in pictures, and write all findings in COCO's results format."""
    least_score = LEAST_SCORE if least_score is None else least_score
    if not 0 <= least_score <= 1:
        raise UsageError(f"--least-score {least_score}: expected a number from 0 to 1")
    if record.experiment.network.kind == "mask_rcnn":
        _require_library()
    spec = _spec_of_run(record)
    detector = trained_network(run, device=device)
    for path in detect_in_images(detector, images, to, spec, least_score=least_score):
        print(path)
    return 0


def split_in_words(record: Record, split: str) -> str:
    """The split's name, and whether the student was trained on its pictures.

    A score on pictures that were trained on says how well they are known by heart, so it is never told without that.
    """
    data = record.experiment.data
    known = split == "val" and data.name == "coco" and data.val_part == data.train_part
    return f"{split}, which are the pictures that were trained on" if known else split


def _spec_of_run(record: Record) -> InstanceSpec:
    """Names and numbers of the classes; COCO's numbers stand in its file of annotations."""
    data = record.experiment.data
    if data.name == "scenes":
        return OBJECTS
    spec = coco_spec(data.folder, data.val_part, annotations=data.annotations)
    if list(spec.class_names) != record.class_names:
        raise DataError(
            f"{data.folder}: {data.val_part} has other categories than this run was trained on: "
            f"{spec.num_classes} beside {len(record.class_names)}, or others, or in another order"
        )
    return spec


def _require_library() -> None:
    try:
        coco_library("scoring and drawing what a detector finds")
    except DetectionExtraMissing as error:
        raise ExperimentError(str(error)) from error
