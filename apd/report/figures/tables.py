"""Tables of the book, computed from records: scores, differences, costs, trials, where the numbers come from."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from apd.evaluation.metrics import scores
from apd.report.comparisons import BACKBONE_NAMES, HEAD_NAMES, SHIFT_NAMES, Corrected, Pair, ShiftSweep
from apd.report.correlations import PerImage
from apd.report.figures.sentences import interval, per_cent, points
from apd.report.figures.style import Drawing, nothing, table
from apd.report.statistics import LONGER, MIOU, Comparison, spread
from apd.study.ablations import FACTORS, plain_variants, variant_of_strength
from apd.study.recipes import METHOD_NAMES, PAIR_METHODS, STUDENT_LEARNING_RATES, TEACHER_LEARNING_RATES
from apd.training.record import Record

QUESTIONS: tuple[tuple[str, str, str], ...] = (
    ("apd", "student", "as many steps, without a teacher"),
    ("apd", "student_equal_seconds", "as many seconds, without a teacher"),
    ("apd", "pixel_kd", "as many steps, with the teacher’s ordinary logits"),
    ("apd_without_kd", "student", "the perspective’s terms alone, as many steps"),
    ("pixel_kd", "student", "ordinary distillation alone, as many steps"),
)
"""Method, what it is compared with, and what that comparison holds equal."""


def _number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def rows_table(rows: Mapping[object, Mapping[str, str]], caption: str) -> Drawing:
    """A table of rows by name, or by group and name."""
    frame = pd.DataFrame(list(rows.values())).fillna("–")
    keys = list(rows)
    frame.index = pd.MultiIndex.from_tuples(keys) if isinstance(keys[0], tuple) else keys
    return table(frame, caption)


def run_table(records: Mapping[str, Record]) -> Drawing:
    """One run of each method: scores, agreement with the teacher, and what a step costs."""
    rows = {
        METHOD_NAMES.get(method, method): {
            **{f"{name}, %": f"{100 * getattr(record.scores, name.lower()):.1f}" for name in ("mIoU", "mAcc", "aAcc")},
            "agrees with teacher, %": "–" if record.agreement is None else f"{100 * record.agreement:.1f}",
            "steps": str(record.experiment.training.iterations),
            "seconds a step": f"{record.content['seconds_per_iteration']:.3f}",
        }
        for method, record in records.items()
    }
    data = next(iter(records.values())).content["data"]
    return rows_table(rows, f"scores on {data['images']} images of {data['split']}")


def scores_table(
    comparison: Comparison,
    rows: Mapping[str, Corrected],
    reference: str,
    confidence: float = 0.95,
    groups: Mapping[str, str] | None = None,
) -> Drawing:
    """The reference, then each variant: score with its standard error, and paired difference to the reference.

    `rows` are the differences, Holm-corrected together; `groups` says, by a variant's key, what it varies.
    """
    names, lines = comparison.names, {}
    for key in (key for key in (reference, *rows) if key in comparison.variants):
        values, row, runs = spread(comparison.values(key).values()), rows.get(key), comparison.variants[key].values()
        line = lines[((groups or {}).get(key, ""), names[key]) if groups else names[key]] = {
            "seeds": str(values.count),
            f"{comparison.score.name}, %": _number(100 * values.mean, 2),
            "standard error": _number(100 * values.error, 2),
            f"minus “{names[reference]}” [{100 * confidence:g} % interval]": interval(row.found) if row else "–",
            "p, Holm-corrected": "–"
            if row is None
            else "< 0.001"
            if row.corrected < 0.0005
            else _number(row.corrected, 3),
        }
        if comparison.score is MIOU:
            line["aAcc, %"] = per_cent(spread(record.scores.aacc for record in runs))
            agreement = [record.agreement for record in runs if record.agreement is not None]
            line["agrees with teacher, %"] = per_cent(spread(agreement))
    if not lines:
        return nothing(f"There is nothing to list: 0 records of “{names[reference]}” yet.")
    data, teacher = comparison.any_record.content["data"], comparison.teacher_score
    caption = f"{comparison.title}: scores on {data['images']} images of {data['split']}; p of {len(rows)} comparisons"
    return rows_table(
        lines, caption + ("" if math.isnan(teacher) else f"; the teacher’s score is {100 * teacher:.1f} %")
    )


def answers_table(
    comparisons: Sequence[Comparison], confidence: float = 0.95, questions: Sequence[tuple[str, str, str]] = QUESTIONS
) -> Drawing:
    """Whether each question's paired difference is significant, with its interval, one column for each comparison.

    `questions` are a method, what it is compared with, and what that holds equal.
    """
    if not comparisons:
        return nothing("There is no answer: there is no record yet.")
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for method, reference, remark in questions:
        names = comparisons[0].names
        row = rows[remark, f"{names[method]} against {names[reference]}"] = {}
        for comparison in comparisons:
            found = comparison.difference(method, reference, confidence)
            answer = "outperforms" if found.mean > 0 else "underperforms"
            answer = answer if found.significant else "too few runs" if math.isnan(found.low) else "not significant"
            row[comparison.title] = f"{answer} {interval(found)}"
    level = f"{100 * confidence:g} %"
    caption = f"mean difference in mIoU, percentage points, and {level} interval; each alone, uncorrected"
    return rows_table(rows, caption)


def cost_table(comparisons: Sequence[Comparison]) -> Drawing:
    """What each method's training takes: steps, seconds of a step and of all, and the largest memory."""
    if not comparisons:
        return nothing("There are no costs yet: there is no record.")
    rows = {}
    for comparison in comparisons:
        for method, runs in comparison.variants.items():
            step, seconds = comparison.step_seconds(method), comparison.run_seconds(method)
            row = rows[(comparison.title, comparison.names[method])] = {
                "steps": str(comparison.iterations(method)),
                "seconds a step": f"{step:.3f}",
                "of the baseline’s step": "–",
                "seconds a run": f"{seconds:.0f}",
                "of the equal-time baseline’s": "–",
                # on a CPU the process's peak, to which its earlier runs belong too: the least bounds it best
                "peak memory, GB": f"{min(record.content['peak_memory_bytes'] for record in runs.values()) / 1e9:.2f}",
            }
            if "student" in comparison.variants:
                row["of the baseline’s step"] = f"× {step / comparison.step_seconds('student'):.2f}"
            if LONGER in comparison.variants:
                row["of the equal-time baseline’s"] = f"× {seconds / comparison.run_seconds(LONGER):.2f}"
    return rows_table(
        rows, "cost of training; seconds: median over a run’s steps, and of those and memory the least over seeds"
    )


