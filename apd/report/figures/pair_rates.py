"""How the learning rates of pairs of networks were chosen: scores on the validation split for each network and rate."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from apd.report.designs import BACKBONE_NAMES, HEAD_NAMES
from apd.report.figures.page import Drawing, nothing, table
from apd.report.figures.rates import validation_miou
from apd.study.recipes import STUDENT_LEARNING_RATES, TEACHER_LEARNING_RATES
from apd.training.record import Record


def tried_rates(records: Sequence[Record]) -> dict[str, dict[float, list[float]]]:
    """mIoU on val of the trials of `scenes-pairs-tuning`, by whose rate it is (a teacher's head or a student's
    backbone) and rate."""
    found: dict[str, dict[float, list[float]]] = {}
    for record in records:
        experiment, miou = record.experiment, validation_miou(record)
        teaches = experiment.name.startswith("teacher-")
        whose = f"teacher-{experiment.network.head}" if teaches else experiment.network.backbone
        if miou is not None:
            found.setdefault(whose, {}).setdefault(experiment.training.learning_rate, []).append(miou)
    return found


def pair_rates_table(records: Sequence[Record]) -> Drawing:
    """How the pairs' rates were chosen: mean mIoU on val of each rate's trials, the best one marked, and which is used.

    A rate with fewer trials than another of its row is in brackets and cannot be the best: they are not the same
    networks and methods.
    """
    found = tried_rates(records)
    if not found:
        return nothing("No trial of the pairs’ rates is recorded yet: 0 runs have a score on val.")
    used = {f"teacher-{head}": rate for head, rate in TEACHER_LEARNING_RATES.items()} | STUDENT_LEARNING_RATES
    names = {f"teacher-{head}": f"teacher {name}" for head, name in HEAD_NAMES.items()}
    names |= {backbone: f"student {BACKBONE_NAMES[backbone]}" for backbone in STUDENT_LEARNING_RATES}
    tried = sorted({rate for by_rate in found.values() for rate in by_rate})
    rows = {}
    for whose in (whose for whose in used if whose in found):
        best, most = best_rate(found[whose]), max(map(len, found[whose].values()))
        cells = {}
        for rate in tried:
            scores = found[whose].get(rate, [])
            text = f"{100 * math.fsum(scores) / len(scores):.1f}" if scores else "–"
            cells[f"rate {rate:g}"] = f"({text})" if 0 < len(scores) < most else text + " ◂" * (rate == best)
        rows[names[whose]] = {**cells, "trials of a rate": str(most), "rate used": f"{used[whose]:g}"}
    caption = "mIoU in per cent on val after the last step, one seed, mean over heads and methods; ◂ marks the best"
    return table(pd.DataFrame.from_dict(rows, orient="index"), caption)


def best_rate(trials: Mapping[float, Sequence[float]]) -> float:
    """The rate with the highest mean, of those with as many trials as any.

    >>> best_rate({0.01: [0.3, 0.5], 0.03: [0.4, 0.5], 0.1: [0.9]})
    0.03
    """
    most = max(map(len, trials.values()))
    return max((rate for rate in trials if len(trials[rate]) == most), key=lambda rate: math.fsum(trials[rate]))
