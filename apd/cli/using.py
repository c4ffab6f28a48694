"""The commands for what a finished run leaves behind: evaluate, predict, export, records."""

import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import nn
from tqdm import tqdm
from tyro.conf import FlagCreatePairsOff, Positional, arg

from apd.cli.app import parse
from apd.config.datasets import meaning_of, spec_of, what_changed
from apd.config.experiment import Experiment
from apd.config.inference_options import InferenceOptions, require_sides, require_split_sides
from apd.data.coco import coco_names
from apd.data.images import DataError, LongSide, MissingData
from apd.data.instances import InstanceSample, InstanceSpec
from apd.data.scenes import OBJECTS
from apd.data.specs import DatasetSpec, distinct_colours
from apd.evaluation import inference as segmentation
from apd.evaluation import predict as predictions
from apd.evaluation.average_precision import Detections, ap_lines, image_ids, scored
from apd.evaluation.export import SUFFIXES, export_network, model_card
from apd.evaluation.inference import class_csv, scores, too_weak
from apd.fields import UsageError, shown
from apd.models.segmenter import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from apd.training.record import Record, RecordError, read_record, records_folder
from apd.training.run import finished_folder, task_of, trained_network
from apd.training.schema import read_json

Run = Annotated[Positional[Path], arg(metavar="RUN")]
FLAGS = (FlagCreatePairsOff,)  # a switch that is off by default needs no --no- form


@dataclass(frozen=True, kw_only=True)
class _OfARun:
    run: Run  #: Folder of a finished run, or its record.json, whose path `apd train` prints.
    sliding_window: float | None = None
    """Predict windows of the training crop's size; the number is the step from one to the next, as a part of a window
    (released code: 0.667)."""
    flip: bool = False  #: Average each prediction with that of the mirror image.
    scales: tuple[float, ...] = ()  #: Average over these multiples of the image's size; 1 alone: once, as a whole.
    device: str = ""  #: Torch device; empty is cuda where there is one, else cpu.

    def inference(self, experiment: Experiment) -> InferenceOptions:
        stride, data = self.sliding_window, experiment.data
        if stride is None and not self.flip and not self.scales:
            return experiment.inference
        if experiment.task == "detection":
            reason = "a detector sees the whole image once, at the size that it was trained for"
            raise UsageError(f"--sliding-window, --flip and --scales are for segmentation: {reason}")
        windows = {} if stride is None else {"window": (data.crop_height, data.crop_width), "stride": stride}
        try:
            options = InferenceOptions(**windows, flip=self.flip, scales=self.scales or (1.0,))
            if data.height:  # else every image has a size of its own
                require_sides(data, options, [("an image of this run", (data.height, data.width))])
        except (ValueError, DataError) as error:
            named = "--sliding-window" if ".stride" in str(error) else f"--scales {' '.join(map(str, self.scales))}"
            raise UsageError(f"{named}: {error}") from error
        return options


@dataclass(frozen=True, kw_only=True)
class _Evaluate(_OfARun):
    split: Literal["train", "val", "test", "test_out_of_place", "night"] = "val"
    """Split of the run's own data; the last two are labelmefacade's."""
    csv: Path | None = None  #: File for a table of the classes: IoU, accuracy and labelled pixels. For segmentation.
    pictures: Path | None = None
    """Folder for every image's label map, NAME-labels.png with the class colours as palette, or for what a detector
    finds in it, NAME-found.png. Where stems repeat, NAME begins with folders."""