def _counted(values: Sequence[str]) -> str:
    """Different values with how often each occurs, when there is more than one."""
    counts = Counter(values)
    return "; ".join(f"{value} ({count})" if len(counts) > 1 else value for value, count in sorted(counts.items()))


def commit_text(git: Mapping[str, object]) -> str:
    """The commit of the code that made something, and whether it had been changed since."""
    return (str(git["commit"])[:10] or "unknown") + ("" if git["clean"] else " with changes")


def provenance_table(campaigns: Mapping[str, Sequence[Record]]) -> Drawing:
    """Where the numbers come from: code, machine, versions and data of every campaign's records."""
    columns: dict[str, dict[str, str]] = {}
    for name, records in campaigns.items():
        contents = [record.content for record in records]
        columns[name] = {"records": str(len(contents))}
        devices = [{"threads": 0} | c["device"] for c in contents]
        on_cpu = "{name}, {threads} threads, {precision}"
        if contents:
            columns[name] |= {
                "first run started (UTC)": min(c["started"] for c in contents)[:16].replace("T", " "),
                "last run started (UTC)": max(c["started"] for c in contents)[:16].replace("T", " "),
                "hours of training": f"{sum(c['wall_seconds'] for c in contents) / 3600:.1f}",
                "commit": _counted([commit_text(c["git"]) for c in contents]),
                "device": _counted(
                    [(on_cpu if d["type"] == "cpu" else "{name}, {precision}").format(**d) for d in devices]
                ),
                "evaluated images": _counted([f"{c['data']['images']} of {c['data']['split']}" for c in contents]),
                "data, sha256": _counted([c["data"]["fingerprint"][:12] for c in contents]),
            }
        for package in sorted({package for c in contents for package in c["versions"]}):
            columns[name][package] = _counted([c["versions"].get(package, "unknown") for c in contents])
    frame = pd.DataFrame.from_dict(columns, orient="columns").fillna("–")
    return table(frame, f"provenance of {sum(map(len, campaigns.values()))} records")


