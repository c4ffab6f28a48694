"""Curves over steps, seconds and context shift, and what losses and steps cost by `tests/measure_*.py`."""

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from scipy.optimize import isotonic_regression

import apd.report.figures.style as page
from apd.report.comparisons import ShiftSweep
from apd.report.figures.answers import interval, on_val, validation_score
from apd.report.figures.forest import MARKS, NARROW, POINTS, signed
from apd.report.figures.style import INK, METHOD_COLOURS, Drawing, colour_of, drawing, figure, nothing, quiet_axes
from apd.study.recipes import METHOD_NAMES
from apd.training.record import Record, RecordError, records_folder
from apd.training.schema import read_json

TERMS = ("task", "pixel_kd", "observation", "alignment", "regularisation", "learning_rate")
RUN_COLOURS = ("#0e9384", "#c9742a", "#4c86c9", "#9a6bd0", "#7d8796", "#8c7a5b")  # of runs that are no methods, in turn
TITLES = {"task": "task: cross-entropy", "learning_rate": "learning rate"}

Measurement = Mapping[str, Any]
SHAPE_NAMES = {"cityscapes": "Cityscapes", "ade20k": "ADE20K", "camvid": "CamVid, small"}
SWEPT = "Gain in mIoU, percentage points, by context shift"
CLASS_BY_CLASS = ", class by class"
COMMANDS = {of: f"python -m book.figures.{of.replace('-', '_')}" for of in ("speed", "detection-speed", "loop-speed")}


def line_colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each line: a method's own, else one of RUN_COLOURS."""
    return {name: METHOD_COLOURS.get(name, RUN_COLOURS[i % len(RUN_COLOURS)]) for i, name in enumerate(names)}


def legend_above(fig: Figure, ncols: int = 2, handlelength: float = 1.4, **handles: Sequence[Line2D]) -> None:
    """A legend over the axes, its names in the colours of their lines."""
    fig.legend(loc="outside upper left", ncols=ncols, handlelength=handlelength, labelcolor="linecolor", **handles)


def term_curves(records: Mapping[str, Record], terms: Sequence[str] = TERMS) -> Drawing:
    """Loss terms and the learning rate over the steps, one panel each, one line for each method or run."""
    # a term by its bare name, whichever distiller it belongs to, unless its whole name is asked for
    curves = {
        name: {term if term in terms else term.split(".")[-1]: v for term, v in record.content["curves"].items()}
        for name, record in records.items()
    }
    shown, colours = [term for term in terms if any(term in of for of in curves.values())], line_colours(records)
    names = {name: METHOD_NAMES.get(name, name) for name in records}
    rows = -(-len(shown) // 2)
    with figure(height=1.95 * rows) as fig:
        fig.get_layout_engine().set(w_pad=0.06, h_pad=0.08)
        said = []
        for axes, term in zip(fig.subplots(rows, 2, squeeze=False, sharex=True).flat, shown, strict=False):
            having = {method: of for method, of in curves.items() if term in of}
            for method, of in having.items():
                axes.plot(of["iteration"], of[term], color=colours[method], linewidth=1.6)
            axes.set_title(TITLES.get(term, term), fontsize=10, fontweight="normal")
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
            quiet_axes(axes, grid="y")
            said.append(f"{term}: {', '.join(f'{names[m]} {of[term][-1]:.3g}' for m, of in having.items())}")
        for axes in fig.axes[len(shown) :]:
            axes.set_axis_off()
            fig.axes[len(shown) - 2].tick_params(labelbottom=True)  # the last of its column
        fig.supxlabel("steps", fontsize=11)
        legend_above(fig, handles=[Line2D([], [], color=colours[m], linewidth=3, label=n) for m, n in names.items()])
        return drawing(fig, "Loss terms over the steps; last values: " + "; ".join(said))


def labelled_lines(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float], str]], ylabel: str, digits: int
) -> Drawing:
    """Lines over the steps (steps, values, colour), each with its name and last value beside its end."""
    last = {name: values[-1] for name, (_, values, _) in lines.items()}
    with figure(height=3.3) as fig:
        axes = fig.subplots()
        for steps, values, colour in lines.values():
            marker = "o" if len(steps) < 20 and colour != INK else ""
            style = {"linewidth": 1.6, "linestyle": "--" if colour == INK else "-", "markersize": 5, "clip_on": False}
            axes.plot(steps, values, color=colour, marker=marker, **style)
        axes.margins(y=0.08)
        axes.set(xlabel="steps", ylabel=ylabel, xlim=(0, max(steps[-1] for steps, _, _ in lines.values())))
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        quiet_axes(axes, grid="y")
        names = sorted(last, key=last.get)
        # as near to the ends as labels can be that keep their order and this distance
        apart = 0.08 * (axes.get_ylim()[1] - axes.get_ylim()[0]) * np.arange(len(names))
        heights = isotonic_regression([last[name] for name in names] - apart).x + apart
        beside = {"xycoords": axes.get_yaxis_transform(), "textcoords": axes.get_yaxis_transform(), "va": "center"}
        arrow = {"arrowstyle": "-", "linewidth": 0.8, "relpos": (0, 0.5), "shrinkA": 2, "shrinkB": 4}
        for name, height in zip(names, heights, strict=True):
            style = {"color": lines[name][2], "arrowprops": {"color": lines[name][2], **arrow}, **beside}
            axes.annotate(f"{name} {last[name]:.{digits}f}", (1, last[name]), (1.06, height), **style)
        said = ", ".join(f"{name} {value:.{digits}f}" for name, value in last.items())
        return drawing(fig, f"{ylabel}; after the last step: {said}")