def evaluate(arguments: list[str], sentence: str) -> int:
    """Print scores of every class and of all; write a table and images where asked for."""
    chosen = parse(_Evaluate, arguments, prog="apd evaluate", description=sentence, config=FLAGS)
    record = record_of(chosen.run)
    data, detection = record.experiment.data, record.experiment.task == "detection"
    options = chosen.inference(record.experiment)
    # before minutes go into scores that could not be written
    if chosen.csv is not None and (chosen.csv.is_dir() or not os.access(chosen.csv.parent, os.W_OK)):
        raise UsageError(f"--csv {chosen.csv}: expected a file in a folder that is there and can be written")
    if chosen.pictures is not None and chosen.pictures.exists() and not chosen.pictures.is_dir():
        raise UsageError(f"--pictures {chosen.pictures}: expected a folder, and this is a file")
    if detection and chosen.csv is not None:
        raise UsageError("--csv is for segmentation; a detector's AP of every class is printed")
    if chosen.split in ("test_out_of_place", "night") and data.name != "labelmefacade":
        raise UsageError(f"--split {chosen.split}: only labelmefacade has it, and this run's data are {data.name}")
    if detection and data.name == "coco" and chosen.split == "test":
        raise UsageError(f"--split test: this run's data have train ({data.train_part}) and val ({data.val_part}) only")
    task, training = task_of(record.experiment), chosen.split == "train"
    dataset = task.split(chosen.split)
    more = training and getattr(data, "unlabelled", False)  # trained on, and of no use for scores
    _compare(record, dataset.spec, chosen.split, task.split("train", unlabelled=True) if more else dataset)
    if training and getattr(data, "long_side", 0):
        dataset = LongSide(dataset, data.long_side)
    model = trained_network(chosen.run, device=chosen.device or None)
    (_evaluate_detector if detection else _evaluate_segmenter)(chosen, record, dataset, model, options)
    return 0


def _evaluate_segmenter(chosen: _Evaluate, record: Record, dataset: Any, model: nn.Module, options: Any) -> None:
    require_split_sides(record.experiment.data, dataset, options)

    def write(predictions_BHW: torch.Tensor, names: tuple[str, ...]) -> None:
        for labels_HW, name in zip(predictions_BHW.byte().numpy(), names, strict=True):
            predictions.write_label_map(labels_HW, chosen.pictures / f"{name}-labels.png", dataset.spec)

    how = dict(precision=record.experiment.precision, inference=options, progress=chosen.split)
    matrix_KK = segmentation.confusion_of(model, dataset, on_batch=write if chosen.pictures else None, **how)
    result, names = scores(matrix_KK), dataset.spec.class_names
    for name, iou, accuracy in zip(names, result.iou, result.accuracy, strict=True):
        print(f"{name:12s} IoU {iou:.4f}  accuracy {accuracy:.4f}")
    means = f"mIoU {result.miou:.4f} over {result.classes_counted} classes, mAcc {result.macc:.4f}"
    print(f"{means}, aAcc {result.aacc:.4f}, {len(dataset)} images of {chosen.split}")
    if warning := too_weak(matrix_KK, names):
        print(f"warning: {warning}", file=sys.stderr)
    if chosen.csv is not None:
        chosen.csv.write_text(class_csv(matrix_KK, names), encoding="utf-8")


def _evaluate_detector(chosen: _Evaluate, record: Record, dataset: Any, model: nn.Module, _options: Any) -> None:
    def write(sample: InstanceSample, found: Detections) -> None:
        image = predictions.drawn(sample.image_3HW.permute(1, 2, 0).numpy(), found, dataset.spec)
        predictions.save_image(image, chosen.pictures / f"{sample.name}-found.png")

    how = dict(batch_size=task_of(record.experiment).at_a_time, progress=chosen.split)
    tables = scored(model, dataset, on_image=write if chosen.pictures else None, **how).tables()
    counted = f"{len(dataset)} images of {split_described(record, chosen.split)}"
    print(*ap_lines(tables, dataset.spec.class_names), counted, sep="\n")


@dataclass(frozen=True, kw_only=True)
class _Predict(_OfARun):
    images: Annotated[Positional[tuple[Path, ...]], arg(metavar="IMAGE")]  #: Images, videos, folders, or '*.png'.
    to: Path = Path("predictions")
    """Folder for NAME-labels.png (class numbers, with the class colours as palette) and NAME-overlay.png, of a detector
    for NAME-found.png and detections.json (COCO's results format), and for predictions.csv. Where stems repeat, NAME
    begins with folders; frames are NAME-000123."""
    batch: int = 8  #: Images of equal size that are predicted at a time.
    every: int = 1  #: Of a video, predict every n-th frame.
    least_score: float = predictions.LEAST_SCORE  #: Detectors only: detections below this score are not drawn.


