"""Prototypes over the steps of a run: one plane for both networks, and whether they stay apart."""

from collections.abc import Sequence

import pandas as pd
import seaborn as sns
import torch
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from apd.data.specs import DatasetSpec
from apd.report.figures.curves import label_marks
from apd.report.figures.scenes import class_key
from apd.report.figures.style import INK, METHOD_COLOURS, WIDTH, Drawing, Mark, drawing, figure, hoverable, quiet_axes
from apd.report.trace import Trace, pairwise_cosine

MARKERS = {"teacher": "o", "student": "^"}


def plane_of(prototypes_BKD: Tensor, present_BK: Tensor) -> tuple[Tensor, Tensor, float]:
    """The two principal directions of present prototypes: their mean (D,), the directions (D, 2), and their share.

    The share is that of the squared distances to the mean which the plane keeps, from 0 to 1. A direction's sign is
    that which makes its largest component positive, so that the same prototypes give the same picture anywhere.

    Raises:
        ValueError: fewer than three prototypes.
    """
    rows_ND = prototypes_BKD[present_BK].double()
    if len(rows_ND) < 3:
        raise ValueError(f"{len(rows_ND)} prototypes: expected at least 3 to lay a plane through")
    mean_D = rows_ND.mean(0)
    _, lengths_N, directions_ND = torch.linalg.svd(rows_ND - mean_D, full_matrices=False)
    directions_D2 = directions_ND[:2].T
    largest_2 = directions_D2.gather(0, directions_D2.abs().argmax(0, keepdim=True))
    kept = float(lengths_N[:2].square().sum() / lengths_N.square().sum().clamp(min=1e-12))
    return mean_D, directions_D2 * largest_2.sign(), kept


def prototype_plane(trace: Trace, spec: DatasetSpec, names: Sequence[str]) -> Drawing:
    """Prototypes of both networks in one plane at four moments; a mark tells its image, class and cosine.

    The plane is laid through the teacher's prototypes after the last step and is the same for both networks and all
    moments: the first, the one after it, the middle and the last. Circles are the teacher's prototypes, triangles the
    student's, colours are classes.

    Args:
        trace: from :func:`apd.report.trace.watch`.
        spec: names and colours of the classes.
        names: of the watched images.
    """
    mean_D, directions_D2, kept = plane_of(trace.teacher_SBKD[-1], trace.present_BK)
    last, columns = len(trace.steps) - 1, 2
    chosen = sorted({0, min(1, last), last // 2, last})  # the teacher's head moves most in its first steps
    rows = -(-len(chosen) // columns)
    colours = {k: tuple(c / 255 for c in colour) for k, colour in enumerate(spec.palette)}
    with figure(width=WIDTH, height=0.75 + 2.5 * rows) as fig:
        marks: list[Mark] = []
        all_axes = fig.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat
        images_N, classes_N = torch.nonzero(trace.present_BK, as_tuple=True)
        for axes, moment in zip(all_axes, chosen, strict=False):
            both = {"teacher": trace.teacher_SBKD[moment], "student": trace.student_SBKD[moment]}
            between_BK = (both["teacher"] * both["student"]).sum(2)
            for who, prototypes_BKD in both.items():
                x_N, y_N = ((prototypes_BKD[trace.present_BK].double() - mean_D) @ directions_D2).T.tolist()
                look = {"marker": MARKERS[who], "s": 26, "edgecolor": INK, "linewidth": 0.5, "legend": False}
                sns.scatterplot(x=x_N, y=y_N, hue=classes_N.tolist(), palette=colours, ax=axes, **look)
                for x, y, b, k in zip(x_N, y_N, images_N.tolist(), classes_N.tolist(), strict=True):
                    lines = (
                        f"{names[b]}, {spec.class_names[k]}",
                        f"{who}, step {trace.steps[moment]}",
                        f"cosine of teacher’s and student’s {float(between_BK[b, k]):.2f}",
                    )
                    marks.append(Mark(axes, x, y, lines, group=f"{b}.{k}"))
            axes.set_title(f"step {trace.steps[moment]}", fontsize=10.5, fontweight="normal")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            axes.axhline(0, color=INK, linewidth=0.6, alpha=0.25, zorder=0)
            axes.axvline(0, color=INK, linewidth=0.6, alpha=0.25, zorder=0)
        for axes in fig.axes[len(chosen) :]:
            axes.set_axis_off()
        fig.legend(
            handles=[
                Line2D([], [], linestyle="", marker=marker, markerfacecolor="none", color=INK)
                for marker in MARKERS.values()
            ],
            labels=list(MARKERS),
            loc="outside upper left",
            ncols=2,
        )
        description = (
            f"Prototypes of teacher and student in the plane of the teacher's last ones, which keeps "
            f"{100 * kept:.0f} % of their spread, at steps {', '.join(str(trace.steps[moment]) for moment in chosen)}"
        )
        shown = hoverable(fig, marks, description)
    return Drawing(shown.html + class_key(spec, ignored=False), description)


def apart_over_steps(trace: Trace) -> Drawing:
    """Mean cosine between an image's prototypes over the steps, for each way to treat the teacher's head.

    Lines are means over the watched images, shades reach from the 10th to the 90th per cent of them.
    """
    flat_SB = pairwise_cosine(trace.untrained_BKD, trace.present_BK).expand(len(trace.steps), -1)
    lines = {
        "alignment trains the head": ("#c9742a", pairwise_cosine(trace.aligned_SBKD, trace.present_BK)),
        "nothing trains the head": ("#7d8796", flat_SB),
        "the student’s prototypes": (INK, pairwise_cosine(trace.student_SBKD, trace.present_BK)),
        "regularisation trains the head": (
            METHOD_COLOURS["apd"],
            pairwise_cosine(trace.teacher_SBKD, trace.present_BK),
        ),
    }
    with figure(height=3.5) as fig:
        axes = fig.subplots()
        ends, said = {}, []
        for name, (colour, values_SB) in lines.items():
            frame = pd.DataFrame(values_SB.numpy(), trace.steps).melt(ignore_index=False).reset_index()
            dashes = "--" if colour == INK else "-"
            look = {"errorbar": ("pi", 80), "err_kws": {"linewidth": 0}, "color": colour, "linestyle": dashes}
            sns.lineplot(frame, x="index", y="value", ax=axes, **look)
            mean_S = values_SB.nanmean(1).tolist()
            ends[name] = (trace.steps[-1], mean_S[-1])
            said.append(f"{name}: {mean_S[0]:.2f} to {mean_S[-1]:.2f}")
        axes.set_ylim(min(0.0, axes.get_ylim()[0]), 1.02)
        axes.set_xlim(0, trace.steps[-1])
        label_marks(axes, ends, {name: name for name in ends}, {name: colour for name, (colour, _) in lines.items()})
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.set(xlabel="steps", ylabel="cosine between prototypes")
        quiet_axes(axes, grid="y")
        return drawing(fig, "Mean cosine between an image's prototypes, first to last step. " + "; ".join(said))
