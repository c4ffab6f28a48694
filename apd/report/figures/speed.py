"""What the method costs, drawn from the files that `python -m tests.measure_speed` leaves."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from apd.report.figures.forest import Row, draw_rows
from apd.report.figures.style import (
    METHOD_COLOURS,
    Drawing,
    Markdown,
    colour_of,
    drawing,
    figure,
    nothing,
    quiet_axes,
    table,
)
from apd.training.record import RecordError
from apd.training.run import records_folder

Measurement = Mapping[str, Any]
SHAPE_NAMES = {"cityscapes": "Cityscapes", "ade20k": "ADE20K", "camvid": "CamVid, small"}
CLASS_BY_CLASS = ", class by class"
COMMAND = "python -m tests.measure_speed"
"""What makes a file of measurements, with all its parts."""
_MIB = 2**20


def three_digits(value: float) -> str:
    """A number to three significant digits, without an exponent.

    >>> three_digits(1234.5), three_digits(0.66312)
    ('1234', '0.663')
    """
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def read_measurements(folder: Path | None = None) -> list[Measurement]:
    """Every file of measurements, one for each processor; empty when there is none.

    Raises:
        RecordError: a file is none, or lacks an entry that every one has.
    """
    return [_read(path) for path in sorted((folder or records_folder("speed")).glob("*.json"))]


def _read(path: Path) -> Measurement:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: cannot be read as JSON: {error}. Delete it and run {COMMAND}") from error
    needed = ("git", "versions", "device", "started", "shapes", "rows")
    missing = [entry for entry in needed if not isinstance(content, dict) or entry not in content]
    if missing:
        raise RecordError(f"{path}: {', '.join(missing)} missing. Delete it and run {COMMAND}")
    return content


def rows_of(measurement: Measurement, shape: str, dtype: str = "fp32", way: str = "eager") -> dict[str, Mapping]:
    """The rows of a shape, by name of the loss."""
    wanted = (shape, dtype, way)
    return {r["loss"]: r for r in measurement["rows"] if (r["shape"], r["dtype"], r["way"]) == wanted}


def sizes(measurement: Measurement, shape: str) -> str:
    """The sizes of a shape in words."""
    s = measurement["shapes"][shape]
    return (
        f"{SHAPE_NAMES[shape]}: {s['batch']} × {s['channels']} × {s['grid']} × {s['grid']}, "
        f"{s['classes']} classes, labels {s['labels']} × {s['labels']}"
    )


def milliseconds_by_loss(measurement: Measurement, shape: str) -> Drawing:
    """Median milliseconds of a forward and backward pass, fastest at the top, on a logarithmic axis."""
    rows = sorted(rows_of(measurement, shape).values(), key=lambda row: row["milliseconds"][1])
    if not rows:
        return nothing(f"{SHAPE_NAMES[shape]}: nothing was measured.")
    with figure(height=0.9 + 0.27 * len(rows)) as fig:
        axes = fig.subplots()
        axes.set_xscale("log")
        draw_rows(
            axes,
            [
                Row(
                    place,
                    [],
                    METHOD_COLOURS["apd"] if row["loss"].startswith("APD") else colour_of(""),
                    row["milliseconds"],
                    three_digits(row["milliseconds"][1]),
                )
                for place, row in enumerate(rows)
            ],
        )
        axes.set_yticks(range(len(rows)), [row["loss"].replace(CLASS_BY_CLASS, ", by class") for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel("milliseconds of a forward and backward pass")
        axes.set_title(SHAPE_NAMES[shape])
        quiet_axes(axes, grid="x")
        told = ", ".join(f"{row['loss']} {three_digits(row['milliseconds'][1])}" for row in rows)
        return drawing(fig, f"{SHAPE_NAMES[shape]}, median milliseconds of a forward and backward pass: {told}")


def speed_table(measurement: Measurement, shape: str) -> Drawing:
    """Time and memory of every loss at a shape; bf16 and compiled where they were measured."""
    rows = rows_of(measurement, shape)
    half, compiled = rows_of(measurement, shape, "bf16"), rows_of(measurement, shape, way="compiled")
    frame = {
        name: {
            "ms": three_digits(row["milliseconds"][1]),
            "quartiles": f"{three_digits(row['milliseconds'][0])} to {three_digits(row['milliseconds'][2])}",
            "peak, MiB": three_digits(row["peak_bytes"] / _MIB),
            "ms, bf16 maps": three_digits(half[name]["milliseconds"][1]) if name in half else "–",
            "ms, compiled": three_digits(compiled[name]["milliseconds"][1]) if name in compiled else "–",
        }
        for name, row in rows.items()
    }
    return table(pd.DataFrame.from_dict(frame, orient="index"), f"{sizes(measurement, shape)}; forward and backward")


def against_the_reference(measurements: Sequence[Measurement]) -> Markdown:
    """How many times faster than class by class, at which share of its memory, and how far above the floor."""
    if not measurements:
        return Markdown(f"Nothing has been measured yet: `{COMMAND}` does it.")
    lines = []
    for measurement in measurements:
        lines.append(f"**{measurement['device']['name']}**, {measurement['device']['type']}\n")
        for shape in measurement["shapes"]:
            rows = rows_of(measurement, shape)
            for name, heads in (("APD, no heads", "no heads"), ("APD", "heads")):
                ours, slow = rows[name], rows[name + CLASS_BY_CLASS]
                faster = slow["milliseconds"][1] / ours["milliseconds"][1]
                share = ours["peak_bytes"] / slow["peak_bytes"]
                lines.append(
                    f"- {SHAPE_NAMES[shape]}, {'with heads' if heads == 'heads' else heads}: **{faster:.1f} times** as "
                    f"fast as class by class, at **{100 * share:.0f} %** of its memory."
                )
                if "floor" in measurement:  # older files have it
                    moved, operations = measurement["floor"][shape][heads]
                    lines[-1] += (
                        f" The floor is {moved / _MIB:.0f} MiB moved and {operations / 1e9:.1f} G operations; in its "
                        f"time the method does {operations / 1e6 / ours['milliseconds'][1]:.0f} G of them a second."
                    )
        lines.append("")
    return Markdown("\n".join(lines))


def switches_table(measurement: Measurement) -> Drawing:
    """Seconds of a training step under each setting, and as a multiple of the recipe as it is; a column a recipe."""
    rows = measurement.get("switches")
    if not rows:
        return _not_measured(measurement, "the switches of a training step have")
    before = {row["recipe"]: row["milliseconds"][1] for row in rows if row["setting"] == "as it is"}
    frame: dict[str, dict[str, str]] = {}
    for row in rows:
        told = f"not here ({row['reason']})"
        if row["milliseconds"]:
            low, middle, high = (three_digits(value / 1e3) for value in row["milliseconds"])
            told = f"{middle} s ({low} to {high}), {row['milliseconds'][1] / before[row['recipe']]:.2f} times"
        frame.setdefault(row["setting"], {})[_step(measurement, row["recipe"])] = told
    caption = f"a training step on {_where(measurement)}: median and quartiles, and times the recipe as it is"
    return table(pd.DataFrame.from_dict(frame, orient="index").fillna("–"), caption)


def feeding_table(measurement: Measurement) -> Drawing:
    """Images per second of the loader, of training, and of both together, by recipe and number of processes."""
    rows = measurement.get("feeding")
    if not rows:
        return _not_measured(measurement, "loaders have")
    frame = {}
    for row in rows:
        name, recipe = f"{row['recipe']}, {row['workers']} workers", measurement["steps"]["recipes"][row["recipe"]]
        if row["workers"] is None:
            frame[row["recipe"]] = {"student": recipe["student"], "loader": f"not measured: {row['reason']}"}
            continue
        if row.get("device_augmentation"):
            name += ", augmented on the GPU"
        frame[name] = {"student": recipe["student"]}
        frame[name] |= {rate: three_digits(row[rate]) for rate in ("loader", "training", "together")}
        frame[name]["share of training alone"] = f"{100 * row['together'] / row['training']:.0f} %"
    columns = ["student", "loader", "training", "together", "share of training alone"]
    caption = f"images per second on {_where(measurement)}, the student trained alone"
    return table(pd.DataFrame.from_dict(frame, orient="index").reindex(columns=columns).fillna("–"), caption)


def _step(measurement: Measurement, recipe: str) -> str:
    step = measurement["steps"]["recipes"][recipe]
    height, width = step["crop"]
    return (
        f"{recipe}: {step['student']} from {step['teacher']}, {' and '.join(step['methods'])}, "
        f"{step['batch']} × {height} × {width}, {step['precision']}"
    )


def _where(measurement: Measurement) -> str:
    device, threads = measurement["device"], measurement["steps"]["threads"]
    return device["name"] + (f", {threads} thread{'s' if threads != 1 else ''}" if device["type"] == "cpu" else "")


def _not_measured(measurement: Measurement, what: str) -> Drawing:
    return nothing(f"On {measurement['device']['name']}, {what} not been measured.")
