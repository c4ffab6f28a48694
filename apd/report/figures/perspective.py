"""The method in pictures: features, the cosines inside a perspective, and what is observed through it."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from torch import Tensor
from torch.nn import functional as F

from apd.data.specs import DatasetSpec, Sample
from apd.distill import APDLoss
from apd.models.segmenter import Segmenter
from apd.perspective import ABSENT_LOGIT, class_prototypes, match_grids, observe, resize_labels
from apd.report.figures.scenes import ERROR_KEY, class_key, error_picture, image_picture, label_picture, resize_picture
from apd.report.figures.style import (
    WIDTH,
    Drawing,
    ImageHW3,
    Panel,
    View,
    cell_panels,
    colour_scale,
    drawing,
    figure,
    panels,
    stack,
    table,
    view_of,
)

COSINES = "RdBu_r"
SCORES = "viridis"
CELL = 8  # screen pixels of a grid cell in stored pictures


def _mapped(values: Tensor, low: float, high: float, colours: str) -> ImageHW3:
    scaled = ((values.detach().float().cpu() - low) / (high - low)).clamp(0, 1).numpy()
    return (mpl.colormaps[colours](scaled)[..., :3] * 255).round().astype(np.uint8)


def _scale(colours: str, low: str, high: str) -> str:
    stops = mpl.colormaps[colours](np.linspace(0, 1, 9))[:, :3]
    return colour_scale((stops * 255).round().astype(np.uint8), low, high)


def feature_pictures(sample: Sample, features: Mapping[str, Tensor]) -> Drawing:
    """An image, and feature maps (D, h, w) of one width as colours: three principal directions as red, green and blue.

    The directions are those of the first map's normalised pixels, used for all: equal colours mean equal directions.
    """
    unit = {name: F.normalize(value.detach().float(), dim=0).flatten(1).T for name, value in features.items()}
    reference_ND = next(iter(unit.values()))
    centre_D = reference_ND.mean(0)
    _, _, directions_DD = torch.linalg.svd(reference_ND - centre_D, full_matrices=False)
    seen = {name: (value - centre_D) @ directions_DD[:3].T for name, value in unit.items()}
    spread_3 = next(iter(seen.values())).abs().quantile(0.95, dim=0)
    cells = [Panel([image_picture(sample.image_3HW)], "image")]
    for (name, value_N3), feature in zip(seen.items(), features.values(), strict=True):
        colours = (0.5 + 0.45 * value_N3 / spread_3).clamp(0, 1).unflatten(0, feature.shape[1:])
        picture = (colours * 255).round().to(torch.uint8).numpy()
        note = "{} channels, {} × {} cells".format(*feature.shape)
        cells.append(Panel([resize_picture(picture, CELL)], name, note))
    return panels(cells, columns=len(cells), least="9.5rem")


def cosine_matrices(
    matrices: Mapping[str, Tensor], class_names: Sequence[str], present_K: Tensor | None = None
) -> Drawing:
    """Cosines between the rows of perspectives, one square for each matrix (K, K); absent classes stay empty.

    Args:
        matrices: title → cosines; NaN stays empty.
        class_names: K names.
        present_K: which classes to draw; None draws all.
    """
    kept = torch.ones(len(class_names), dtype=torch.bool) if present_K is None else present_K.cpu()
    names = [name for name, keep in zip(class_names, kept.tolist(), strict=True) if keep]
    shown = {title: matrix_KK.detach().cpu()[kept][:, kept] for title, matrix_KK in matrices.items()}
    others = ~torch.eye(len(names), dtype=torch.bool)
    said = (f"{title}: {value_KK[others].nanmean():+.2f}" for title, value_KK in shown.items())
    description = "Cosines between classes, mean over pairs of different ones. " + "; ".join(said)
    return heat_maps(shown, names, names, (-1, 1), cosine_text, description, COSINES)


def heat_maps(
    matrices: Mapping[str, Tensor],
    rows: Sequence[str],
    columns: Sequence[str],
    ends: tuple[float, float] | None,
    text: Callable[[float], str],
    description: str,
    colours: str = SCORES,
) -> Drawing:
    """Matrices of one kind as squares, two beside each other; few cells hold their numbers, many have a colour bar.

    Args:
        matrices: title -> values (R, C); NaN stays empty.
        rows, columns: R and C names.
        ends: values of the first and the last colour; None takes the least and the greatest.
        text: writes a value.
        description: see :func:`apd.report.figures.style.drawing`.
        colours: a colour map.
    """
    wide, numbers = min(2, len(matrices)), len(columns) < 7
    tall, (low, high) = -(-len(matrices) // wide), ends or (None, None)
    height = 2.3 * tall + 0.08 * max(map(len, columns)) + (0.5 if numbers else 0.8)
    with figure(width=WIDTH, height=height) as fig:
        all_axes = fig.subplots(tall, wide, squeeze=False, sharex=True, sharey=True).flat
        for axes, (title, values_RC) in zip(all_axes, matrices.items(), strict=False):
            frame = pd.DataFrame(values_RC.numpy(), rows, columns)
            look = {"square": True, "cbar": False, "xticklabels": True, "yticklabels": True, "fmt": ""}
            texts = frame.map(text) if numbers else None
            sns.heatmap(frame, ax=axes, cmap=colours, vmin=low, vmax=high, annot=texts, **look)
            axes.set_title(title, fontweight="normal", loc="center")
            axes.tick_params(axis="y", rotation=0)
            axes.grid(visible=False)
        for axes in fig.axes[len(matrices) :]:
            axes.set_axis_off()
        if not numbers:
            mesh = fig.axes[0].collections[0]
            bar = fig.colorbar(mesh, ax=fig.axes, location="bottom", shrink=0.45, aspect=30, pad=0.02, label="cosine")
            bar.outline.set_visible(False)
        return drawing(fig, description)


def cosine_text(value: float) -> str:
    """A cosine with two decimals.

    >>> cosine_text(-0.104), cosine_text(-0.001)
    ('−0.10', '0.00')
    """
    text = f"{value:.2f}"
    return text.replace("-", "−") if float(text) else "0.00"


def observation_maps(
    teacher_KHW: Tensor, student_KHW: Tensor, present_K: Tensor, spec: DatasetSpec, *, scale: float = 10.0
) -> Drawing:
    """The observations of each present class: the teacher's on the left, the student's on the right, as cosines."""
    cells = []
    for k in torch.nonzero(present_K).flatten().tolist():
        pictures = [
            resize_picture(_mapped(observed[k] / scale, -1, 1, COSINES), CELL)
            for observed in (teacher_KHW, student_KHW)
        ]
        cells.append(Panel(pictures, spec.class_names[k]))
    below = _scale(COSINES, "left: teacher, right: student; cosine −1", "+1")
    shown = panels(cells, columns=3, least="10rem", below=below)
    return Drawing(shown.html, f"teacher's and student's cosines with each prototype; {shown.description}")


class Seen(NamedTuple):
    """One image as two networks see it, each through its classifier and through the image's own perspective.

    Attributes:
        views: name -> scores of classes (K, h, w) on the grid of the features.
        labels_hw, present_K: the image's labels there, and which classes they hold.
    """

    views: dict[str, Tensor]
    labels_hw: Tensor
    present_K: Tensor


@torch.no_grad()
def seen_by_both(teacher: Segmenter, student: Segmenter, distiller: APDLoss, sample: Sample, ignore_index: int) -> Seen:
    """What an image looks like to teacher and student (in eval mode), through the shared and the own perspective."""
    device = next(teacher.parameters()).device
    image_13HW = sample.image_3HW[None].to(device) / 255
    by_teacher, by_student = teacher(image_13HW), student(image_13HW)
    features = match_grids(by_student.features, by_teacher.features)
    labels_1hw = resize_labels(sample.labels_HW[None].long().to(device), features[0].shape[2:])
    views = {}
    for who, output, head, features_1Chw in (
        ("teacher", by_teacher, distiller.teacher_head, features[1]),
        ("student", by_student, distiller.student_head, features[0]),
    ):
        projected_1Dhw = head(features_1Chw)
        prototypes_1KD, present_1K = class_prototypes(
            projected_1Dhw, labels_1hw, teacher.num_classes, ignore_index=ignore_index
        )
        logits_1Khw, _ = match_grids(output.logits, projected_1Dhw)
        views[f"{who}, shared perspective"] = logits_1Khw[0]
        views[f"{who}, own perspective"] = observe(projected_1Dhw, prototypes_1KD, present_1K, scale=distiller.scale)[0]
    return Seen(views, labels_1hw[0].cpu(), present_1K[0].cpu())


def shared_and_own(seen: Seen, sample: Sample, spec: DatasetSpec, label: int) -> Drawing:
    """One image through several perspectives: what each calls the cells, where it errs, and its score of one class.

    Only the image's present classes are told apart, by every view. A pointer on a cell reads what all views call it.

    Args:
        seen: from `seen_by_both`.
        sample: the image.
        spec: names and colours of the classes.
        label: the class whose probability is drawn.
    """
    called = [view_of(name, scores_Khw, seen.present_K) for name, scores_Khw in seen.views.items()]
    labels_hw = seen.labels_hw
    valid_hw = labels_hw != spec.ignore_index
    mask_hw = _mapped((labels_hw == label).float(), 0, 1, SCORES)
    grid = [label_picture(labels_hw, spec), mask_hw]
    cells = [
        Panel(
            [image_picture(sample.image_3HW), *(resize_picture(picture, CELL) for picture in grid)],
            "image and labels",
            f"{sample.name}; right: cells of {spec.class_names[label]}",
        )
    ]
    for view, scores_Khw in zip(called, seen.views.values(), strict=True):
        right = float(((view.labels_hw == labels_hw) & valid_hw).sum() / valid_hw.sum())
        absent_K11 = ~seen.present_K[:, None, None]
        score_hw = scores_Khw.detach().float().cpu().masked_fill(absent_K11, ABSENT_LOGIT).softmax(0)[label]
        pictures = [
            label_picture(view.labels_hw, spec),
            error_picture(view.labels_hw, labels_hw, spec.ignore_index),
            _mapped(score_hw, 0, 1, SCORES),
        ]
        note = f"{100 * right:.0f} % of cells right"
        cells.append(Panel([resize_picture(picture, CELL) for picture in pictures], view.name, note))
    present = torch.nonzero(seen.present_K).flatten().tolist()
    below = class_key(spec, present) + ERROR_KEY
    below += _scale(SCORES, f"probability of {spec.class_names[label]}: 0", "1")
    return cell_panels(
        cells, [View("labels", labels_hw), *called], spec.class_names, columns=2, least="17rem", below=below
    )


def seen_labels(logits_KHW: Tensor, size: Sequence[int]) -> Tensor:
    """Most likely class (H, W) of logits or observations (K, h, w), resized as the losses do (aligned corners)."""
    resized = F.interpolate(logits_KHW[None].detach(), tuple(size), mode="bilinear", align_corners=True)
    return resized[0].argmax(0).cpu()


def four_views(views: Mapping[str, Tensor], sample: Sample, spec: DatasetSpec) -> Drawing:
    """What each of some logits (K, h, w) calls the pixels, with the share of valid pixels that it names right."""
    valid_HW = sample.labels_HW != spec.ignore_index
    cells = []
    for name, logits_KHW in views.items():
        seen_HW = seen_labels(logits_KHW, sample.labels_HW.shape)
        right = float(((seen_HW == sample.labels_HW) & valid_HW).sum() / valid_HW.sum())
        pictures = [label_picture(seen_HW, spec), error_picture(seen_HW, sample.labels_HW, spec.ignore_index)]
        cells.append(Panel(pictures, name, f"{100 * right:.0f} % of pixels right"))
    return panels(cells, columns=2, least="11rem", below=class_key(spec) + ERROR_KEY)


@torch.no_grad()
def seen_from_each(features_BDhw: Tensor, labels_Bhw: Tensor, num_classes: int, ignore_index: int = 255) -> Tensor:
    """Share of cells that each picture (row) has right when it is observed from each picture's perspective (column).

    Counted are valid cells whose class the perspective has; NaN where there is none.
    """
    prototypes_BKD, present_BK = class_prototypes(features_BDhw, labels_Bhw, num_classes, ignore_index=ignore_index)
    valid_Bhw = labels_Bhw != ignore_index
    indices_Bhw = torch.where(valid_Bhw, labels_Bhw.long(), 0)
    columns = []
    for prototypes_KD, present_K in zip(prototypes_BKD, present_BK, strict=True):
        batch = len(features_BDhw)
        seen_BKhw = observe(features_BDhw, prototypes_KD.expand(batch, -1, -1), present_K.expand(batch, -1))
        counted_Bhw = valid_Bhw & present_K[indices_Bhw]
        right_Bhw = (seen_BKhw.argmax(1) == labels_Bhw) & counted_Bhw
        columns.append(right_Bhw.flatten(1).sum(1) / counted_Bhw.flatten(1).sum(1))
    return torch.stack(columns, dim=1)


def exchange(
    samples: Sequence[Sample], shares_NN: Tensor, spec: DatasetSpec, *, title: str = "cells named right, %"
) -> Drawing:
    """Pictures, and a heat map of how well each (row) is seen from each picture's perspective (column)."""
    letters = [chr(ord("A") + i) for i in range(len(samples))]
    pictures = panels(
        [
            Panel([image_picture(s.image_3HW), label_picture(s.labels_HW, spec)], letter)
            for s, letter in zip(samples, letters, strict=True)
        ],
        columns=len(samples),
        least="9rem",
    )
    shares = {title: 100 * shares_NN}
    rows, columns = ([f"{word} {letter}" for letter in letters] for word in ("picture", "from"))
    said = "; ".join(
        f"{row}: {', '.join(f'{v:.0f}' for v in values)}"
        for row, values in zip(rows, shares[title].tolist(), strict=True)
    )
    return stack(
        pictures,
        heat_maps(
            shares, rows, columns, None, "{:.0f}".format, f"{title}, seen from each picture’s perspective. {said}"
        ),
    )


def who_learns(terms: Mapping[str, Tensor], groups: Mapping[str, Sequence[Tensor]]) -> Drawing:
    """Which term's gradient reaches which parameters: a table of yes and no, found by asking autograd.

    Args:
        terms: scalars of one graph, by name.
        groups: parameters by the name of their owner. "yes" means that some parameter's gradient is not zero.
    """
    rows = {}
    for name, term in terms.items():
        reached = {}
        for group, parameters in groups.items():
            trained = [p for p in parameters if p.requires_grad]
            found = torch.autograd.grad(term, trained, retain_graph=True, allow_unused=True) if trained else ()
            reached[group] = "yes" if any(g is not None and bool(g.abs().max() > 0) for g in found) else "no"
        rows[name] = reached
    return table(pd.DataFrame.from_dict(rows, orient="index"), f"whose parameters each of {len(rows)} terms trains")
