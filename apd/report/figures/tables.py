"""Tables of the book, computed from records: scores, differences, where the numbers come from."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import pandas as pd

from apd.report.figures.page import Drawing, nothing, table
from apd.report.statistics import Comparison, Difference, Spread, spread
from apd.study.recipes import METHOD_NAMES
from apd.training.record import Record

_SHORT = {
    "above": "above",
    "below": "below",
    "not distinguishable from": "undecided",
    "not yet comparable with": "too few runs",
}
_FIXED = "\u00a0"  # a space at which no line is broken


QUESTIONS: tuple[tuple[str, str, str], ...] = (
    ("apd", "student", "as many steps, without a teacher"),
    ("apd", "student_equal_seconds", "as many seconds, without a teacher"),
    ("apd", "pixel_kd", "as many steps, with the teacher’s ordinary logits"),
    ("apd_without_kd", "student", "the perspective’s terms alone, as many steps"),
    ("pixel_kd", "student", "ordinary distillation alone, as many steps"),
)
"""Method, what it is compared with, and what that comparison holds equal."""


def points(value: float, digits: int = 1) -> str:
    """A difference of two fractions in percentage points, with its sign: 0.0123 → "+1.2"."""
    if math.isnan(value):
        return "–"
    text = f"{100 * value:+.{digits}f}"
    return text[1:] if not float(text) else text.replace("-", "−")


def per_cent(values: Spread) -> str:
    """Mean and standard deviation of fractions, in per cent."""
    if not values.count:
        return "–"
    mean, deviation = f"{100 * values.mean:.1f}", f"{100 * values.deviation:.1f}"
    return mean if math.isnan(values.deviation) else f"{mean}{_FIXED}±{_FIXED}{deviation}"


def digits_of(difference: Difference) -> int:
    """Decimals that its interval needs: one, or more where an end that is not zero would read 0.0 beside a verdict."""
    if difference.verdict not in ("above", "below"):
        return 1
    nearest = min(abs(difference.low), abs(difference.high))
    return next(digits for digits in range(1, 9) if digits == 8 or float(f"{100 * nearest:.{digits}f}"))


def interval(difference: Difference) -> str:
    """A difference with its interval, in percentage points."""
    mean, low, high = (points(value, digits_of(difference)) for value in difference[:3])
    return mean if math.isnan(difference.low) else f"{mean}{_FIXED}[{low},{_FIXED}{high}]"


def times(comparison: Comparison, method: str) -> str:
    """A step's seconds as a multiple of the plain student's."""
    multiple = comparison.times_the_plain_step(method)
    return "–" if math.isnan(multiple) else f"{multiple:.2f}"


def run_table(records: Mapping[str, Record]) -> Drawing:
    """One run of each method: scores, agreement with the teacher, and what a step costs."""
    rows = {}
    for method, record in records.items():
        scores, agreement = record.scores, record.agreement
        rows[METHOD_NAMES.get(method, method)] = {
            "mIoU, %": f"{100 * scores.miou:.1f}",
            "mAcc, %": f"{100 * scores.macc:.1f}",
            "aAcc, %": f"{100 * scores.aacc:.1f}",
            "agrees with teacher, %": "–" if agreement is None else f"{100 * agreement:.1f}",
            "steps": str(record.experiment.training.iterations),
            "seconds a step": f"{record.content['seconds_per_iteration']:.3f}",
        }
    data = next(iter(records.values())).content["data"]
    return table(pd.DataFrame.from_dict(rows, orient="index"), f"scores on {data['images']} images of {data['split']}")


def campaign_table(comparison: Comparison, reference: str = "student", confidence: float = 0.95) -> Drawing:
    """Every method of a comparison: mean ± standard deviation over seeds, and the paired difference to a reference."""
    rows = {}
    for method, arm in comparison.arms.items():
        difference = comparison.difference(method, reference, confidence)
        accuracy = spread(record.scores.aacc for record in arm.values())
        rows[comparison.names[method]] = {
            "seeds": str(len(arm)),
            "mIoU, %": per_cent(spread(comparison.miou(method).values())),
            f"minus “{METHOD_NAMES[reference]}” [{100 * confidence:g} % interval]": "–"
            if method == reference
            else interval(difference),
            "aAcc, %": per_cent(accuracy),
            "agrees with teacher, %": per_cent(spread(comparison.agreement(method).values())),
        }
    data = comparison.any_record.content["data"]
    caption = (
        f"{comparison.title}: scores on {data['images']} images of {data['split']}; "
        f"the teacher’s mIoU is {100 * comparison.teacher_miou:.1f} %"
    )
    return table(pd.DataFrame.from_dict(rows, orient="index"), caption)


def answers_table(comparisons: Sequence[Comparison], confidence: float = 0.95) -> Drawing:
    """The short answer: each question's verdict and mean difference, one column for each comparison."""
    if not comparisons:
        return nothing("There is no answer: there is no record yet.")
    rows = {}
    for method, reference, _ in QUESTIONS:
        answers = {}
        for comparison in comparisons:
            found = comparison.difference(method, reference, confidence)
            answers[comparison.title] = f"{_SHORT[found.verdict]}{_FIXED}{points(found.mean)}"
        rows[f"{METHOD_NAMES[method]} against {METHOD_NAMES[reference]}"] = answers
    caption = f"mean difference in mIoU, percentage points; above or below: with {100 * confidence:g} % confidence"
    return table(pd.DataFrame.from_dict(rows, orient="index"), caption)