def validation_curves(records: Mapping[str, Record], teacher: Record | None = None) -> Drawing:
    """The score on val on the way, one line for each method or run, the finished teacher as a dashed line."""
    lines = {}
    for (name, record), colour in zip(records.items(), line_colours(records).values(), strict=True):
        if found := on_val(record):
            lines[METHOD_NAMES.get(name, name)] = [*found], [POINTS * value for value in found.values()], colour
    if not lines:
        return nothing("No score can be drawn: 0 of the runs were scored on val on the way.")
    if teacher is not None:
        end = max(steps[-1] for steps, _, _ in lines.values())
        lines["teacher"] = [0, end], [POINTS * validation_score(teacher)] * 2, INK
    return labelled_lines(lines, f"{next(iter(records.values())).headline[0]} on val, %", 1)


def sweep_figure(sweeps: Sequence[ShiftSweep]) -> Drawing:
    """Gain over context shift: a point for each seed, a square at the mean, a line for its interval."""
    shown = [one for one in sweeps if one.gains]
    if not shown:
        return nothing("No gain can be drawn: 0 context shifts have records to compare.")
    step = 0.022  # sideways, in units of the context shift
    with figure(height=3.9) as fig:
        axes, colours, said = fig.subplots(), [], []
        for place, one in enumerate(shown):
            aside, name = step * (2 * place - len(shown) + 1), textwrap.fill(one.name, 52)
            x = [shift + aside for shift in one.gains]
            # a method that is there twice takes a colour of its own for the second
            colours += [next(c for c in (colour_of(one.method), *RUN_COLOURS[2:]) if c not in colours)]
            style = {"color": colours[-1], "linestyle": ("-", "--", ":")[place % 3], "label": name}
            means, lows, highs = ([POINTS * gain[part] for gain in one.gains.values()] for part in range(3))
            axes.vlines(x, lows, highs, color=colours[-1], linewidth=3, alpha=0.45)
            axes.plot(x, means, marker="s", markersize=6, linewidth=1.4, **style)
            for at, gain in zip(x, one.gains.values(), strict=True):
                seeds = [POINTS * value for value in gain.pairs.values()]
                axes.plot([at + step / 2] * len(seeds), seeds, "o", color=colours[-1], markersize=4, alpha=0.75)
            gains = (f"{interval(gain)} at {shift:g}" for shift, gain in one.gains.items())
            said.append(f"{one.name}: {', '.join(gains)}")
        axes.axhline(0, color=INK, linewidth=1.2, zorder=1)
        axes.set_xticks(sorted({shift for one in shown for shift in one.gains}))
        axes.set(xlabel="context shift", ylabel="gain in mIoU, points")
        axes.yaxis.set_major_formatter(signed)
        quiet_axes(axes, grid="y")
        legend_above(fig, ncols=1, handlelength=3.6)
        drawn = drawing(fig, f"{SWEPT}. {'; '.join(said)}")
    return drawn.captioned(f"{SWEPT}. Square: {MARKS}. Shifted sideways for legibility.")


def sweep_table(sweeps: Sequence[ShiftSweep]) -> Drawing:
    """The means of :func:`sweep_figure` with their intervals: a row for each context shift, a column for each line."""
    rows = {
        f"context shift {shift:g}": {one.name: interval(one.gains[shift]) for one in sweeps if shift in one.gains}
        for shift in sorted({shift for one in sweeps for shift in one.gains})
    }
    return page.rows_table(rows, f"{SWEPT}: means with their confidence intervals, uncorrected")