def predict(arguments: list[str], sentence: str) -> int:
    """Write what a run's network predicts for images of any size: 1 where a file could not be read."""
    chosen = parse(_Predict, arguments, prog="apd predict", description=sentence, config=FLAGS)
    if not chosen.images:
        raise UsageError("apd predict needs at least one image: apd predict RUN IMAGE…")
    for name, value in (("batch", chosen.batch), ("every", chosen.every)):
        if not 1 <= value <= 10**6:
            raise UsageError(f"--{name} {shown(value)}: expected a whole number of at least 1 and at most 1000000")
    record, least, to = record_of(chosen.run), chosen.least_score, chosen.to
    options, data = chosen.inference(record.experiment), record.experiment.data
    detection = record.experiment.task == "detection"
    if not 0 <= least <= 1 or (least != predictions.LEAST_SCORE and not detection):
        raise UsageError(f"--least-score {least}: expected a number from 0 to 1, for a run of detection")
    files, failed = predictions.files_of(chosen.images, to), []

    def note(error: DataError) -> None:
        failed.append(error)
        bar.write(f"apd: {error}", file=sys.stderr)

    spec, known = _spec_or_names(record)
    model = trained_network(chosen.run, device=chosen.device or None)
    with tqdm(unit=" images", disable=None, leave=False) as bar:
        frames = predictions.read_frames(files, note, chosen.every, None if detection else data, options)
        groups = predictions.batches(frames, chosen.batch)
        if detection:
            numbers = dict(zip(files, image_ids(files, known)))
            written = predictions.detect_files(model, groups, to, spec, numbers, least)
        else:
            written = predictions.segment_files(model, groups, to, spec, data, options)
        for path in written:
            bar.write(str(path), file=sys.stdout)
            bar.update(path.name.endswith(("-overlay.png", "-found.png")))
    return 1 if failed else 0


@dataclass(frozen=True)
class _Export:
    run: Run  #: Folder of a finished run.
    to: str  #: NAME.onnx, NAME.pt2 (torch.export) or FOLDER/ (as on the Hugging Face hub); a file is replaced.


def export(arguments: list[str], sentence: str) -> int:
    """Write a run's student as a program of its own, or as a folder for the Hugging Face hub."""
    chosen = parse(_Export, arguments, prog="apd export", description=sentence)
    to, as_folder = Path(chosen.to), chosen.to.endswith(("/", os.sep)) or os.path.isdir(chosen.to)
    if not as_folder and to.suffix not in SUFFIXES:
        raise UsageError(f"--to {to}: expected a name that ends with {' or '.join(SUFFIXES)}, or a folder, as {to}/")
    record = record_of(chosen.run)
    experiment, data = record.experiment, record.experiment.data
    if experiment.task == "detection":
        fix = "apd.training.run.trained_network(RUN) is torchvision's own, to be exported as torchvision describes"
        raise UsageError(f"apd export writes networks of segmentation, and this run's is a detector: {fix}")
    if as_folder and experiment.network.builder:
        reason = f"this run's is made by {experiment.network.builder}, whose code the folder would lack"
        raise UsageError(f"--to {to}/: {reason}; write {' or '.join(SUFFIXES)}")
    size = (data.height, data.width) if data.height else (data.crop_height, data.crop_width)
    model, names = trained_network(chosen.run), record.class_names
    if not as_folder:
        print(export_network(model, to, size=size, class_names=names))
        return 0
    kept = ", which was there and is kept as it was" if (to / CARD_FILE).exists() else ""
    about = {"id2label": dict(enumerate(names)), "image_size": size, "experiment": record.content["fingerprint"]}
    model.save_pretrained(to, about=about, card=model_card(record, size))
    print(f"{to}: {CONFIG_FILE}, {WEIGHTS_FILE}, {CARD_FILE}{kept}")
    return 0


@dataclass(frozen=True)
class _Records:
    what: Annotated[Positional[Literal["check"]], arg(metavar="check")]  #: What to do with them.
    folder: Annotated[Positional[Path | None], arg(metavar="[FOLDER]")] = None
    """Folder of records, or of folders of them such as those of runs; default is book/results, the committed ones."""


