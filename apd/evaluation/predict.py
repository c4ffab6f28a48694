"""Predictions for image files and videos: label maps, overlays, drawn detections, a table and COCO's results format."""

import glob
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, groupby, islice
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFont
from torch import Tensor, nn
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from apd.config.inference_options import WHOLE_IMAGE, InferenceOptions, require_sides, shown_size
from apd.data.batches import unit_range
from apd.data.image_folder import IMAGE_SUFFIXES, _files_below, names_of
from apd.data.images import DataError, read_image, size_of
from apd.data.instances import InstanceSpec, decode
from apd.data.specs import RGB, SCENES, DatasetSpec, distinct_colours
from apd.evaluation.average_precision import Detections, coco_results, detect
from apd.evaluation.inference import csv_row, predict_labels, resized, window_strips
from apd.fields import imported

LEAST_SCORE = 0.5  # detections below are not drawn (Detectron2's demo: 0.5); files of results hold all of them
TABLE, RESULTS = "predictions.csv", "detections.json"
VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
IN_FOLDERS = (*IMAGE_SUFFIXES, *VIDEOS)
LARGE, MOST_PIXELS = Image.MAX_IMAGE_PIXELS, 2**30  # beyond, in windows alone; and not at all (own choice)
_ANEW = dict(mode="w", encoding="utf-8", errors="replace")
AT_ONCE = 2**24  # pixels of the images in a batch, but for a single one (own choice)


class Frame(NamedTuple):
    """An image as RGB, or the frame of that `number` in a video."""

    path: Path
    number: int | None
    name: str
    image: Image.Image


def files_of(given: Sequence[Path], folder: Path) -> list[Path]:
    """The files that are named, once each: themselves, by folders of images and videos, or by patterns such as `*.png`.

    Predictions below `folder` are left out. A DataError: an argument names no file, or one would be overwritten.
    """
    real = lambda path: Path(os.path.realpath(path))  # noqa: E731
    found, folder = dict[Path, Path](), real(folder)
    for path in given:
        files = [path]
        if os.path.isdir(path):
            files = [file for file in _files_below(path) if file.suffix.lower() in IN_FOLDERS]
            if real(path) in folder.parents:
                files = [file for file in files if folder not in real(file).parents]
        elif glob.has_magic(str(path)) and not os.path.lexists(path):
            files = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if os.path.isfile(name))
        if not files:
            raise DataError(f"{path}: there is no image or video; expected files of {', '.join(IN_FOLDERS)}")
        for file in files:
            found.setdefault(file.absolute(), file)
    taken = set(map(real, found))
    for file, name in zip(found.values(), names_of(list(found.values())), strict=True):
        for lost in {folder / f"{name}-{kind}.png" for kind in ("labels", "overlay", "found")} & taken:
            raise DataError(f"{lost} would be overwritten by what is predicted for {file}; choose another folder")
    return list(found.values())


def read_frames(
    files: Sequence[Path], failed: Callable[[DataError], object], every: int, data: Any, inference: InferenceOptions
) -> Iterator[Frame]:
    """Images, and every n-th frame of videos, in turn; `failed` gets the error of a file that cannot be predicted.

    A frame's name is NAME-000123. `data` are the run's, None of detectors. Beyond pillow's limit windows are needed.
    """
    names, windows = names_of(files), data and inference.window and inference.scales == (1.0,)
    for path, name in zip(files, names, strict=True):
        try:
            if path.suffix.lower() in VIDEOS:
                found = _of_video(path, every)
            else:
                with patch.object(Image, "MAX_IMAGE_PIXELS", MOST_PIXELS if windows else LARGE):
                    found = [(None, read_image(path))]
            for number, image in found:
                own = name if number is None else f"{name}-{number:06d}"
                if number is not None and own in names:
                    raise DataError(f"{path}: another file is named as its frame {number}, {own}; rename one of them")
                if data:
                    require_sides(data, inference, [(path, image.size[::-1])])
                yield Frame(path, number, own, image)
        except DataError as error:
            large = isinstance(error.__cause__, Image.DecompressionBombError) and data and not windows
            failed(DataError(f"{error}, or give --sliding-window 0.667 and no --scales") if large else error)