# Trials of learning rates and weights, on the validation split.


Trial = tuple[str, float, Record]
"""Whose trial it is, the value that was tried, and its record."""


def validation_miou(record: Record) -> float:
    """mIoU on val after the last step; NaN where the run was not scored there."""
    last = record.experiment.training.iterations
    found = [e for e in record.content["evaluations"] if e["step"] == last and e["split"] == "val"]
    return scores(torch.tensor(found[0]["confusion"])).miou if found else math.nan


def trials(found: Iterable[Trial], score: Callable[[Record], float] = validation_miou) -> tuple[pd.DataFrame, ...]:
    """Mean score by whose trial it is (rows) and the value that was tried (columns), and of how many records."""
    rows = [(whose, value, score(record)) for whose, value, record in found]
    grouped = pd.DataFrame(rows, columns=["whose", "value", "score"]).dropna().groupby(["whose", "value"], sort=False)
    mean, count = (grouped["score"].agg(how).unstack() for how in ("mean", "count"))
    return mean.sort_index(axis=1), count.fillna(0).sort_index(axis=1)


def best_trials(mean: pd.DataFrame, count: pd.DataFrame) -> dict[str, float]:
    """The value with the highest mean in each row of :func:`trials`, of those with as many records as any."""
    return mean.where(count.eq(count.max(axis=1), axis=0)).idxmax(axis=1).to_dict()


def trials_table(
    found: Iterable[Trial],
    name: str,
    caption: str,
    used: Mapping[str, float] | None = None,
    score: Callable[[Record], float] = validation_miou,
) -> Drawing:
    """What was tried, with the best of each row marked; means of fewer records than another of the row are in brackets.

    `name` is that of a column, with a place for the value. `used` is the value that the study uses, by whose it is.
    """
    mean, count = trials(found, score)
    if mean.empty:
        return nothing(f"{caption}: 0 trials have a score on val yet.")
    most, best = count.max(axis=1), best_trials(mean, count)
    text = mean.map(lambda value: _number(100 * value, 1))
    text = text.mask(count.lt(most, axis=0) & mean.notna(), "(" + text + ")")
    for whose, value in best.items():
        text.loc[whose, value] += " ◂"
    text = text.rename(columns=name.format)
    if used:
        text["records of a value"] = most.map("{:g}".format)
        text["used"] = [f"{used[whose]:g}" for whose in text.index]
    shown = "in per cent on val after the last step, one seed; ◂ marks the best of a row; a dash: not run"
    return table(text, f"{caption} {shown}, or stopped by a loss that was not finite")


def learning_rate_trials(records: Iterable[Record]) -> list[Trial]:
    """The trials of each method's learning rate, of seed 0 and of the shortest length."""
    known = [r for r in records if r.experiment.seed == 0 and r.experiment.name.split("-")[0] in METHOD_NAMES]
    steps = min((record.experiment.training.iterations for record in known), default=0)
    return [
        (name, record.experiment.training.learning_rate, record)
        for method, name in METHOD_NAMES.items()
        for record in known
        if record.experiment.training.iterations == steps and record.experiment.name.split("-")[0] == method
    ]


