"""What the method costs, from the files that `python -m tests.measure_speed` and `measure_detection` leave."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import seaborn as sns

from apd.report.detections import DETECTION_NAMES
from apd.report.figures.style import METHOD_COLOURS, Drawing, colour_of, drawing, figure, nothing, quiet_axes, table
from apd.training.record import RecordError
from apd.training.run import records_folder

Measurement = Mapping[str, Any]
SHAPE_NAMES = {"cityscapes": "Cityscapes", "ade20k": "ADE20K", "camvid": "CamVid, small", "coco": "COCO"}
CLASS_BY_CLASS = ", class by class"
COMMANDS = {"speed": "python -m tests.measure_speed", "detection-speed": "python -m tests.measure_detection"}


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
    colours = [METHOD_COLOURS["apd"] if name.startswith("APD") else colour_of("") for name in medians.index]
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
