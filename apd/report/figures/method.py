"""The method in images: samples, predictions, cosines inside a perspective, and what is observed from it."""

from collections.abc import Mapping, Sequence
from html import escape

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from torch import Tensor

from apd.data.specs import DatasetSpec, Sample
from apd.report.figures.style import Drawing, ImageHW3, Panel, drawing, figure, key, panels

RIGHT, WRONG = (196, 202, 210), (226, 58, 78)
ERROR_KEY = key([("right", RIGHT), ("wrong", WRONG)])
COSINES, SCORES = "RdBu_r", "viridis"


def image_pixels(image_3HW: Tensor) -> ImageHW3:
    """A uint8 image (3, H, W) as pixels (H, W, 3)."""
    return np.ascontiguousarray(image_3HW.permute(1, 2, 0).numpy())


def label_pixels(labels_HW: Tensor, spec: DatasetSpec) -> ImageHW3:
    """Labels in the classes' colours; ignored pixels are white."""
    return spec.colourise(labels_HW.cpu().numpy())


def error_pixels(prediction_HW: Tensor, labels_HW: Tensor, ignore_index: int) -> ImageHW3:
    """Red where a prediction is wrong, grey where it is right, white where the label is to be ignored."""
    prediction_HW, labels_HW = prediction_HW.cpu().numpy(), labels_HW.cpu().numpy()
    pixels_HW3 = np.where((prediction_HW == labels_HW)[..., None], np.uint8(RIGHT), np.uint8(WRONG))
    pixels_HW3[labels_HW == ignore_index] = 255
    return pixels_HW3


def mapped(values: Tensor, low: float, high: float, colours: str) -> ImageHW3:
    """Values between two ends in a colour map."""
    scaled = ((values.detach().float().cpu() - low) / (high - low)).clamp(0, 1).numpy()
    return (mpl.colormaps[colours](scaled)[..., :3] * 255).round().astype(np.uint8)


def scale(colours: str, low: str, high: str) -> str:
    """HTML of a colour map's bar between two words."""
    stops = ",".join(f"rgb({r},{g},{b})" for r, g, b in mapped(torch.linspace(0, 1, 9), 0, 1, colours).tolist())
    bar = f'<span class="apd-scale" style="background:linear-gradient(90deg,{stops})"></span>'
    return f'<div class="apd-key"><span>{escape(low)}</span>{bar}<span>{escape(high)}</span></div>'


def cells(pixels: ImageHW3) -> ImageHW3:
    """Each cell of a grid 8 × 8 times, so that a browser that smooths shows cells as squares."""
    return pixels.repeat(8, axis=0).repeat(8, axis=1)


def class_key(spec: DatasetSpec, classes: Sequence[int] | None = None, *, ignored: bool = True) -> str:
    """HTML that names the colours of some classes (default: all), and of ignored pixels."""
    chosen = range(spec.num_classes) if classes is None else classes
    entries = [(spec.class_names[k], spec.palette[k]) for k in chosen]
    return key([*entries, ("ignored", (255, 255, 255))] if ignored else entries)


def share_right(prediction_HW: Tensor, labels_HW: Tensor, ignore_index: int) -> str:
    """The share of valid pixels that are right, in whole per cent."""
    valid_HW = labels_HW != ignore_index
    return f"{100 * float(((prediction_HW.cpu() == labels_HW) & valid_HW).sum() / valid_HW.sum()):.0f} %"


def at_quantiles(gains_N: Tensor, quantiles: Sequence[float] = (0.1, 0.5, 0.9)) -> list[int]:
    """Indices of the images at these quantiles of a score, NaN left out: a choice by rule."""
    order = torch.argsort(gains_N, stable=True)[: int((~gains_N.isnan()).sum())]
    return [int(order[round(q * (len(order) - 1))]) for q in quantiles]


def prediction_strips(rows: Sequence[tuple[Sample, Mapping[str, Tensor]]], spec: DatasetSpec) -> Drawing:
    """A strip for each image: the image, its labels, and its predictions (H, W) by name."""
    html, said = [], []
    for sample, predictions in rows:
        shown = [Panel([image_pixels(sample.image_3HW)], "image", sample.name)]
        shown.append(Panel([label_pixels(sample.labels_HW, spec)], "ground truth"))
        for name, prediction_HW in predictions.items():
            right = share_right(prediction_HW, sample.labels_HW, spec.ignore_index)
            shown.append(Panel([label_pixels(prediction_HW, spec)], name, f"{right} right"))
        drawn = panels(shown, columns=len(shown), least="6.4rem")
        html, said = [*html, drawn.html], [*said, drawn.description]
    html = '<p style="margin:.7rem"></p>'.join(html)
    return Drawing(html + class_key(spec), "; ".join(said) + "; right: share of pixels")


