"""Curves over steps, seconds and context shift, and what losses and steps cost by `tests/measure_*.py`."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator

from apd.evaluation.metrics import scores
from apd.report.comparisons import SHIFT_NAMES, ShiftSweep
from apd.report.detections import DETECTION_NAMES
from apd.report.figures.forest import POINTS, outlying, signed
from apd.report.figures.style import FAINT, INK, WIDTH, Drawing, colour_of, drawing, figure, nothing, quiet_axes, table
from apd.report.statistics import LONGER, Comparison, spread
from apd.study.recipes import METHOD_NAMES
from apd.training.record import Record, RecordError
from apd.training.run import records_folder

TERMS = ("task", "pixel_kd", "observation", "alignment", "regularisation", "learning_rate")
TITLES = {"task": "task: cross-entropy", "learning_rate": "learning rate"}

Measurement = Mapping[str, Any]
SHAPE_NAMES = {"cityscapes": "Cityscapes", "ade20k": "ADE20K", "camvid": "CamVid, small", "coco": "COCO"}
CLASS_BY_CLASS = ", class by class"
COMMANDS = {"speed": "python -m tests.measure_speed", "detection-speed": "python -m tests.measure_detection"}


def spread_out(heights: Sequence[float], least: float) -> list[float]:
    """The same heights, moved apart where neighbours stand closer than `least`; order and middle stay."""
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

    The axes are alone in their figure, with their limits set. `texts` and `colours` are by the key of the mark; without
    colours it is a method.
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
    # a term by its bare name, whichever distiller it belongs to
    curves = {m: {name.split(".")[-1]: v for name, v in r.content["curves"].items()} for m, r in records.items()}
    shown = [term for term in TERMS if any(term in of for of in curves.values())]
    rows = -(-len(shown) // 2)
    with figure(width=WIDTH, height=1.95 * rows) as fig:
        fig.get_layout_engine().set(w_pad=0.06, h_pad=0.08)
        said = []
        for axes, term in zip(fig.subplots(rows, 2, squeeze=False, sharex=True).flat, shown, strict=False):
            having = {method: of for method, of in curves.items() if term in of}
            for method, of in having.items():
                axes.plot(of["iteration"], of[term], color=colour_of(method), linewidth=1.6)
            axes.set_title(TITLES.get(term, term), fontsize=10, fontweight="normal")
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
            quiet_axes(axes, grid="y")
            said.append(f"{term}: {', '.join(f'{METHOD_NAMES[m]} {of[term][-1]:.3g}' for m, of in having.items())}")
        for axes in fig.axes[len(shown) :]:
            axes.set_axis_off()
        fig.supxlabel("steps", fontsize=11)
        marks = [Line2D([], [], color=colour_of(m), linewidth=3, label=METHOD_NAMES[m]) for m in records]
        fig.legend(handles=marks, loc="outside upper left", ncols=2, handlelength=1.2, labelcolor="linecolor")
        return drawing(fig, "Loss terms over the steps; last values: " + "; ".join(said))


def validation_curves(records: Mapping[str, Record], teacher: Record | None = None) -> Drawing:
    """mIoU on the validation split on the way, one line for each method, the finished teacher as a dashed line."""
    with figure(height=3.6) as fig:
        axes = fig.subplots()
        ends, texts = {}, {}
        for method, record in records.items():
            noted = [e for e in record.content["evaluations"] if e["split"] == "val"]
            steps = [e["step"] for e in noted]
            values = [POINTS * scores(torch.tensor(e["confusion"])).miou for e in noted]
            axes.plot(steps, values, color=colour_of(method), marker="o", markersize=5)
            ends[method], texts[method] = (steps[-1], values[-1]), f"{METHOD_NAMES[method]} {values[-1]:.1f}"
        if teacher is not None:
            last = POINTS * scores(torch.tensor(teacher.content["evaluations"][-1]["confusion"])).miou
            axes.axhline(last, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
            ends["teacher"], texts["teacher"] = (max(x for x, _ in ends.values()), last), f"teacher {last:.1f}"
        axes.margins(y=0.08)
        axes.set(xlabel="steps", ylabel="mIoU on val, %", xlim=(0, None))
        quiet_axes(axes, grid="y")
        label_marks(axes, ends, texts)
        return drawing(fig, "mIoU on the validation split after the last step: " + ", ".join(texts.values()))


def score_against_seconds(comparison: Comparison) -> Drawing:
    """mIoU over the seconds that a run's training steps take: further up is better, further left is cheaper.

    A line reaches from the lowest to the highest seed. A dashed line joins the baseline and the equal-time baseline:
    what lies below it does less with its seconds than plain training. Outlying methods are arrowheads at the edge.
    """
    if not comparison.variants:
        return nothing("No seconds can be drawn: there is no record yet.")
    far, names = outlying(comparison), comparison.names
    with figure(height=max(3.3, 1.1 + 0.34 * len(comparison.variants))) as fig:
        axes = fig.subplots()
        axes.set_xscale("log")
        values = {method: [POINTS * v for v in comparison.miou(method).values()] for method in comparison.variants}
        marks = {method: (comparison.run_seconds(method), spread(v).mean) for method, v in values.items()}
        said = (f"{names[method]} {mean:.1f} in {seconds:.0f} seconds" for method, (seconds, mean) in marks.items())
        description = f"{comparison.title}, mIoU and training seconds of a run. " + "; ".join(said)
        texts = {m: f"{names[m]} {mean:.1f}" if m in far else names[m] for m, (_, mean) in marks.items()}
        bar = {"errorbar": ("pi", 100), "err_kws": {"linewidth": 2.2}, "native_scale": True, "ax": axes}
        for method in (method for method in values if method not in far):
            sns.pointplot(x=[marks[method][0]] * len(values[method]), y=values[method], color=colour_of(method), **bar)
        low, high = axes.get_ylim()
        for method in far:
            seconds, mean = marks[method]
            marks[method] = (seconds, min(max(mean, low), high))
            axes.plot(*marks[method], "v" if mean < low else "^", color=colour_of(method), markersize=8, clip_on=False)
        if {"student", LONGER} <= marks.keys():
            ends = np.array([marks["student"], marks[LONGER]])
            axes.plot(*np.linspace(*ends, 20).T, "--", color=INK, linewidth=1)
        axes.set(xlabel="training steps of one run, seconds", ylabel="mIoU, %", ylim=(low, high))
        axes.set_xlim(0.88 * min(x for x, _ in marks.values()), 1.12 * max(x for x, _ in marks.values()))
        label_marks(axes, marks, texts)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 8)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set_title(comparison.title)
        quiet_axes(axes, grid="y")
        return drawing(fig, description)


def sweep_name(one: ShiftSweep) -> str:
    """What is compared in a sweep, in lines of 56 characters."""
    return textwrap.fill(f"{SHIFT_NAMES[one.method]}, over {SHIFT_NAMES[one.reference].removeprefix('+ ')}", 56)


def sweep_figure(sweeps: Sequence[ShiftSweep]) -> Drawing:
    """Gain over context shift: a point for each seed, a square at the mean, a bar for its interval."""
    shown = [one for one in sweeps if one.gains]
    if not shown:
        return nothing("No gain can be drawn: 0 context shifts have records to compare.")
    step = 0.022  # sideways, in units of the context shift
    with figure(height=3.9) as fig:
        axes = fig.subplots()
        said = []
        for place, one in enumerate(shown):
            aside, name = step * (2 * place - len(shown) + 1), sweep_name(one)
            common = {"color": colour_of(one.method), "native_scale": True, "legend": False, "ax": axes}
            # of the mean and the ends of its interval the median and the range are just what is to be drawn
            x, y = zip(*((s + aside, POINTS * v) for s, gain in one.gains.items() for v in gain[:3]), strict=True)
            bar = {"estimator": "median", "errorbar": ("pi", 100), "marker": "s", "markersize": 6, "linewidth": 1.4}
            sns.pointplot(x=x, y=y, label=name, err_kws={"linewidth": 3, "alpha": 0.45}, **bar, **common)
            seeds = [(s + aside + step / 2, POINTS * v) for s, gain in one.gains.items() for v in gain.pairs.values()]
            x, y = zip(*seeds, strict=True)
            sns.stripplot(x=x, y=y, jitter=False, size=4, alpha=0.75, **common)
            gains = ", ".join(f"{POINTS * gain.mean:+.1f} at {shift:g}" for shift, gain in one.gains.items())
            said.append(f"{name}: {gains}")
        axes.axhline(0, color=INK, linewidth=1.2, zorder=1)
        axes.set_xticks(sorted({shift for one in shown for shift in one.gains}))
        axes.set(xlabel="context shift", ylabel="gain in mIoU, points")
        axes.yaxis.set_major_formatter(signed)
        quiet_axes(axes, grid="y")
        fig.legend(loc="outside upper left", handlelength=1.4, labelcolor="linecolor")
        return drawing(fig, "Gain in mIoU, percentage points, by context shift. " + "; ".join(said))


def three_digits(value: float) -> str:
    """A number to three significant digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def read_measurements(folder: Path | None = None, of: str = "speed") -> list[Measurement]:
    """Every file of measurements, one for each processor. RecordError: a file is none, or lacks an entry."""
    found = []
    for path in sorted((folder or records_folder(of)).glob("*.json")):
        try:
            content = json.loads(path.read_text())
            if missing := {"git", "versions", "device", "started", "shapes", "rows"} - content.keys():
                raise ValueError(f"{', '.join(sorted(missing))} missing")
        except (AttributeError, OSError, ValueError) as error:
            raise RecordError(f"{path} holds no measurements: {error}. Delete it and run {COMMANDS[of]}") from error
        found.append(content)
    return found


