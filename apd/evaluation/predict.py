"""Label maps and overlays of single pictures, as files."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from apd.config.inference import WHOLE_IMAGE, InferenceOptions
from apd.data.images import DataError, read_image
from apd.data.specs import DatasetSpec
from apd.evaluation.inference import predict_labels


def overlay(image_HW3: np.ndarray, labels_HW: np.ndarray, spec: DatasetSpec, opacity: float = 0.55) -> np.ndarray:
    """The picture with its classes' colours laid over it, uint8 (H, W, 3); ignored pixels keep the picture."""
    colours_K3 = np.zeros((256, 3), dtype=np.float32)
    colours_K3[: len(spec.palette)] = spec.palette
    weight_HW1 = np.where(labels_HW == spec.ignore_index, 0.0, opacity)[..., None]
    return (image_HW3 * (1 - weight_HW1) + colours_K3[labels_HW] * weight_HW1).round().astype(np.uint8)


def predict_picture(
    model: nn.Module,
    path: Path,
    folder: Path,
    spec: DatasetSpec,
    *,
    size: tuple[int, int],
    inference: InferenceOptions = WHOLE_IMAGE,
    name: str = "",
) -> tuple[Path, Path]:
    """Predict one picture and write `NAME-labels.png` (palette image of class numbers) and `NAME-overlay.png`.

    Args:
        model: a network in eval mode, on any device.
        path: the picture, of any size; it is shown to the network at `size`, the size it was trained for.
        folder: where the two files go; made if it is not there.
        spec: names and colours of the classes.
        size: (height, width) at which the network is shown pictures. The label map has the picture's own size.
        inference: windows, mirror images and sizes to average over; default is one look at the whole picture.
        name: NAME of the files, which may begin with folders, as of `names_of`; default is the picture's stem.

    Raises:
        DataError: the picture cannot be read or the folder not written.
    """
    image = read_image(path)
    pixels_HW3 = np.asarray(image)
    images_B3HW = torch.tensor(pixels_HW3).permute(2, 0, 1)[None].float() / 255
    device = next(model.parameters()).device
    resized = F.interpolate(images_B3HW, size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
    found = predict_labels(model, resized.to(device), pixels_HW3.shape[:2], inference=inference)
    labels_HW = found[0].byte().cpu().numpy()
    name = name or path.stem
    written = folder / f"{name}-labels.png", folder / f"{name}-overlay.png"
    write_label_map(labels_HW, written[0], spec)
    _write(Image.fromarray(overlay(pixels_HW3, labels_HW, spec)), written[1])
    return written


def write_label_map(labels_HW: np.ndarray, path: Path, spec: DatasetSpec) -> None:
    """Write class numbers as a palette picture: its pixels are the numbers, shown in the classes' colours.

    Args:
        labels_HW: uint8.
        path: a PNG file; its folder is made if it is not there.
        spec: colours of the classes.

    Raises:
        DataError: it cannot be written.
    """
    label_map = Image.fromarray(labels_HW, mode="P")
    label_map.putpalette([channel for colour in spec.palette for channel in colour])
    _write(label_map, path)


def _write(picture: Image.Image, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    except OSError as error:
        raise DataError(f"{path.parent}: cannot write predictions ({error})") from error
