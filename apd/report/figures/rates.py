"""How learning rates and weights were chosen: scores on the validation split for each method and trial."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch

from apd.evaluation.metrics import scores
from apd.report.figures.page import Drawing, nothing, table
from apd.study.ablations import FACTORS, plain_variants, variant_of_strength
from apd.study.recipes import METHOD_NAMES
from apd.training.record import Record


def last_validation(record: Record) -> Mapping[str, Any] | None:
    """The record's entry of what was measured on val after the last step; None where nothing was."""
    last = record.experiment.training.iterations
    return next((e for e in record.content["evaluations"] if e["step"] == last and e["split"] == "val"), None)


def validation_miou(record: Record) -> float | None:
    """mIoU on val after the last step; None where the run was not scored there."""
    found = last_validation(record)
    return scores(torch.tensor(found["confusion"])).miou if found else None


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
    rows = {METHOD_NAMES[m]: marked_row(found[m], rates, "rate {:g}") for m in METHOD_NAMES if m in found}
    caption = f"{title}: mIoU in per cent on val after the last step, one seed; ◂ marks a method's best rate"
    return table(pd.DataFrame.from_dict(rows, orient="index"), caption)


def validation_by_strength(records: Sequence[Record], seed: int = 0) -> dict[str, dict[float, float]]:
    """mIoU on val of each method's trials: by its key, then by what its weights were multiplied with."""
    trials = {
        variant_of_strength(arm, factor).distillers: (arm.key, factor) for arm in plain_variants() for factor in FACTORS
    }
    found: dict[str, dict[float, float]] = {}
    for record in records:
        trial = trials.get(record.experiment.distillers)
        if trial and record.experiment.seed == seed and (miou := validation_miou(record)) is not None:
            found.setdefault(trial[0], {})[trial[1]] = miou
    return found


def weights_table(records: Sequence[Record], title: str) -> Drawing:
    """Validation mIoU of each method at a tenth of its weights, at its weights, and at ten times them.

    Args:
        records: of one data set and recipe; runs that are no trial of a method's weights are left out.
        title: of what.
    """
    found = validation_by_strength(records)
    rows = {
        arm.name: marked_row(found[arm.key], FACTORS, "weights × {:g}") for arm in plain_variants() if arm.key in found
    }
    if not any(factor != 1 for values in found.values() for factor in values):
        return nothing(f"{title}: no trial of other weights is recorded.")
    caption = (
        f"{title}: mIoU in per cent on val after the last step, one seed; ◂ marks a method's best of three; "
        "a dash: not run, or stopped by a loss that was not finite"
    )
    return table(pd.DataFrame.from_dict(rows, orient="index"), caption)


def marked_row(values: Mapping[float, float], trials: Sequence[float], name: str) -> dict[str, str]:
    """A row of a table: each trial's score, the best one marked, a dash for what is missing."""
    best = max(values, key=values.__getitem__)
    return {
        name.format(trial): f"{100 * values[trial]:.1f}{' ◂' if trial == best else ''}" if trial in values else "–"
        for trial in trials
    }
