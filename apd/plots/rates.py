"""How the learning rates were chosen: scores on the validation split for each method and rate."""

from collections.abc import Sequence

import pandas as pd
import torch

from apd.evaluate.confusion import scores
from apd.plots.page import Drawing, nothing, table
from apd.study.recipes import METHOD_NAMES
from apd.study.record import Record


def validation_miou(record: Record) -> float | None:
    """mIoU on val after the last step; None where the run was not scored there."""
    last = record.experiment.training.iterations
    found = [e for e in record.content["evaluations"] if e["step"] == last and e["split"] == "val"]
    return scores(torch.tensor(found[0]["confusion"])).miou if found else None


def rates_table(records: Sequence[Record], title: str) -> Drawing:
    """Validation mIoU by method and learning rate, of runs of one seed, each method's best rate marked.

    Args:
        records: runs that differ in method and rate; longer ones and those without a score on val are left out.
        title: of what.
    """
    found: dict[str, dict[float, float]] = {}
    kept = [r for r in records if r.experiment.seed == 0 and validation_miou(r) is not None]
    steps = min((r.experiment.training.iterations for r in kept), default=0)
    for record in kept:
        experiment = record.experiment
        method = next((m for m in METHOD_NAMES if experiment.name.split("-")[0] == m), None)
        if method and experiment.training.iterations == steps:
            found.setdefault(method, {})[experiment.training.learning_rate] = validation_miou(record)
    if not found:
        return nothing(f"{title}: no run with a score on the validation split is recorded.")
    rates = sorted({rate for values in found.values() for rate in values})
    rows = {
        METHOD_NAMES[method]: {
            f"rate {rate:g}": f"{100 * found[method][rate]:.1f}{' ◂' if rate == _best(found[method]) else ''}"
            if rate in found[method]
            else "–"
            for rate in rates
        }
        for method in METHOD_NAMES
        if method in found
    }
    caption = f"{title}: mIoU in per cent on val after the last step, one seed; ◂ marks a method's best rate"
    return table(pd.DataFrame.from_dict(rows, orient="index"), caption)


def _best(values: dict[float, float]) -> float:
    return max(values, key=lambda rate: values[rate])
