"""What distillation adds to a detector's training step, drawn from the files of `python -m tests.measure_detection`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from apd.report.comparisons import DETECTION_NAMES
from apd.report.figures.speed import three_digits
from apd.report.figures.style import Drawing, Markdown, table
from apd.training.run import records_folder

AIM = 0.25
"""Most that a distiller shall add, as a share of the student's step, beside the teacher's own forward pass."""
SHAPE_NAMES = {"scenes": "scenes", "coco": "COCO"}


def read_step_costs(folder: Path | None = None) -> list[Mapping[str, Any]]:
    """Every file of measurements, one for each processor; empty when there is none."""
    return [
        json.loads(path.read_text()) for path in sorted((folder or records_folder("detection-speed")).glob("*.json"))
    ]


def share(value: float) -> str:
    """A fraction in whole per cent; noise can make what is added to a step less than nothing.

    >>> share(0.236), share(-0.049), share(-0.001)
    ('24\xa0%', '−5\xa0%', '0\xa0%')
    """
    per_cent = round(100 * value)
    return f"{'−' if per_cent < 0 else ''}{abs(per_cent)}\N{NO-BREAK SPACE}%"


def step_cost_table(measurement: Mapping[str, Any], row: Mapping[str, Any]) -> Drawing:
    """Milliseconds of each part of a step, and what each distiller adds to it."""
    shape = measurement["shapes"][row["shape"]]
    alone = row["student"][1]
    frame = {
        "student alone": {
            "ms": three_digits(alone),
            "quartiles": _range(row["student"]),
            "of the student’s step": "100 %",
        },
        "teacher’s look": {
            "ms": three_digits(row["teacher"][1]),
            "quartiles": _range(row["teacher"]),
            "of the student’s step": f"{100 * row['teacher'][1] / alone:.0f} %",
        },
    }
    for key, quartiles in row["steps"].items():
        frame[f"step with {DETECTION_NAMES.get(key, key)}"] = {
            "ms": three_digits(quartiles[1]),
            "quartiles": _range(quartiles),
            "of the student’s step": f"{100 * quartiles[1] / alone:.0f} %",
            "added beyond the teacher’s look": share(row["added"][key][1]),
            "its quartiles": " to ".join(map(share, row["added"][key][::2])),
        }
    nets = " ← ".join(f"{shape[who]['backbone']}" for who in ("student", "teacher"))
    caption = (
        f"{SHAPE_NAMES.get(row['shape'], row['shape'])}, {shape['batch']} pictures of {shape['height']} × "
        f"{shape['width']}, Mask R-CNN {nets}, on {measurement['device']['name']}: forward and backward, without the "
        f"optimiser; quartiles of {measurement['repeats']} repeats"
    )
    return table(pd.DataFrame.from_dict(frame, orient="index").fillna("–"), caption)


def _range(quartiles: Sequence[float]) -> str:
    return f"{three_digits(quartiles[0])} to {three_digits(quartiles[2])}"


def step_costs_in_words(measurements: Sequence[Mapping[str, Any]]) -> Markdown:
    """Which distillers keep to the aim on which machine."""
    lines = []
    for measurement in measurements:
        for row in measurement["rows"]:
            medians = {DETECTION_NAMES.get(key, key): quartiles[1] for key, quartiles in row["added"].items()}
            within = [f"{name} {share(value)}" for name, value in medians.items() if value <= AIM]
            beyond = [f"{name} {share(value)}" for name, value in medians.items() if value > AIM]
            lines.append(
                f"- **{measurement['device']['name']}**, {SHAPE_NAMES.get(row['shape'], row['shape'])}: at most "
                f"{100 * AIM:.0f} % of the student’s step ({len(within)}): {', '.join(within) or 'none'}; more "
                f"({len(beyond)}): {', '.join(beyond) or 'none'}"
            )
    return Markdown(
        "\n".join(lines) or "0 machines were measured so far: `python -m tests.measure_detection` measures this one."
    )