def cost_table(comparisons: Sequence[Comparison]) -> Drawing:
    """What each method's training takes: steps, seconds a step as a multiple of the plain student's, and both."""
    if not comparisons:
        return nothing("No costs can be told: there is no record yet.")
    rows = {}
    for comparison in comparisons:
        for method in comparison.arms:
            step, steps = comparison.step_seconds(method), comparison.iterations(method)
            rows[(comparison.title, comparison.names[method])] = {
                "steps": str(steps),
                "seconds a step": f"{step:.3f}",
                "times the plain step": times(comparison, method),
                "steps × seconds": f"{step * steps:.0f}",
            }
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.index = pd.MultiIndex.from_tuples(rows)
    return table(frame, "cost of training; seconds: median over a run’s steps, and of those the least over seeds")


def _told(values: Sequence[str]) -> str:
    """Different values with how often each occurs, when there is more than one."""
    counts = Counter(values)
    return "; ".join(f"{value} ({count})" if len(counts) > 1 else value for value, count in sorted(counts.items()))


def provenance_table(campaigns: Mapping[str, Sequence[Record]]) -> Drawing:
    """Where the numbers come from: code, machine, versions and data of every campaign's records."""
    rows: dict[str, dict[str, str]] = {}
    for name, records in campaigns.items():
        contents = [record.content for record in records]
        if not contents:
            rows[name] = {"records": "0"}
            continue
        rows[name] = {
            "records": str(len(contents)),
            "first run started (UTC)": min(c["started"] for c in contents)[:16].replace("T", " "),
            "last run started (UTC)": max(c["started"] for c in contents)[:16].replace("T", " "),
            "hours of training": f"{sum(c['wall_seconds'] for c in contents) / 3600:.1f}",
            "commit": _told([commit_words(c["git"]) for c in contents]),
            "device": _told([_device(c["device"]) for c in contents]),
            "evaluated images": _told([f"{c['data']['images']} of {c['data']['split']}" for c in contents]),
            "data, sha256": _told([c["data"]["fingerprint"][:12] for c in contents]),
        }
        for package in sorted({package for c in contents for package in c["versions"]}):
            rows[name][package] = _told([c["versions"].get(package, "unknown") for c in contents])
    frame = pd.DataFrame.from_dict(rows, orient="columns").fillna("–")
    return table(frame, f"provenance of {sum(map(len, campaigns.values()))} records")


def commit_words(git: Mapping[str, object]) -> str:
    """The commit of the code that made something, and whether it had been changed since."""
    return (str(git["commit"])[:10] or "unknown") + ("" if git["clean"] else " with changes")


def _device(device: Mapping[str, object]) -> str:
    threads = f", {device['threads']} threads" if device["type"] == "cpu" else ""
    return f"{device['name']}{threads}, {device['precision']}"