def weight_trials(records: Sequence[Record], seed: int = 0) -> list[Trial]:
    """The trials of what a method's weights are multiplied with, by the method's name."""
    tried = [
        (v.name, factor, variant_of_strength(v, factor).distillers) for v in plain_variants() for factor in FACTORS
    ]
    of_seed = [record for record in records if record.experiment.seed == seed]
    return [(name, factor, r) for name, factor, of in tried for r in of_seed if r.experiment.distillers == of]


PAIR_RATES = {f"teacher {HEAD_NAMES[head]}": rate for head, rate in TEACHER_LEARNING_RATES.items()}
PAIR_RATES |= {f"student {BACKBONE_NAMES[backbone]}": rate for backbone, rate in STUDENT_LEARNING_RATES.items()}
"""The learning rates that pairs use: of a teacher by its head, of a student by its backbone."""


def pair_trials(records: Iterable[Record]) -> list[Trial]:
    """The trials of the learning rates of pairs, of several heads and methods, by the names of PAIR_RATES."""
    found = []
    for record in records:
        network, rate = record.experiment.network, record.experiment.training.learning_rate
        teaches = record.experiment.name.startswith("teacher-")
        whose = f"teacher {HEAD_NAMES[network.head]}" if teaches else f"student {BACKBONE_NAMES[network.backbone]}"
        found.append((whose, rate, record))
    return sorted(found, key=lambda trial: list(PAIR_RATES).index(trial[0]))


def pairs_table(pairs: Sequence[Pair], confidence: float = 0.95) -> Drawing:
    """One row for each pair of one data set: the teacher, the baseline, and what each method adds to it."""
    rows = {}
    for pair in pairs:
        gains = {m: pair.runs.difference(m, "student", confidence) for m in PAIR_METHODS[1:]}
        rows[pair.heads, BACKBONE_NAMES[pair.student.backbone]] = {
            "teacher’s mIoU, %": f"{100 * pair.runs.teacher_score:.1f}",
            "baseline’s, %": per_cent(spread(pair.runs.miou("student").values())),
            **{METHOD_NAMES[m]: interval(gain) if gain.pairs else "–" for m, gain in gains.items()},
            "seeds": ", ".join(dict.fromkeys(str(len(gain.pairs)) for gain in gains.values())),
        }
    level = f"{100 * confidence:g} % intervals"
    caption = "mean ± standard deviation over seeds; gains over the baseline in points of mIoU, with their"
    return rows_table(rows, f"{pairs[0].runs.title}: {caption} {level}")


def sweep_table(
    comparisons: Mapping[float, Comparison],
    sweeps: Sequence[ShiftSweep],
    images: Sequence[PerImage],
    confidence: float = 0.95,
) -> Drawing:
    """One row for each context shift: the teacher, how far own perspectives are from the shared one, and the gains.

    The share of the teacher's lead is the first sweep's mean gain over the mean lead of the teacher over the reference.
    """
    if not comparisons:
        return nothing("There is nothing to put into a table: 0 records yet.")
    measured = {one.context_shift: one.numbers for one in images}
    rows = {}
    for shift, comparison in comparisons.items():
        means = {name: float(np.nanmean(values)) for name, values in measured.get(shift, {}).items()}
        row = rows[f"context shift {shift:g}"] = {
            "teacher’s mIoU, %": f"{100 * comparison.teacher_score:.1f}",
            "distance": _number(means.get("distance", math.nan), 3),
            "views disagree, %": _number(100 * means.get("disagreement", math.nan), 1),
        }
        for one in sweeps:
            name = f"{SHIFT_NAMES[one.method]}, over {SHIFT_NAMES[one.reference].removeprefix('+ ')}"
            row[name] = interval(one.gains[shift]) if shift in one.gains else "–"
        if gain := sweeps[0].gains.get(shift):
            reference = comparison.miou(sweeps[0].reference)
            lead = comparison.teacher_score - spread(reference[seed] for seed in gain.pairs).mean
            row["share of the teacher’s lead, %"] = points(gain.mean / lead, 0) if lead > 0 else "–"
    caption = f"means over test images, and gains in points of mIoU with their {100 * confidence:g} % intervals"
    return rows_table(rows, caption)
