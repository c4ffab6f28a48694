"""Pictures of samples: the image, its labels, a prediction, and where the prediction is wrong."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from apd.data.scenes import Scene
from apd.data.specs import DatasetSpec, Sample, SegmentationDataset
from apd.evaluation.inference import predict_dataset
from apd.report.figures.style import Drawing, ImageHW3, Panel, key, panels

WRONG = np.array((226, 58, 78), dtype=np.uint8)
RIGHT = np.array((196, 202, 210), dtype=np.uint8)
ERROR_KEY = key([("right", (196, 202, 210)), ("wrong", (226, 58, 78))])


def image_picture(image_3HW: Tensor) -> ImageHW3:
    """An image (3, H, W), uint8 or float in [0, 1], as a picture."""
    image_3HW = image_3HW.detach().cpu()
    if image_3HW.is_floating_point():
        image_3HW = (image_3HW * 255).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(image_3HW.permute(1, 2, 0).numpy())


def label_picture(labels_HW: Tensor, spec: DatasetSpec) -> ImageHW3:
    """Labels in the classes' colours; ignored pixels are white."""
    return spec.colourise(labels_HW.detach().cpu().numpy())


def error_picture(prediction_HW: Tensor, labels_HW: Tensor, ignore_index: int) -> ImageHW3:
    """Red where a prediction is wrong, grey where it is right, white where the label is to be ignored."""
    prediction_HW, labels_HW = prediction_HW.cpu().numpy(), labels_HW.cpu().numpy()
    picture_HW3 = np.where((prediction_HW == labels_HW)[..., None], RIGHT, WRONG)
    picture_HW3[labels_HW == ignore_index] = 255
    return picture_HW3


def class_key(spec: DatasetSpec, classes: Sequence[int] | None = None, *, ignored: bool = True) -> str:
    """HTML that names the colours of some classes (default: all), and of ignored pixels."""
    chosen = range(spec.num_classes) if classes is None else classes
    entries = [(spec.class_names[k], spec.palette[k]) for k in chosen]
    return key([*entries, ("ignored", (255, 255, 255))] if ignored else entries)


def show_sample(sample: Sample, labels_hw: Tensor, spec: DatasetSpec) -> Drawing:
    """An image, its labels, and the labels on the feature grid."""
    present = [k for k in range(spec.num_classes) if bool((sample.labels_HW == k).any())]
    height, width = labels_hw.shape
    cells = [
        Panel([image_picture(sample.image_3HW)], "image", sample.name),
        Panel([label_picture(sample.labels_HW, spec)], "labels", "{} × {} pixels".format(*sample.labels_HW.shape)),
        Panel([label_picture(labels_hw, spec)], "labels on the feature grid", f"{height} × {width} cells"),
    ]
    return panels(cells, columns=3, least="9.5rem", below=class_key(spec, present))


def show_looks(scenes: Mapping[float, Sequence[Scene]]) -> Drawing:
    """The same streets under several context shifts: one row of pictures for each shift."""
    cells = [
        Panel([scene.image_HW3], f"context shift {look:g}", f"street {number}")
        for look, drawn in scenes.items()
        for number, scene in enumerate(drawn)
    ]
    return panels(cells, columns=max(len(drawn) for drawn in scenes.values()), least="6rem")


def pixels_right(
    models: Mapping[str, nn.Module], dataset: SegmentationDataset, *, batch_size: int = 8
) -> dict[str, Tensor]:
    """Share of valid pixels that each network names right, image by image: name → (N,) on the CPU.

    The networks must be in eval mode. An image without a valid pixel gives NaN.
    """
    shares: dict[str, list[Tensor]] = {name: [] for name in models}
    for predictions, labels_BHW, _names in predict_dataset(list(models.values()), dataset, batch_size=batch_size):
        valid_B = (labels_BHW != dataset.spec.ignore_index).flatten(1).sum(1)
        for name, prediction_BHW in zip(models, predictions, strict=True):
            right_B = (prediction_BHW.cpu() == labels_BHW).flatten(1).sum(1)
            shares[name].append(right_B / valid_B)
    return {name: torch.cat(parts) for name, parts in shares.items()}


def at_quantiles(gains_N: Tensor, quantiles: Sequence[float] = (0.1, 0.5, 0.9)) -> list[int]:
    """Indices of the images at these quantiles of a score: a choice that no one made by looking.

    >>> at_quantiles(torch.tensor([0.3, 0.1, 0.2]), (0.0, 0.5, 1.0))
    [1, 2, 0]
    """
    order = torch.argsort(gains_N, stable=True)
    return [int(order[round(q * (len(order) - 1))]) for q in quantiles]


def show_predictions(
    sample: Sample, predictions: Mapping[str, Tensor], spec: DatasetSpec, *, key_below: bool = True
) -> Drawing:
    """An image with its labels, and each prediction (H, W) beside a picture of its errors."""
    image = Panel(
        [image_picture(sample.image_3HW), label_picture(sample.labels_HW, spec)], "image and labels", sample.name
    )
    valid_HW = sample.labels_HW != spec.ignore_index
    cells = [image]
    for name, prediction_HW in predictions.items():
        right = ((prediction_HW.cpu() == sample.labels_HW) & valid_HW).sum() / valid_HW.sum()
        pictures = [
            label_picture(prediction_HW, spec),
            error_picture(prediction_HW, sample.labels_HW, spec.ignore_index),
        ]
        cells.append(Panel(pictures, name, f"{100 * float(right):.0f} % of pixels right"))
    return panels(cells, columns=3, least="11rem", below=class_key(spec) + ERROR_KEY if key_below else "")


def resize_picture(picture: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Each pixel `factor` × `factor` times, so that a browser that smooths shows cells as squares."""
    return np.repeat(np.repeat(picture, factor, axis=0), factor, axis=1)