def three_digits(value: float) -> str:
    """A number to three significant digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def read_measurements(folder: Path | None = None, of: str = "speed") -> list[Measurement]:
    """Every file of measurements, one for each processor. RecordError: a file is none, or lacks an entry."""
    found = []
    for path in sorted((folder or records_folder(of)).glob("*.json")):
        try:
            content = read_json(path)
            if missing := {"git", "versions", "device", "started", "shapes", "rows"} - content.keys():
                raise ValueError(f"{', '.join(sorted(missing))} missing")
        except (AttributeError, ValueError) as error:
            raise RecordError(f"{path} holds no measurements: {error}. Delete it and run {COMMANDS[of]}") from error
        found.append(content)
    return found


def rows_of(measurement: Measurement, shape: str, dtype: str = "fp32", way: str = "eager") -> dict[str, Mapping]:
    """The rows of a shape, by name of the loss."""
    wanted = (shape, dtype, way)
    return {r["loss"]: r for r in measurement["rows"] if (r["shape"], r["dtype"], r["way"]) == wanted}


def bars(
    columns: Mapping[str, Mapping[str, float]],
    axis: str,
    *,
    text: Callable[[float], str] = "× {:.2f}".format,
    log: bool = False,
) -> Drawing:
    """Numbers as bars with their `text` beside them, a panel for each title, a row for each name, APD's in colour."""
    columns = {title: of for title, of in columns.items() if of}
    if not columns:
        return nothing(f"{axis}: 0 measurements yet.")
    beside, *stacked = (_bars(columns, axis, text, log, lines) for lines in dict.fromkeys((1, len(columns))))
    return page.arranged(beside, *stacked) if stacked else beside


def _bars(columns: Mapping[str, Mapping[str, float]], axis: str, text: Callable, log: bool, lines: int) -> Drawing:
    """Panels side by side, or in so many `lines`, for a phone."""
    names = list(dict.fromkeys(name for of in columns.values() for name in of))
    values = [value for of in columns.values() for value in of.values()]
    left = min(values) / 2 if log else 0.0  # bars from zero have no finite length on such an axis
    width = page.WIDTH + 1.2 * (len(columns) - 1) if lines == 1 else NARROW
    with figure(width=width, height=0.5 + lines * (0.6 + 0.27 * len(names))) as fig:
        panels = fig.subplots(lines, len(columns) // lines, sharex=True, sharey=True, squeeze=False)
        for axes, (title, of) in zip(panels.flat, columns.items(), strict=True):
            colours = [colour_of("apd" if "APD" in f"{title} {name}" else "student") for name in of]
            places, lengths = [names.index(name) for name in of], [value - left for value in of.values()]
            drawn = axes.barh(places, lengths, 0.7, left, color=colours, linewidth=0)
            axes.bar_label(drawn, [text(value) for value in of.values()], padding=4)
            axes.set_xscale("log" if log else "linear")
            axes.set_xlim(left, max(values) * (10 if log else 1.1 + 0.15 * len(columns) / lines))
            for label in axes.get_xticklabels():  # powers of ten
                label.set_parse_math(log)
            axes.set_title(textwrap.fill(title, min(20, 72 // len(columns)) if lines == 1 else 28))
            quiet_axes(axes, grid="x")
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        fig.supxlabel(axis, fontsize="medium")
        said = (f"{t}: {', '.join(f'{name} {text(value)}' for name, value in of.items())}" for t, of in columns.items())
        return drawing(fig, f"{axis}. {'. '.join(said)}")


def speed_table(measurement: Measurement, shape: str) -> Drawing:
    """Time and memory of every loss at a shape; bf16 and compiled where they were measured."""
    others = {
        "ms, bf16 maps": rows_of(measurement, shape, "bf16"),
        "ms, compiled": rows_of(measurement, shape, way="compiled"),
    }
    rows = {}
    for name, row in rows_of(measurement, shape).items():
        low, median, high = map(three_digits, row["milliseconds"])
        peak = three_digits(row["peak_bytes"] / 2**20)
        rows[name] = {"ms": median, "quartiles": f"{low} to {high}", "peak, MiB": peak}
        rows[name] |= {key: three_digits(of[name]["milliseconds"][1]) for key, of in others.items() if name in of}
    s = measurement["shapes"][shape]
    caption = (
        f"{SHAPE_NAMES[shape]}: {s['batch']} × {s['channels']} × {s['grid']} × {s['grid']}, {s['classes']} classes, "
        f"labels {s['labels']} × {s['labels']}; forward and backward"
    )
    return page.rows_table(rows, caption)
