"""Predictions for single images as files: label maps, overlays, drawn detections and COCO's results format."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFont
from torch import nn
from torchvision.ops import box_convert
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from apd.config.inference_options import WHOLE_IMAGE, InferenceOptions
from apd.data.batches import unit_range
from apd.data.image_folder import names_of
from apd.data.images import DataError, read_image
from apd.data.instances import InstanceSpec
from apd.data.rle import decode
from apd.data.specs import RGB, SCENES, DatasetSpec, distinct_colours
from apd.evaluation.average_precision import Detections, detect
from apd.evaluation.inference import predict_labels, resized

LEAST_SCORE = 0.5  # detections below are not drawn (Detectron2's demo: 0.5); files of results hold all of them
RESULTS = "detections.json"


def overlay(image_HW3: np.ndarray, labels_HW: np.ndarray, spec: DatasetSpec, opacity: float = 0.55) -> np.ndarray:
    """The image with its classes' colours laid over it, uint8 (H, W, 3); ignored pixels keep the image."""
    colours_K3 = np.zeros((256, 3), dtype=np.float32)
    colours_K3[: len(spec.palette)] = spec.palette
    weight_HW1 = np.where(labels_HW == spec.ignore_index, 0.0, opacity)[..., None]
    return (image_HW3 * (1 - weight_HW1) + colours_K3[labels_HW] * weight_HW1).round().astype(np.uint8)


def predict_image(
    model: nn.Module,
    path: Path,
    folder: Path,
    spec: DatasetSpec,
    *,
    size: tuple[int, int],
    inference: InferenceOptions = WHOLE_IMAGE,
    name: str = "",
) -> tuple[Path, Path]:
    """Predict one image and write `NAME-labels.png` (palette image of class numbers) and `NAME-overlay.png`.

    The network, in eval mode, sees it at `size` (height, width); files have its own size. NAME is its stem or `name`.
    """
    pixels_HW3 = np.asarray(read_image(path))
    images_B3HW = unit_range(torch.tensor(pixels_HW3).permute(2, 0, 1))[None]
    device = next(model.parameters()).device
    found = predict_labels(model, resized(images_B3HW, size).to(device), pixels_HW3.shape[:2], inference=inference)
    labels_HW = found[0].byte().cpu().numpy()
    written = tuple(folder / f"{name or path.stem}-{kind}.png" for kind in ("labels", "overlay"))
    write_label_map(labels_HW, written[0], spec)
    save_image(Image.fromarray(overlay(pixels_HW3, labels_HW, spec)), written[1])
    return written


def write_label_map(labels_HW: np.ndarray, path: Path, spec: DatasetSpec) -> None:
    """Write class numbers (uint8) as a palette PNG: its pixels are the numbers, shown in the classes' colours."""
    label_map = Image.fromarray(labels_HW, mode="P")
    label_map.putpalette([channel for colour in spec.palette for channel in colour])
    save_image(label_map, path)


def save_image(image: Image.Image, path: Path) -> None:
    """Write an image file; its folder is made if it is not there. A DataError says that it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    except OSError as error:
        raise DataError(f"{path.parent}: cannot write predictions ({error})") from error


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


def coco_results(found: Detections, image_id: int, spec: InstanceSpec) -> list[dict[str, Any]]:
    """Detections in COCO's results format, the surest first; a class has its file's number, else its place from 1."""
    numbers = spec.category_ids or range(1, spec.num_classes + 1)
    entries = []
    for place in found.scores_N.argsort(descending=True, stable=True).tolist():
        box = box_convert(found.boxes_N4[place].double(), "xyxy", "xywh").tolist()
        entry: dict[str, Any] = {"image_id": image_id, "category_id": numbers[int(found.labels_N[place])]}
        entry |= {"bbox": [round(value, 2) for value in box], "score": round(float(found.scores_N[place]), 5)}
        if found.masks is not None:
            mask = found.masks[place]
            entry["segmentation"] = {"size": mask["size"], "counts": mask["counts"].decode("ascii")}
        entries.append(entry)
    return entries


def image_ids(images: Sequence[Path]) -> list[int]:
    """A number for each image: its name where all names are different numbers, as COCO's are, else its place from 1."""
    stems = [image.stem for image in images]
    if all(stem.isascii() and stem.isdigit() for stem in stems) and len(set(map(int, stems))) == len(stems):
        return [int(stem) for stem in stems]
    return list(range(1, len(stems) + 1))


def detect_in_images(
    detector: nn.Module, images: Sequence[Path], folder: Path, spec: InstanceSpec, *, least_score: float = LEAST_SCORE
) -> list[Path]:
    """Detect in image files; write `NAME-found.png` for each and `detections.json` with all detections; all paths.

    NAME is of `names_of`. The JSON is COCO's results format with `file_name` besides. Detections below `least_score`
    are not drawn. The detector is in eval mode. A DataError names what cannot be read or written.
    """
    device, entries, written = next(detector.parameters()).device, [], []
    for path, image_id, name in zip(images, image_ids(images), names_of(images), strict=True):
        pixels_HW3 = np.asarray(read_image(path))
        (found,) = detect(detector, [unit_range(torch.tensor(pixels_HW3).permute(2, 0, 1)).to(device)])
        file_name = {"file_name": name.removesuffix(path.suffix) + path.suffix}
        entries += [entry | file_name for entry in coco_results(found, image_id, spec)]
        written.append(folder / f"{name}-found.png")
        save_image(drawn(pixels_HW3, found, spec, least_score), written[-1])
    written.append(folder / RESULTS)
    try:
        lines = ",\n".join(map(json.dumps, entries))  # a detection a line
        written[-1].write_text(f"[{lines}]\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{folder}: cannot write detections ({error})") from error
    return written
