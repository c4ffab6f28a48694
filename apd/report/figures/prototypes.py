"""Own perspectives: what is seen through them, prototypes over the steps of a run, and where images gain."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor

import apd.report.figures.method as draw
import apd.report.figures.style as page
from apd.data.specs import DatasetSpec, Sample
from apd.distill import APDLoss
from apd.models.segmenter import Segmenter
from apd.perspective import ABSENT_LOGIT, class_prototypes, match_grids, observe, resize_labels
from apd.report.correlations import PerImage, relations, seeds_agree
from apd.report.figures.curves import label_marks
from apd.report.figures.style import INK, METHOD_COLOURS, WIDTH, Drawing
from apd.report.figures.tables import points
from apd.report.perspectives import Trace, pairwise_cosine
from apd.study.recipes import METHOD_NAMES

MARKERS = {"teacher": "o", "student": "^"}
NUMBER_NAMES = {
    "distance": "distance",
    "divergence": "divergence of the views",
    "disagreement": "their disagreement",
    "revealed": "what the own one adds",
}
"""Numbers of an image that are compared with its gain; the first is the one the question is about."""


@torch.no_grad()
def shared_and_own(
    networks: Mapping[str, Segmenter], distiller: APDLoss, sample: Sample, spec: DatasetSpec, label: int
) -> Drawing:
    """One image through the shared and the own perspective of teacher and student (in eval mode, by these names).

    What each view calls the cells, choosing among the image's classes, where it errs, and the probability of the class
    `label`. A pointer on a cell reads what all views call it.
    """
    device, ignored, name = next(distiller.parameters()).device, spec.ignore_index, spec.class_names[label]
    outputs = [network(sample.image_3HW[None].to(device) / 255) for network in networks.values()]
    features = match_grids(*(output.features for output in outputs))
    labels_1hw = resize_labels(sample.labels_HW[None].long().to(device), features[0].shape[2:])
    views = {}
    for who, output, features_1Chw in zip(networks, outputs, features, strict=True):
        projected_1Dhw = getattr(distiller, f"{who}_head")(features_1Chw)
        own = class_prototypes(projected_1Dhw, labels_1hw, spec.num_classes, ignore_index=ignored)
        views[f"{who}, shared perspective"] = match_grids(output.logits, projected_1Dhw)[0][0].cpu()
        views[f"{who}, own perspective"] = observe(projected_1Dhw, *own, scale=distiller.scale)[0].cpu()
    labels_hw, present_K = labels_1hw[0].cpu(), own[1][0].cpu()
    grid = [draw.label_pixels(labels_hw, spec), draw.mapped(labels_hw == label, 0, 1, draw.SCORES)]
    pixels = [draw.image_pixels(sample.image_3HW), *map(draw.cells, grid)]
    shown = [page.Panel(pixels, "image and labels", f"{sample.name}; right: cells of {name}")]
    called = [page.view_of(view, scores_Khw, present_K) for view, scores_Khw in views.items()]
    for view, scores_Khw in zip(called, views.values(), strict=True):
        score_hw = scores_Khw.masked_fill(~present_K[:, None, None], ABSENT_LOGIT).softmax(0)[label]
        errors = draw.error_pixels(view.labels_hw, labels_hw, ignored)
        pixels = [draw.label_pixels(view.labels_hw, spec), errors, draw.mapped(score_hw, 0, 1, draw.SCORES)]
        right = draw.share_right(view.labels_hw, labels_hw, ignored)
        shown.append(page.Panel([*map(draw.cells, pixels)], view.name, f"{right} of cells right"))
    below = draw.class_key(spec, torch.nonzero(present_K).flatten().tolist()) + draw.ERROR_KEY
    below += draw.scale(draw.SCORES, f"probability of {name}: 0", "1")
    called = [page.View("labels", labels_hw), *called]
    return page.cell_panels(shown, called, spec.class_names, columns=2, least="17rem", below=below)


def plane_of(prototypes_BKD: Tensor, present_BK: Tensor) -> tuple[Tensor, Tensor, float]:
    """The mean (D,) of present prototypes, their two principal directions (D, 2), and the share of variance these keep.

    A direction's largest component is positive, so that the same prototypes give the same figure anywhere.
    """
    rows_ND = prototypes_BKD[present_BK].double()
    mean_D = rows_ND.mean(0)
    _, lengths_N, directions_ND = torch.linalg.svd(rows_ND - mean_D, full_matrices=False)
    directions_D2 = directions_ND[:2].T
    largest_2 = directions_D2.gather(0, directions_D2.abs().argmax(0, keepdim=True))
    kept = float(lengths_N[:2].square().sum() / lengths_N.square().sum().clamp(min=1e-12))
    return mean_D, directions_D2 * largest_2.sign(), kept


def prototype_plane(trace: Trace, spec: DatasetSpec, names: Sequence[str]) -> Drawing:
    """Prototypes of both networks in one plane, at the first moment, the one after it, the middle and the last.

    The plane is laid through the teacher's prototypes after the last step. A pointer on a mark reads its image (of
    `names`), class, and cosine with the same prototype of the other network, and frames it at the other moments.
    """
    mean_D, directions_D2, kept = plane_of(trace.teacher_SBKD[-1], trace.present_BK)
    last = len(trace.steps) - 1
    chosen = sorted({0, min(1, last), last // 2, last})  # the teacher's head moves most in its first steps
    rows = -(-len(chosen) // 2)
    colours = {k: tuple(c / 255 for c in colour) for k, colour in enumerate(spec.palette)}
    images_N, classes_N = (found.tolist() for found in torch.nonzero(trace.present_BK, as_tuple=True))
    between_SBK = (trace.teacher_SBKD * trace.student_SBKD).sum(3)
    with page.figure(width=WIDTH, height=0.75 + 2.5 * rows) as fig:
        marks: list[page.Mark] = []
        for axes, moment in zip(fig.subplots(rows, 2, squeeze=False, sharex=True, sharey=True).flat, chosen):
            step = f"step {trace.steps[moment]}"
            for who, moments_SBKD in {"teacher": trace.teacher_SBKD, "student": trace.student_SBKD}.items():
                rows_ND = moments_SBKD[moment][trace.present_BK].double()
                x_N, y_N = ((rows_ND - mean_D) @ directions_D2).T.tolist()
                style = {"marker": MARKERS[who], "s": 26, "edgecolor": INK, "linewidth": 0.5, "legend": False}
                sns.scatterplot(x=x_N, y=y_N, hue=classes_N, palette=colours, ax=axes, **style)
                for x, y, b, k in zip(x_N, y_N, images_N, classes_N, strict=True):
                    cosine = f"cosine of teacher’s and student’s {float(between_SBK[moment, b, k]):.2f}"
                    lines = (f"{names[b]}, {spec.class_names[k]}", f"{who}, {step}", cosine)
                    marks.append(page.Mark(axes, x, y, lines, group=f"{b}.{k}"))
            axes.set_title(step, fontsize=10.5, fontweight="normal")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            axes.axhline(0, color=INK, linewidth=0.6, alpha=0.25, zorder=0)
            axes.axvline(0, color=INK, linewidth=0.6, alpha=0.25, zorder=0)
        for axes in fig.axes[len(chosen) :]:
            axes.set_axis_off()
        handles = [Line2D([], [], linestyle="", marker=m, markerfacecolor="none", color=INK) for m in MARKERS.values()]
        fig.legend(handles, list(MARKERS), loc="outside upper left", ncols=2)
        description = f"Prototypes in the plane of the teacher's last, {100 * kept:.0f} % of their spread, at steps "
        description += ", ".join(str(trace.steps[moment]) for moment in chosen)
        shown = page.hoverable(fig, marks, description)
    return Drawing(shown.html + draw.class_key(spec, ignored=False), description)


def apart_over_steps(trace: Trace) -> Drawing:
    """Mean cosine between an image's prototypes over the steps, for each way to treat the teacher's head.

    Lines are means over the watched images, shades reach from the 10th to the 90th per cent of them.
    """
    lines = {
        "alignment trains the head": ("#c9742a", trace.aligned_SBKD),
        "nothing trains the head": ("#7d8796", trace.untrained_BKD.expand_as(trace.teacher_SBKD)),
        "the student’s prototypes": (INK, trace.student_SBKD),
        "regularisation trains the head": (METHOD_COLOURS["apd"], trace.teacher_SBKD),
    }
    with page.figure(height=3.5) as fig:
        axes = fig.subplots()
        ends, said = {}, []
        for name, (colour, prototypes_SBKD) in lines.items():
            values_SB = pairwise_cosine(prototypes_SBKD, trace.present_BK)
            frame = pd.DataFrame(values_SB.numpy(), trace.steps).melt(ignore_index=False).reset_index()
            style = {"errorbar": ("pi", 80), "err_kws": {"linewidth": 0}, "linestyle": "--" if colour == INK else "-"}
            sns.lineplot(frame, x="index", y="value", ax=axes, color=colour, **style)
            mean_S = values_SB.nanmean(1).tolist()
            ends[name] = (trace.steps[-1], mean_S[-1])
            said.append(f"{name}: {mean_S[0]:.2f} to {mean_S[-1]:.2f}")
        axes.set_ylim(min(0.0, axes.get_ylim()[0]), 1.02)
        axes.set_xlim(0, trace.steps[-1])
        label_marks(axes, ends, {name: name for name in ends}, {name: colour for name, (colour, _) in lines.items()})
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.set(xlabel="steps", ylabel="cosine between prototypes")
        page.quiet_axes(axes, grid="y")
        return page.drawing(fig, "Mean cosine between an image's prototypes, first to last step. " + "; ".join(said))


def gain_by_distance(images: Sequence[PerImage]) -> Drawing:
    """Gain of APD over pixel KD against the image's distance, one panel for each context shift given.

    A dot is an image, its gain the mean over seeds; steps are means over fifths of the images. A pointer on a dot reads
    the image, its class furthest from the shared perspective, and the scores behind it.
    """
    if not images:
        return page.nothing("The gains of single images cannot be drawn: 0 files of evidence yet.")
    with page.figure(width=WIDTH, height=0.5 + 2.7 * len(images)) as fig:
        fig.get_layout_engine().set(h_pad=0.1)
        marks, said = [], []
        all_axes = fig.subplots(len(images), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
        for axes, one in zip(all_axes, images, strict=True):
            x, y, title = one.numbers["distance"], 100 * one.gain(), f"context shift {one.context_shift:g}"
            order = [i for i in np.argsort(x, kind="stable").tolist() if not np.isnan(x[i] + y[i])]
            dots = {"s": 14, "color": METHOD_COLOURS["apd"], "alpha": 0.7, "linewidth": 0, "zorder": 2}
            sns.scatterplot(x=x[order], y=y[order], ax=axes, **dots)
            for part in filter(len, np.array_split(order, 5)):
                axes.plot(x[part[[0, -1]]], [y[part].mean()] * 2, color=INK, linewidth=2.4, zorder=3)
            axes.axhline(0, color=INK, linewidth=1.0, zorder=1)
            axes.set_title(title)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:+g}".replace("-", "−") if value else "0")
            page.quiet_axes(axes, grid="y")
            marks += [page.Mark(axes, x[i], y[i], _lines(one, i), group=str(i)) for i in order]
            said.append(f"{title}: {len(order)} images, mean gain {y[order].mean():+.1f}")
        all_axes[-1].set_xlabel("distance of the image’s own perspective from the shared one")
        fig.supylabel("gain over pixel KD, points of mIoU", fontsize=11)
        return page.hoverable(fig, marks, "Gain of APD over pixel KD, image by image. " + "; ".join(said))


def _lines(one: PerImage, image: int) -> tuple[str, ...]:
    """What a pointer on an image's dot reads."""
    label, names = one.furthest[image], [n for n in ("pixel_kd", "apd", "teacher", "student") if n in one.scores]
    said = [f"{METHOD_NAMES.get(n, n).removeprefix('+ ')} {100 * one.scores[n]['miou'][image]:.1f}" for n in names]
    return (
        f"test image {image}, distance {one.numbers['distance'][image]:.3f}",
        f"furthest class: {one.class_names[label] if label >= 0 else 'none'}",
        f"mIoU, %: {', '.join(said[:2])}, gain {points(one.gain()[image])}",
        ", ".join(said[2:]),
    )