def rows_of(measurement: Measurement, shape: str, dtype: str = "fp32", way: str = "eager") -> dict[str, Mapping]:
    """The rows of a shape, by name of the loss."""
    wanted = (shape, dtype, way)
    return {r["loss"]: r for r in measurement["rows"] if (r["shape"], r["dtype"], r["way"]) == wanted}


def milliseconds_by_loss(measurement: Measurement, shape: str) -> Drawing:
    """Median milliseconds of a forward and backward pass, fastest at the top, on a logarithmic axis."""
    rows = rows_of(measurement, shape).items()
    medians = pd.Series({name: row["milliseconds"][1] for name, row in rows}).sort_values()
    colours = [colour_of("apd" if name.startswith("APD") else "") for name in medians.index]
    with figure(height=0.9 + 0.27 * len(medians)) as fig:
        axes = fig.subplots()
        sns.barplot(x=medians, y=medians.index, hue=medians.index, palette=colours, log_scale=True, ax=axes)
        for bar in axes.containers:
            axes.bar_label(bar, fmt=three_digits, padding=4)
        axes.set(xlabel="milliseconds of a forward and backward pass", ylabel="", title=SHAPE_NAMES[shape])
        quiet_axes(axes, grid="x")
        said = ", ".join(f"{name} {three_digits(value)}" for name, value in medians.items())
        return drawing(fig, f"{SHAPE_NAMES[shape]}, median milliseconds of a forward and backward pass: {said}")


