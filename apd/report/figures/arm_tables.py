"""Tables of many arms: scores, differences and costs side by side, and settings."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields

import pandas as pd

from apd.distillers.base import DistillerConfig
from apd.report.comparisons import Corrected
from apd.report.figures.page import Drawing, Words, nothing, table
from apd.report.figures.tables import interval, times
from apd.report.statistics import Comparison, spread
from apd.study.ablations import IN_PLACE_OF_KD, OTHER_METHODS
from apd.training.record import Record


def arms_table(
    comparison: Comparison,
    rows: Mapping[str, Corrected],
    reference: str,
    confidence: float = 0.95,
    groups: Mapping[str, str] | None = None,
) -> Drawing:
    """The reference, then each arm: score with its standard error, paired difference, and what a step costs.

    Args:
        comparison: of the arms' records.
        rows: the arms' differences to the reference, judged together.
        reference: the arm or method that they are held against.
        confidence: of the intervals.
        groups: what each arm varies, by its key.
    """
    column = f"minus “{comparison.names[reference]}” [{100 * confidence:g} % interval]"
    lines = {}
    for arm in (reference, *rows):
        if arm not in comparison.arms:
            continue
        values, row = spread(comparison.values(arm).values()), rows.get(arm)
        lines[(groups or {}).get(arm, ""), comparison.names[arm]] = {
            "seeds": str(values.count),
            f"{comparison.score.name}, %": f"{100 * values.mean:.2f}",
            "standard error": "–" if math.isnan(values.error) else f"{100 * values.error:.2f}",
            column: interval(row.found) if row else "–",
            "p, corrected": "–" if row is None else _p_text(row.corrected),
            "seconds a step": f"{comparison.step_seconds(arm):.3f}",
            "times the plain step": times(comparison, arm),
            "peak memory, GB": f"{_least_peak(comparison.arms[arm].values()) / 1e9:.2f}",
        }
    if not lines:
        return nothing(f"There is nothing to list: 0 records of “{comparison.names[reference]}” yet.")
    frame = pd.DataFrame.from_dict(lines, orient="index")
    frame.index = pd.MultiIndex.from_tuples(lines) if groups else [name for _, name in lines]
    caption = (
        f"{comparison.title}: p corrected for {len(rows)} comparisons by Holm’s rule; seconds (median over a run’s "
        f"steps) and peak memory ({_what_peak(comparison.any_record)}) are the least over seeds"
    )
    return table(frame, caption)


def _p_text(p: float) -> str:
    return "–" if math.isnan(p) else f"{p:.3f}" if p >= 0.0005 else "< 0.001"


def _least_peak(records: Sequence[Record]) -> int:
    """On a CPU the process's peak, to which earlier runs of the process belong too: the least bounds it best."""
    return min(record.content["peak_memory_bytes"] for record in records)


def _what_peak(record: Record) -> str:
    on_cpu = record.content["device"]["type"] == "cpu"
    return "the largest resident set of the process, earlier runs in it included" if on_cpu else "that of the allocator"


def _settings(config: DistillerConfig) -> dict[str, object]:
    return {field.name: getattr(config, field.name) for field in fields(config) if field.name != "method"}


def settings_in_words() -> Words:
    """The settings with which each of the other methods is run, and whether pixel KD stands beside it, as a list."""
    lines = []
    for key, (name, config) in OTHER_METHODS.items():
        settings = ", ".join(f"`{field}` {value:g}" for field, value in _settings(config).items())
        lines.append(f"- **{name}**, {'in place of' if key in IN_PLACE_OF_KD else 'beside'} pixel KD: {settings}")
    return Words("\n".join(lines))
