"""How runs went: their terms, learning rate and validation scores over the steps."""

import textwrap
from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from apd.evaluation.metrics import scores
from apd.report.figures.page import Drawing
from apd.report.figures.style import FAINT, INK, METHOD_COLOURS, WIDTH, colour_of, drawing, figure, quiet_axes
from apd.study.recipes import METHOD_NAMES
from apd.training.record import Record

PANELS = {
    "task": "task: cross-entropy",
    "pixel_kd": "pixel_kd",
    "observation": "observation",
    "alignment": "alignment",
    "regularisation": "regularisation",
    "learning_rate": "learning rate",
}


def _curves_of(record: Record) -> dict[str, list[float]]:
    """A record's curves by the bare name of the term, whichever distiller it belongs to."""
    return {name.split(".")[-1]: values for name, values in record.content["curves"].items()}


def spread_out(heights: Sequence[float], least: float) -> list[float]:
    """The same heights, moved apart where neighbours stand closer than `least`; order and each cluster's middle stay.

    >>> spread_out([1.0, 5.0, 1.0], 2.0)
    [0.0, 5.0, 2.0]
    """
    clusters: list[list[int]] = []
    middles: list[float] = []
    for i in sorted(range(len(heights)), key=lambda i: heights[i]):
        clusters.append([i])
        middles.append(heights[i])
        while len(clusters) > 1 and middles[-1] - middles[-2] < least * (len(clusters[-1]) + len(clusters[-2])) / 2:
            clusters[-2:] = [clusters[-2] + clusters[-1]]
            middles[-2:] = [sum(heights[j] for j in clusters[-1]) / len(clusters[-1])]
    placed = [0.0] * len(heights)
    for cluster, middle in zip(clusters, middles, strict=True):
        for place, i in enumerate(cluster):
            placed[i] = middle + least * (place - (len(cluster) - 1) / 2)
    return placed


def label_marks(
    axes: Axes,
    marks: Mapping[str, tuple[float, float]],
    texts: Mapping[str, str],
    colours: Mapping[str, str] | None = None,
) -> None:
    """Names right of the axes at the heights of their marks, moved apart where they would overlap, thin lines between.

    Args:
        axes: alone in its figure, with its limits set; the figure makes room at the right.
        marks: position of each mark, by key.
        texts, colours: of each mark's name, by key; None takes the methods' colours.
    """
    wrapped = {key: textwrap.fill(texts[key], 16) for key in marks}
    low, high = axes.get_ylim()
    inch = (high - low) / (axes.figure.get_figheight() - 0.8)
    lines = max(text.count("\n") + 1 for text in wrapped.values())
    heights = spread_out([y for _, y in marks.values()], (0.04 + 0.155 * lines) * inch)
    axes.set_ylim(min(low, *(height - 0.1 * inch for height in heights)), max(high, *heights))
    for (key, mark), height in zip(marks.items(), heights, strict=True):
        axes.annotate(
            wrapped[key],
            mark,
            xytext=(1.05, height),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            linespacing=0.95,
            color=colour_of(key) if colours is None else colours[key],
            arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.8, "shrinkB": 4, "relpos": (0, 0.5)},
            annotation_clip=False,
        )


def term_curves(records: Mapping[str, Record]) -> Drawing:
    """Every loss term and the learning rate over the steps, one panel each, one line for each method."""
    shown = [term for term in PANELS if any(term in _curves_of(record) for record in records.values())]
    rows = -(-len(shown) // 2)
    with figure(width=WIDTH, height=1.95 * rows) as fig:
        fig.get_layout_engine().set(w_pad=0.06, h_pad=0.08)
        all_axes = fig.subplots(rows, 2, squeeze=False, sharex=True).flat
        said = []
        for axes, term in zip(all_axes, shown, strict=False):
            lasts = []
            for method, record in records.items():
                curves = _curves_of(record)
                if term in curves:
                    axes.plot(curves["iteration"], curves[term], color=METHOD_COLOURS[method], linewidth=1.6)
                    lasts.append(f"{METHOD_NAMES[method]} {curves[term][-1]:.3g}")
            axes.set_title(PANELS[term], fontsize=10, fontweight="normal")
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
            quiet_axes(axes, grid="y")
            said.append(f"{term}: {', '.join(lasts)}")
        for axes in fig.axes[len(shown) :]:
            axes.set_axis_off()
        fig.supxlabel("steps", fontsize=11)
        fig.legend(
            handles=[Line2D([], [], color=METHOD_COLOURS[method], linewidth=3) for method in records],
            labels=[METHOD_NAMES[method] for method in records],
            loc="outside upper left",
            ncols=2,
            handlelength=1.2,
            labelcolor=[METHOD_COLOURS[method] for method in records],
        )
        return drawing(fig, "Loss terms over the steps; last values: " + "; ".join(said))


def validation_curves(records: Mapping[str, Record], teacher: Record | None = None) -> Drawing:
    """mIoU on the validation split on the way, one line for each method, the finished teacher as a dashed line."""
    with figure(height=3.6) as fig:
        axes = fig.subplots()
        ends, texts = {}, {}
        for method, record in records.items():
            noted = [e for e in record.content["evaluations"] if e["split"] == "val"]
            values = [100 * scores(torch.tensor(e["confusion"])).miou for e in noted]
            steps = [e["step"] for e in noted]
            axes.plot(steps, values, color=METHOD_COLOURS[method], marker="o", markersize=5)
            ends[method], texts[method] = (steps[-1], values[-1]), f"{METHOD_NAMES[method]} {values[-1]:.1f}"
        if teacher is not None:
            last = 100 * scores(torch.tensor(teacher.content["evaluations"][-1]["confusion"])).miou
            axes.axhline(last, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
            ends["teacher"], texts["teacher"] = (max(x for x, _ in ends.values()), last), f"teacher {last:.1f}"
        axes.set_xlim(left=0)
        axes.margins(y=0.08)
        axes.set_xlabel("steps")
        axes.set_ylabel("mIoU on val, %")
        quiet_axes(axes, grid="y")
        label_marks(axes, ends, texts)
        return drawing(fig, "mIoU on the validation split after the last step: " + ", ".join(texts.values()))
