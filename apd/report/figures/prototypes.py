"""Own perspectives: what is seen through them, prototypes over the steps of a run, and what gains go with."""

import math
from collections.abc import Mapping, Sequence

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
from apd.report.correlations import PerImage, relation, seeds_agree
from apd.report.figures.answers import points
from apd.report.figures.curves import legend_above
from apd.report.figures.style import INK, METHOD_COLOURS, Drawing
from apd.report.perspectives import Trace, pairwise_cosine

RELATIONS = {"rises with": "rises", "falls with": "falls", "shows no significant relation to": "none"}
MARKERS = {"teacher": "o", "student": "^"}


@torch.no_grad()
def shared_and_own(
    networks: Mapping[str, Segmenter], distiller: APDLoss, sample: Sample, spec: DatasetSpec, label: int
) -> Drawing:
    """One image through the shared and the own perspective of teacher and student (in eval mode, by these names).

    What each view calls the cells, where it errs, and its probability of `label`; a pointer on a cell reads all views.
    """
    device, ignored, name = next(distiller.parameters()).device, spec.ignore_index, spec.class_names[label]
    outputs = [network(sample.image_3HW[None].to(device) / 255) for network in networks.values()]
    grid = {"align_corners": distiller.align_corners}
    features = match_grids(*(output.features for output in outputs), **grid)
    labels_1hw = resize_labels(sample.labels_HW[None].long().to(device), features[0].shape[2:], **grid)
    views = {}
    for who, output, features_1Chw in zip(networks, outputs, features, strict=True):
        projected_1Dhw = getattr(distiller, f"{who}_head")(features_1Chw)
        own = class_prototypes(projected_1Dhw, labels_1hw, spec.num_classes, ignore_index=ignored)
        views[f"{who}, shared perspective"] = match_grids(output.logits, projected_1Dhw, **grid)[0][0].cpu()
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
    """The mean (D,) of present prototypes, their two principal directions (D, 2), and the share of variance kept."""
    rows_ND = prototypes_BKD[present_BK].double()
    mean_D = rows_ND.mean(0)
    _, lengths_N, directions_ND = torch.linalg.svd(rows_ND - mean_D, full_matrices=False)
    directions_D2 = directions_ND[:2].T
    # a direction's largest component is positive: the same prototypes give the same figure anywhere
    largest_2 = directions_D2.gather(0, directions_D2.abs().argmax(0, keepdim=True))
    kept = float(lengths_N[:2].square().sum() / lengths_N.square().sum().clamp(min=1e-12))
    return mean_D, directions_D2 * largest_2.sign(), kept


def prototype_plane(trace: Trace, spec: DatasetSpec) -> Drawing:
    """Prototypes of both networks in the plane of the teacher's last, at four moments from the first to the last."""
    mean_D, directions_D2, kept = plane_of(trace.teacher_SBKD[-1], trace.present_BK)
    last = len(trace.steps) - 1
    chosen = sorted({0, min(1, last), last // 2, last})  # the teacher's head moves most in its first steps
    rows = -(-len(chosen) // 2)
    colours = {k: tuple(c / 255 for c in colour) for k, colour in enumerate(spec.palette)}
    classes_N = torch.nonzero(trace.present_BK)[:, 1].tolist()
    with page.figure(height=0.75 + 2.5 * rows) as fig:
        for axes, moment in zip(fig.subplots(rows, 2, squeeze=False, sharex=True, sharey=True).flat, chosen):
            for who, moments_SBKD in {"teacher": trace.teacher_SBKD, "student": trace.student_SBKD}.items():
                rows_ND = moments_SBKD[moment][trace.present_BK].double()
                x_N, y_N = ((rows_ND - mean_D) @ directions_D2).T.tolist()
                style = {"marker": MARKERS[who], "s": 26, "edgecolor": INK, "linewidth": 0.5, "legend": False}
                sns.scatterplot(x=x_N, y=y_N, hue=classes_N, palette=colours, ax=axes, **style)
            axes.set_title(f"step {trace.steps[moment]}", fontsize=10.5, fontweight="normal")
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
        return Drawing(page.drawing(fig, description).html + draw.class_key(spec, ignored=False), description)


def apart_over_steps(trace: Trace) -> Drawing:
    """Mean cosine between an image's prototypes over the steps, by the teacher's head; shades hold 80 % of images."""
    lines = {
        "alignment trains the head": ("#c9742a", trace.aligned_SBKD),
        "nothing trains the head": ("#7d8796", trace.untrained_BKD.expand_as(trace.teacher_SBKD)),
        "the student’s prototypes": (INK, trace.student_SBKD),
        "regularisation trains the head": (METHOD_COLOURS["apd"], trace.teacher_SBKD),
    }
    with page.figure(height=3.5) as fig:
        axes = fig.subplots()
        said = []
        for name, (colour, prototypes_SBKD) in lines.items():
            values_SB = pairwise_cosine(prototypes_SBKD, trace.present_BK)
            frame = pd.DataFrame(values_SB.numpy(), trace.steps).melt(ignore_index=False).reset_index()
            style = {"errorbar": ("pi", 80), "err_kws": {"linewidth": 0}, "linestyle": "--" if colour == INK else "-"}
            sns.lineplot(frame, x="index", y="value", ax=axes, color=colour, label=name, legend=False, **style)
            mean_S = values_SB.nanmean(1).tolist()
            said.append(f"{name}: {mean_S[0]:.2f} to {mean_S[-1]:.2f}")
        axes.set_ylim(min(0.0, axes.get_ylim()[0]), 1.02)
        axes.set_xlim(0, trace.steps[-1])
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.set(xlabel="steps", ylabel="cosine between prototypes")
        page.quiet_axes(axes, grid="y")
        legend_above(fig)
        return page.drawing(fig, "Mean cosine between an image's prototypes, first to last step. " + "; ".join(said))


def coefficient(found: Sequence[float]) -> str:
    """A rank correlation (or the mean of some) with its interval: the first three of `found`."""
    value, low, high = (points(v / 100, 2) for v in found[:3])  # a point is a hundredth
    return value if math.isnan(found[1]) else f"{value}\u00a0[{low},\u00a0{high}]"


def relation_table(images: Sequence[PerImage], confidence: float = 0.95) -> Drawing:
    """Rank correlations of the images' distances with their gains of APD over pixel KD, at each context shift."""
    rows = {}
    for one in images:
        plain = relation(one, confidence)
        rows[f"context shift {one.context_shift:g}"] = {
            "relation": RELATIONS.get(plain.verdict, "–"),
            "over images": coefficient(plain.over_images),
            "over seeds": coefficient(plain.over_seeds),
            "gains of two seeds": coefficient((seeds_agree(one), math.nan, math.nan)),
        }
    caption = f"rank correlation of distance and gain of APD over pixel KD, {100 * confidence:g} % intervals"
    return page.rows_table(rows, f"{caption}; relation: significant where both intervals leave out zero")
