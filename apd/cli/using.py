"""The commands for a finished run: evaluate, predict, export."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from apd.cli.parsing import parse
from apd.config.experiment import Experiment
from apd.config.inference import InferenceOptions, require_sides, require_split_sides, shown_size
from apd.data.images import DataError
from apd.training.exit_codes import UsageError
from apd.training.record import Record, read_record
from apd.training.run import finished_folder


@dataclass(frozen=True, kw_only=True)
class Looks:
    """How the network is shown a picture. Without any of these, as its experiment says."""

    sliding_window: float | None = None
    """Look through windows of the training crop's size; the number is the step from one to the next, as a part of a
    window (released code: 0.667)."""
    flip: bool = False
    """Average each look with that at its mirror image."""
    scales: tuple[float, ...] = ()
    """Average over these sizes, as multiples of the picture's own; --scales 1 alone is one look at the whole."""

    def inference(self, experiment: Experiment) -> InferenceOptions:
        """What was asked for, or else what the experiment says."""
        if self.sliding_window is None and not self.flip and not self.scales:
            return experiment.inference
        if experiment.task == "detection":
            told = "a detector looks once at the whole picture, at the size that it was trained for"
            raise UsageError(f"--sliding-window, --flip and --scales are for segmentation: {told}")
        data, scales = experiment.data, self.scales or (1.0,)
        window = None if self.sliding_window is None else (data.crop_height, data.crop_width)
        stride = InferenceOptions.stride if self.sliding_window is None else self.sliding_window
        try:
            looks = InferenceOptions(window=window, stride=stride, flip=self.flip, scales=scales)
        except ValueError as error:
            raise UsageError(f"{'--sliding-window' if '.stride' in str(error) else '--scales'}: {error}") from error
        if data.height:  # else every image has a size of its own
            try:
                require_sides(data, looks, [("an image of this run", (data.height, data.width))])
            except DataError as error:
                raise UsageError(f"--scales {' '.join(map(str, scales))}: {error}") from error
        return looks


def evaluate(arguments: list[str]) -> int:
    """Score a finished run again on a split of its data."""
    import tyro

    from apd.cli.detecting import evaluate_detector
    from apd.config.datasets import build_split
    from apd.evaluation.inference import confusion_of
    from apd.evaluation.metrics import class_csv, scores, too_weak
    from apd.evaluation.predict import write_label_map
    from apd.training.run import trained_network

    @dataclass(frozen=True, kw_only=True)
    class Evaluate(Looks):
        run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
        """Folder of a finished run, or its record.json, whose path `apd train` prints."""
        split: Literal["train", "val", "test"] = "val"
        """Split of the run's own data."""
        csv: Path | None = None
        """File for a table of the classes: IoU, accuracy and labelled pixels. For segmentation."""
        pictures: Path | None = None
        """Folder for every image's label map, NAME-labels.png with the class colours as palette, or for what a detector
        finds in it, NAME-found.png. Where stems repeat, NAME begins with folders."""
        device: str = ""
        """Torch device; empty is cuda where there is one, else cpu."""

    chosen = parse(Evaluate, arguments, prog="apd evaluate", description=evaluate.__doc__, config=_flags())
    record = record_of(chosen.run)
    experiment, device = record.experiment, chosen.device or None
    looks = chosen.inference(experiment)
    # before minutes go into scores that could not be written
    if chosen.csv is not None and (chosen.csv.is_dir() or not os.access(chosen.csv.parent, os.W_OK)):
        raise UsageError(f"--csv {chosen.csv}: expected a file in a folder that is there and can be written")
    if chosen.pictures is not None and chosen.pictures.exists() and not chosen.pictures.is_dir():
        raise UsageError(f"--pictures {chosen.pictures}: expected a folder, and this is a file")
    if experiment.task == "detection":
        if chosen.csv is not None:
            raise UsageError("--csv is for segmentation; a detector's AP of every class is printed")
        return evaluate_detector(chosen.run, record, chosen.split, pictures=chosen.pictures, device=device)
    dataset = build_split(experiment.data, chosen.split)
    require_split_sides(experiment.data, dataset, looks)
    model = trained_network(chosen.run, device=device)

    def write(predictions_BHW, names: tuple[str, ...]) -> None:
        for labels_HW, name in zip(predictions_BHW.byte().numpy(), names, strict=True):
            write_label_map(labels_HW, chosen.pictures / f"{name}-labels.png", dataset.spec)

    matrix_KK = confusion_of(
        model,
        dataset,
        precision=experiment.precision,
        inference=looks,
        progress=chosen.split,
        on_batch=None if chosen.pictures is None else write,
    )
    result, names = scores(matrix_KK), dataset.spec.class_names
    for name, iou, accuracy in zip(names, result.iou, result.accuracy, strict=True):
        print(f"{name:12s} IoU {iou:.4f}  accuracy {accuracy:.4f}")
    print(
        f"mIoU {result.miou:.4f} over {result.classes_counted} classes, mAcc {result.macc:.4f}, "
        f"aAcc {result.aacc:.4f}, {len(dataset)} images of {chosen.split}"
    )
    if told := too_weak(matrix_KK, names):
        print(f"warning: {told}", file=sys.stderr)
    if chosen.csv is not None:
        try:
            chosen.csv.write_text(class_csv(matrix_KK, names), encoding="utf-8")
        except OSError as error:
            raise DataError(f"{chosen.csv}: cannot write the table ({error})") from error
    return 0