def _of_video(path: Path, every: int) -> Iterator[tuple[int, Image.Image]]:
    """Every n-th frame, decoded one by one and turned as a player does."""
    av, number, reason = imported("av", f"{path}: a video", "video", DataError), None, "it has no frames"
    try:
        size_of(path)  # else a pipe would be waited for
        # nothing but this file, whatever a playlist in it may name
        with av.open(f"file:{path}", options={"protocol_whitelist": "file"}) as container:
            for number, frame in enumerate(container.decode(video=0) if container.streams.video else ()):
                if number % every == 0:
                    yield number, frame.to_image().rotate(frame.rotation, expand=True)
            if number is not None:
                return
    except (av.FFmpegError, OSError) as error:
        reason = error.strerror or error
    after = "" if number is None else f" after frame {number}"
    raise DataError(f"{path}: cannot be read as a video{after} ({reason}); damaged, or no video")


def batches(frames: Iterable[Frame], most: int) -> Iterator[list[Frame]]:
    """Neighbours of equal size together, at most so many at a time."""
    for (width, height), same in groupby(frames, key=lambda frame: frame.image.size):
        while batch := list(islice(same, max(1, min(most, AT_ONCE // (width * height))))):
            yield batch


def _pixels(images: Sequence[Image.Image]) -> Tensor:
    return unit_range(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))


def save_image(image: Image.Image, path: Path) -> None:
    """Write an image file; its folder is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def _palette_image(labels_HW: np.ndarray, spec: DatasetSpec) -> Image.Image:
    image = Image.fromarray(labels_HW, mode="P")
    image.putpalette([channel for colour in spec.palette for channel in colour])
    return image


def write_label_map(labels_HW: np.ndarray, path: Path, spec: DatasetSpec) -> None:
    """Write class numbers (uint8) as a palette PNG: its pixels are the numbers, shown in the classes' colours."""
    if labels_HW.dtype != np.uint8:
        raise ValueError(f"labels_HW is {labels_HW.dtype}: expected uint8, as of predict_labels(...).byte()")
    save_image(_palette_image(labels_HW, spec), path)


def overlay(image: Image.Image, labels_HW: np.ndarray, spec: DatasetSpec, opacity: float = 0.55) -> Image.Image:
    """Lay the classes' colours over an RGB image, in place, and return it; ignored pixels keep the image."""
    weight_HW = (labels_HW != spec.ignore_index) * np.uint8(round(255 * opacity))
    image.paste(_palette_image(labels_HW, spec).convert("RGB"), mask=Image.fromarray(weight_HW))
    return image


@torch.no_grad()
def label_maps(
    model: nn.Module, images: Sequence[Image.Image], size: tuple[int, int], inference: InferenceOptions = WHOLE_IMAGE
) -> NDArray[np.uint8]:
    """Class numbers (B, H, W) of RGB images of one size; the network, in eval mode, sees them at `size`.

    Windows of one scale at the images' own size, as beyond pillow's limit they always are, are averaged strip by strip:
    memory holds a few of them, 4 bytes x images x classes x the window's height x the images' width.
    """
    (width, height), device = images[0].size, next(model.parameters()).device
    own = size == (height, width) or width * height > LARGE
    if not own or inference.window is None or inference.scales != (1.0,):
        shown = resized(_pixels(images), size).to(device)
        return predict_labels(model, shown, (height, width), inference=inference).byte().cpu().numpy()

    def rows(top: int, bottom: int) -> Tensor:
        with patch.object(Image, "MAX_IMAGE_PIXELS", None):  # of which a crop may have more, too
            return _pixels([image.crop((0, top, width, bottom)) for image in images]).to(device)

    strips = window_strips(model, rows, (height, width), inference)
    return np.concatenate([strip.argmax(1).byte().cpu().numpy() for strip in strips], 1)


def segment_files(
    model: nn.Module,
    groups: Iterable[list[Frame]],
    folder: Path,
    spec: DatasetSpec,
    data: Any,
    inference: InferenceOptions,
) -> Iterator[Path]:
    """Write `NAME-labels.png` (palette image of class numbers) and `NAME-overlay.png`, of each image's own size.

    Yields each path once it is written, and last that of `predictions.csv`: a row an image, with file, frame, height,
    width and each class's share of the pixels. The network is in eval mode and sees images as the run's `data` say.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / TABLE).open(**_ANEW) as table:
        table.write(csv_row("file", "frame", "height", "width", *spec.class_names))
        for group in groups:
            width, height = group[0].image.size
            found = label_maps(model, [frame.image for frame in group], shown_size(data, height, width), inference)
            for (path, number, name, image), labels_HW in zip(group, found, strict=True):
                labels, over = (folder / f"{name}-{kind}.png" for kind in ("labels", "overlay"))
                write_label_map(labels_HW, labels, spec)
                save_image(overlay(image, labels_HW, spec), over)
                shares = (count / labels_HW.size for count in Image.fromarray(labels_HW).histogram())
                table.write(csv_row(path, number, height, width, *islice(shares, spec.num_classes)))
                yield from (labels, over)
    yield folder / TABLE


def colours_of(spec: InstanceSpec) -> list[RGB]:
    """A colour for each class: the scenes' own where the name is one of theirs, else one far from others."""
    own = dict(zip(SCENES.class_names, SCENES.palette, strict=True))
    others = distinct_colours(min(spec.num_classes, 255))
    return [own.get(name, others[place % len(others)]) for place, name in enumerate(spec.class_names)]


def drawn(
    image_HW3: NDArray[np.uint8], found: Detections, spec: InstanceSpec, least_score: float = LEAST_SCORE
) -> Image.Image:
    """An RGB image with its detections of at least `least_score`: tinted masks, boxes, names and scores."""
    height, width = image_HW3.shape[:2]
    scores_N, labels_N = found.scores_N, found.labels_N.tolist()
    order = [place for place in scores_N.argsort(stable=True).tolist() if scores_N[place] >= least_score]
    colours, canvas_3HW = colours_of(spec), torch.tensor(image_HW3).permute(2, 0, 1)
    masks = {} if found.masks is None else {place: decode(found.masks[place], height, width) for place in order}
    for place, mask_HW in sorted(masks.items(), key=lambda item: -int(item[1].sum())):  # the smaller on top
        colour = [colours[labels_N[place]]]
        canvas_3HW = draw_segmentation_masks(canvas_3HW, torch.from_numpy(mask_HW), alpha=0.45, colors=colour)
    if order:  # the surest on top
        size, own = max(9, round(min(height, width) / 32)), [colours[labels_N[place]] for place in order]
        labels = [f"{spec.class_names[labels_N[place]]} {scores_N[place]:.2f}" for place in order]
        contrast = ["black" if np.dot(colour, (0.299, 0.587, 0.114)) > 140 else "white" for colour in own]
        font = io.BytesIO(ImageFont.load_default(size).font_bytes)  # pillow's own font is in no file
        style = {"font": font, "font_size": size, "label_colors": contrast, "fill_labels": True}
        thick = max(1, round(min(height, width) / 240))
        canvas_3HW = draw_bounding_boxes(canvas_3HW, found.boxes_N4[order], labels, own, width=thick, **style)
    return Image.fromarray(canvas_3HW.permute(1, 2, 0).numpy())


def detect_files(
    detector: nn.Module,
    groups: Iterable[list[Frame]],
    folder: Path,
    spec: InstanceSpec,
    ids: dict[Path, int],
    least: float,
) -> Iterator[Path]:
    """Write `NAME-found.png` for each image; yields its path, and last those of `predictions.csv` and the JSON.

    `detections.json` holds all detections, in COCO's results format with `file_name`, and `frame` of a video, besides;
    `ids` are the files' numbers in it. The table has a row for each that is drawn, of at least the `least` score.
    """
    device, further, separator = next(detector.parameters()).device, count(max(ids.values()) + 1), "["
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / TABLE).open(**_ANEW) as table, (folder / RESULTS).open(**_ANEW) as results:
        table.write(csv_row("file", "frame", "class", "score", "x0", "y0", "x1", "y1"))
        for group in groups:
            images = _pixels([frame.image for frame in group]).to(device)
            for (path, number, name, image), found in zip(group, detect(detector, list(images)), strict=True):
                about: dict[str, Any] = {"file_name": name.removesuffix(path.suffix) + path.suffix}
                about |= {} if number is None else {"frame": number}
                for entry in coco_results(found, ids[path] if number is None else next(further), spec):
                    results.write(separator + json.dumps(entry | about))
                    separator = ",\n"
                for label, score, box in zip(found.labels_N.tolist(), found.scores_N.tolist(), found.boxes_N4.tolist()):
                    if score >= least:
                        table.write(csv_row(path, number, spec.class_names[label], score, *box))
                save_image(drawn(np.asarray(image), found, spec, least), folder / f"{name}-found.png")
                yield folder / f"{name}-found.png"
        results.write("[]\n" if separator == "[" else "]\n")
    yield from (folder / TABLE, folder / RESULTS)