def cosine_matrices(
    matrices: Mapping[str, Tensor], class_names: Sequence[str], present_K: Tensor | None = None
) -> Drawing:
    """Cosines between the rows of perspectives, a square for each matrix (K, K), of the classes in `present_K`."""
    kept = torch.ones(len(class_names), dtype=torch.bool) if present_K is None else present_K.cpu()
    names = [name for name, keep in zip(class_names, kept.tolist(), strict=True) if keep]
    shown = {title: matrix_KK.detach().cpu()[kept][:, kept] for title, matrix_KK in matrices.items()}
    others = ~torch.eye(len(names), dtype=torch.bool)
    said = "; ".join(f"{title}: {value_KK[others].nanmean():+.2f}" for title, value_KK in shown.items())
    said = f"Cosines between classes, mean over pairs of different ones. {said}"
    return squares(shown, names, said, colours=COSINES, least=-1, bar="cosine")


def confusions(counts: Mapping[str, Tensor], class_names: Sequence[str], most: int = 24) -> Drawing:
    """What the pixels of each class (a row) are called, as shares of the row, for the most frequent classes."""
    kept = sorted(next(iter(counts.values())).sum(1).argsort(descending=True, stable=True)[:most].tolist())
    shares = {title: matrix_KK.double() / matrix_KK.sum(1, keepdim=True) for title, matrix_KK in counts.items()}
    said = "; ".join(f"{title}: {share_KK.diagonal().nanmean():.2f}" for title, share_KK in shares.items())
    said = f"Shares of each class's pixels by what they are called, mean over classes of those that are right. {said}"
    shown = {title: share_KK[kept][:, kept] for title, share_KK in shares.items()}
    names = [class_names[k] for k in kept]
    return squares(shown, names, said, colours=SCORES, least=0, bar="share of a class’s pixels")


def squares(
    shown: Mapping[str, Tensor], names: Sequence[str], said: str, *, colours: str, least: float, bar: str
) -> Drawing:
    """A square for each matrix from `least` to 1, two beside each other: few classes hold numbers, many have a bar."""
    wide, numbers = min(2, len(shown)), len(names) < 7
    tall = -(-len(shown) // wide)
    with figure(height=2.3 * tall + 0.08 * max(map(len, names)) + (0.5 if numbers else 0.8)) as fig:
        all_axes = fig.subplots(tall, wide, squeeze=False, sharex=True, sharey=True).flat
        for axes, (title, value_KK) in zip(all_axes, shown.items(), strict=False):
            frame = pd.DataFrame(value_KK.numpy(), names, names)
            texts = (frame.round(2) + 0.0).map(lambda value: f"{value:.2f}".replace("-", "−")) if numbers else None
            style = {"square": True, "cbar": False, "xticklabels": True, "yticklabels": True, "fmt": ""}
            sns.heatmap(frame, ax=axes, cmap=colours, vmin=least, vmax=1, annot=texts, **style)
            axes.set_title(title, fontweight="normal", loc="center")
            axes.tick_params(axis="y", rotation=0)
            axes.grid(visible=False)
        for axes in fig.axes[len(shown) :]:
            axes.set_axis_off()
            fig.axes[len(shown) - 2].tick_params(labelbottom=True)  # the last of its column
        if not numbers:
            mesh = fig.axes[0].collections[0]
            drawn = fig.colorbar(mesh, ax=fig.axes, location="bottom", shrink=0.45, aspect=30, pad=0.02, label=bar)
            drawn.outline.set_visible(False)
        return drawing(fig, said)


def observation_maps(teacher_KHW: Tensor, student_KHW: Tensor, present_K: Tensor, spec: DatasetSpec) -> Drawing:
    """The observations of each present class: the teacher's on the left, the student's on the right, as cosines."""
    shown = [
        Panel([cells(mapped(o[k] / 10, -1, 1, COSINES)) for o in (teacher_KHW, student_KHW)], spec.class_names[k])
        for k in torch.nonzero(present_K).flatten().tolist()
    ]
    below = scale(COSINES, "left: teacher, right: student; cosine −1", "+1")
    drawn = panels(shown, columns=3, least="10rem", below=below)
    return Drawing(drawn.html, f"teacher's and student's cosines with each prototype; {drawn.description}")