def coefficient(found: Sequence[float]) -> str:
    """A rank correlation (or the mean of some) with its interval: the first three of `found`."""
    value, low, high = (points(v / 100, 2) for v in found[:3])  # a point is a hundredth
    return value if math.isnan(found[1]) else f"{value}\u00a0[{low},\u00a0{high}]"


def relation_table(
    images: Sequence[PerImage],
    confidence: float = 0.95,
    *,
    numbers: Sequence[str] = ("distance",),
    method: str = "apd",
    reference: str = "pixel_kd",
) -> Drawing:
    """Rank correlation of numbers of the images with a method's gain over a reference, at each context shift.

    Over images, over seeds, over images with the teacher's score held, and between the gains of two seeds; and what
    follows from the first two. Context shifts at which one of the two methods was not measured are left out.
    """
    rows, both = {}, {"method": method, "reference": reference}
    for one in (one for one in images if {method, reference} <= one.scores.keys()):
        plain = relations(one, numbers, confidence, **both)
        held = relations(one, numbers, confidence, held="teacher", **both)
        for number in numbers:
            rows[f"shift {one.context_shift:g}: {NUMBER_NAMES[number]}"] = {
                "the gain": plain[number].verdict,
                "over images": coefficient(plain[number].over_images),
                "over seeds": coefficient(plain[number].over_seeds),
                "over images, difficulty held": coefficient(held[number].over_images),
                "gains of two seeds": coefficient((seeds_agree(one, method, reference), math.nan, math.nan)),
            }
    if not rows:
        return page.nothing("There is no correlation: 0 files of evidence have both methods yet.")
    names = [METHOD_NAMES[name] for name in (method, reference)]
    caption = "rank correlation with an image’s gain of “{}” over “{}”, {:g} % intervals"
    return page.table(pd.DataFrame.from_dict(rows, orient="index"), caption.format(*names, 100 * confidence))