def records(arguments: list[str], sentence: str) -> int:
    """A line for each record that is refused, then how many are whole: 0 where all are, 1 where not."""
    chosen = parse(_Records, arguments, prog="apd records", description=sentence)
    folder = chosen.folder or records_folder("")
    counts, known = Counter[str](), dict[str, tuple[Path, list[int]]]()
    for path in sorted(folder.rglob("*.json")) if folder.is_dir() else [folder]:
        try:
            content = read_json(path)
            others = {"rows", "runs", "sha256", "architectures"}
            if isinstance(content, dict) and others & content.keys() and "curves" not in content:
                counts["other"] += 1  # measurements, which the pages check that read them, or of a checkpoint
                continue
            kind = "whole" if "digest" in Record(content, str(path)).content else "older"
            labels = [sum(row) for row in content.get("confusion", ())] or content["ap"]["boxes"]["things"]
            data = content["data"]  # of the same files, labels may mean something else
            of = repr((data["fingerprint"], data.get("identities", {}).get(data["split"])))
            first, same = known.setdefault(of, (path, labels))
            if labels != same:
                raise RecordError(f"{path}: it counts other labels than {first}, which is of the same data")
            counts[kind] += 1
        except RecordError as error:
            counts["refused"] += 1
            print(error)
    whole, older, refused, others = (counts[kind] for kind in ("whole", "older", "refused", "other"))
    if not whole + older + refused:
        raise RecordError(f"{folder}: no records; expected the JSON files that a run or a campaign wrote")
    kinds = f"{older} of them of the older kind, without a digest of their content"
    print(f"{folder}: {whole + older} records are whole, {kinds}; {refused} refused; {others} files are no records")
    return 1 if refused else 0


def record_of(run: Path) -> Record:
    """The record of a finished run, which is named by its folder or by a file in it; UsageError where there is none."""
    folder = finished_folder(run)
    if not (folder / "record.json").is_file():
        raise UsageError(f"{folder} is not the folder of a finished run: it holds no record.json")
    return read_record(folder / "record.json")


def split_described(record: Record, split: str) -> str:
    """The split's name, and where the student was trained on its images, that: such a score shows how it overfits."""
    data = record.experiment.data
    trained_on = split == "val" and data.name == "coco" and data.val_part == data.train_part
    return f"{split}, which are the images that were trained on" if trained_on else split


def _spec_or_names(record: Record) -> tuple[DatasetSpec | InstanceSpec, dict[str, int]]:
    """The compared spec of the run's data or, where they are not at hand, the classes with colours by default; and the
    ids of COCO's images by name, as far as they are known."""
    data, names, detects = record.experiment.data, tuple(record.class_names), record.experiment.task == "detection"
    spec, ids = OBJECTS, {}
    try:
        if not detects:
            spec = spec_of(data)
        elif data.name != "scenes":
            spec, ids = coco_names(data.folder, data.val_part, annotations=data.annotations)
        _compare(record, spec)
    except MissingData as error:
        known = record.identities["train"]
        if detects and "category_ids" not in known:  # an older kind of record, without what results are numbered by
            raise
        print(f"note: the run's data are missing, so classes have colours by default ({error})", file=sys.stderr)
        spec = DatasetSpec(data.name, names, distinct_colours(len(names)))
        spec = InstanceSpec(data.name, names, tuple(known["category_ids"])) if detects else spec
    return spec, ids


def _compare(record: Record, spec: DatasetSpec | InstanceSpec, split: str = "val", dataset: Any = None) -> None:
    """Refuse data whose labels do not mean what the run has learned, and note what else differs or is not known."""
    known, today = record.identities.get(split, record.identities["train"]), meaning_of(spec)
    learned = {"class_names": record.class_names} | {part: known[part] for part in today if part in known}
    if found := what_changed({split: learned}, {split: today}):
        where = f"{record.experiment.data.folder or spec.name}: labels mean something else"
        raise DataError(f"{where} than this run was trained on ({found}); restore what they meant, or train again")
    if "identities" not in record.content["data"]:
        print("note: the record is of an older kind: only the names of classes were compared", file=sys.stderr)
    if dataset is not None and split in record.identities and known["fingerprint"] != dataset.fingerprint():
        print(f"note: images or labels of {split} are not those that the record was made from", file=sys.stderr)