def speed_table(measurement: Measurement, shape: str) -> Drawing:
    """Time and memory of every loss at a shape; bf16 and compiled where they were measured."""
    half, compiled = rows_of(measurement, shape, "bf16"), rows_of(measurement, shape, way="compiled")
    frame = {
        name: {
            "ms": three_digits(row["milliseconds"][1]),
            "quartiles": _range(row["milliseconds"]),
            "peak, MiB": three_digits(row["peak_bytes"] / 2**20),
            "ms, bf16 maps": three_digits(half[name]["milliseconds"][1]) if name in half else "–",
            "ms, compiled": three_digits(compiled[name]["milliseconds"][1]) if name in compiled else "–",
        }
        for name, row in rows_of(measurement, shape).items()
    }
    s = measurement["shapes"][shape]
    caption = (
        f"{SHAPE_NAMES[shape]}: {s['batch']} × {s['channels']} × {s['grid']} × {s['grid']}, {s['classes']} classes, "
        f"labels {s['labels']} × {s['labels']}; forward and backward"
    )
    return table(pd.DataFrame.from_dict(frame, orient="index"), caption)


def against_the_reference(measurements: Sequence[Measurement]) -> Drawing:
    """How many times faster than class by class, and at which share of its memory."""
    if not measurements:
        return nothing(f"Nothing has been measured yet: {COMMANDS['speed']} does it.")
    frame = {}
    for measurement in measurements:
        for shape in measurement["shapes"]:
            rows = rows_of(measurement, shape)
            for name in ("APD, no heads", "APD"):
                ours, slow = rows[name], rows[name + CLASS_BY_CLASS]
                faster = slow["milliseconds"][1] / ours["milliseconds"][1]
                frame[f"{measurement['device']['name']}, {SHAPE_NAMES[shape]}: {name}"] = {
                    "times as fast": f"{faster:.1f}",
                    "of its memory": f"{100 * ours['peak_bytes'] / slow['peak_bytes']:.0f} %",
                }
    return table(pd.DataFrame.from_dict(frame, orient="index"), "compared with the same terms written class by class")


def step_cost_table(measurement: Measurement, row: Mapping[str, Any]) -> Drawing:
    """Milliseconds of the parts of a detector's step, and what each distiller adds to the teacher's forward pass."""
    shape, baseline = measurement["shapes"][row["shape"]], row["student"][1]
    parts = {"baseline": row["student"], "teacher’s forward pass": row["teacher"], **row["steps"]}
    added = {key: f"{round(100 * found[1])} %".replace("-", "−") for key, found in row["added"].items()}
    frame = {
        DETECTION_NAMES.get(key, key): {
            "ms": three_digits(found[1]),
            "quartiles": _range(found),
            "of the baseline": f"{100 * found[1] / baseline:.0f} %",
            "added by the distiller": added.get(key, "–"),
        }
        for key, found in parts.items()
    }
    caption = (
        f"{SHAPE_NAMES.get(row['shape'], row['shape'])}, {shape['batch']} images of {shape['height']} × "
        f"{shape['width']}, Mask R-CNN {shape['student']['backbone']} ← {shape['teacher']['backbone']}, on "
        f"{measurement['device']['name']}: forward and backward; {measurement['repeats']} repeats"
    )
    return table(pd.DataFrame.from_dict(frame, orient="index"), caption)


def _range(quartiles: Sequence[float]) -> str:
    return f"{three_digits(quartiles[0])} to {three_digits(quartiles[2])}"