def predict(arguments: list[str]) -> int:
    """Write the label map and an overlay of any picture, or what a detector finds in it."""
    import tyro

    from apd.cli.detecting import predict_things
    from apd.config.datasets import spec_of
    from apd.data.image_folder import names_of
    from apd.evaluation.predict import predict_image, read_image
    from apd.training.run import trained_network

    @dataclass(frozen=True, kw_only=True)
    class Predict(Looks):
        run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
        """Folder of a finished run."""
        images: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="PICTURE")]
        """Pictures of any size and format."""
        to: Path = Path("predictions")
        """Folder for NAME-labels.png (class numbers, with the class colours as palette) and NAME-overlay.png; of a
        detector for NAME-found.png and detections.json (COCO's results format). Where stems repeat, NAME begins with
        folders."""
        least_score: float | None = None
        """Detectors only: findings below this score are not drawn (0.5 if it is not given)."""
        device: str = ""
        """Torch device; empty is cuda where there is one, else cpu."""

    chosen = parse(Predict, arguments, prog="apd predict", description=predict.__doc__, config=_flags())
    if not chosen.images:
        raise UsageError("apd predict needs at least one picture: apd predict RUN PICTURE…")
    record = record_of(chosen.run)
    experiment, device = record.experiment, chosen.device or None
    looks, data = chosen.inference(experiment), experiment.data
    if experiment.task == "detection":
        score = chosen.least_score
        return predict_things(chosen.run, record, chosen.images, chosen.to, least_score=score, device=device)
    if chosen.least_score is not None:
        raise UsageError(f"--least-score {chosen.least_score}: this run is of segmentation, which has no findings")
    sizes = [read_image(image).size[::-1] for image in chosen.images]  # all are read before the first is predicted
    require_sides(data, looks, zip(chosen.images, sizes, strict=True))
    model = trained_network(chosen.run, device=device)
    for image, name, size in zip(chosen.images, names_of(chosen.images), sizes, strict=True):
        shown = shown_size(data, *size)
        for path in predict_image(model, image, chosen.to, spec_of(data), size=shown, inference=looks, name=name):
            print(path)
    return 0


def export(arguments: list[str]) -> int:
    """Write a finished run's student, alone, as ONNX or as a torch.export program."""
    import tyro

    from apd.config.datasets import spec_of
    from apd.evaluation.export import SUFFIXES, export_network
    from apd.training.run import trained_network

    @dataclass(frozen=True)
    class Export:
        run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
        """Folder of a finished run."""
        to: Path
        """File to write: NAME.onnx for ONNX, NAME.pt2 for torch.export. One that is there is replaced."""

    chosen = parse(Export, arguments, prog="apd export", description=export.__doc__)
    if chosen.to.suffix not in SUFFIXES:
        raise UsageError(f"--to {chosen.to}: expected a name that ends with {' or '.join(SUFFIXES)}")
    experiment = record_of(chosen.run).experiment
    data = experiment.data
    if experiment.task == "detection":
        raise UsageError(
            "apd export writes networks of segmentation: this run's is a detector, whose findings vary in number. Its "
            "network is torchvision's own, from apd.training.run.trained_network(RUN), and torchvision's documentation "
            "tells how its detectors are exported"
        )
    model = trained_network(chosen.run, device="cpu")
    size = (data.height, data.width) if data.height else (data.crop_height, data.crop_width)
    print(export_network(model, chosen.to, size=size, class_names=spec_of(data).class_names))
    return 0


def record_of(run: Path) -> Record:
    """The record of a finished run, which is named by its folder or by a file in it.

    Raises:
        UsageError: there is none.
    """
    folder = finished_folder(run)
    if not (folder / "record.json").is_file():
        raise UsageError(f"{folder} is not the folder of a finished run: it holds no record.json")
    return read_record(folder / "record.json")


def _flags() -> tuple[Any, ...]:
    """A switch that is off by default needs no --no- form."""
    import tyro

    return (tyro.conf.FlagCreatePairsOff,)
