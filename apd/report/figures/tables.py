"""Tables of the book, computed from records: scores, differences, costs, trials, where the numbers come from."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from apd.config.experiment import NetworkConfig
from apd.report.comparisons import BACKBONE_NAMES, HEAD_NAMES, Corrected, Pair, holm_corrected
from apd.report.figures.answers import POWER, detectable, interval, number, per_cent
from apd.report.figures.style import Drawing, nothing, rows_table, table
from apd.report.statistics import LONGER, MIOU, Comparison, paired_difference, spread
from apd.study.recipes import METHOD_NAMES, PAIR_METHODS
from apd.training.record import Record

QUESTIONS: tuple[tuple[str, str, str], ...] = (
    ("apd", "student", "equal steps, without a teacher"),
    ("apd", "student_equal_seconds", "as much time, without a teacher"),
    ("apd", "pixel_kd", "equal steps, ordinary distillation"),
    ("apd_without_kd", "student", "equal steps, the perspective’s terms alone"),
    ("pixel_kd", "student", "equal steps, ordinary distillation alone"),
)
"""Method, what it is compared with, and what that comparison holds equal."""


DETECTABLE = f"detectable: the smallest difference that would be significant, uncorrected, with probability {POWER:g}"


def _p(row: Corrected) -> str:
    return "< 0.001" if row.corrected < 0.0005 else number(row.corrected, 3)


def _p_of(*corrected: Mapping[Any, Corrected]) -> str:
    """Of how many comparisons the p-values are: of those that have one, in each mapping."""
    counts = sorted({sum(not math.isnan(row.corrected) for row in rows.values()) for rows in corrected})
    return f"of {' or '.join(map(str, counts))} comparison{'s' * (counts != [1])}"


def scores_table(
    comparison: Comparison, rows: Mapping[str, Corrected], reference: str, groups: Mapping[str, str] | None = None
) -> Drawing:
    """The reference, then each variant: score, standard error, and paired difference of `rows`, by what it varies."""
    names, lines = comparison.names, {}
    level = 100 * next((row.found.confidence for row in rows.values()), 0.95)
    for key in (key for key in (reference, *rows) if key in comparison.variants):
        values, row, runs = spread(comparison.values(key).values()), rows.get(key), comparison.variants[key].values()
        line = lines[((groups or {}).get(key, ""), names[key]) if groups else names[key]] = {
            "seeds": str(values.count),
            f"{comparison.score.name}, %": number(100 * values.mean, 2),
            "standard error": number(100 * values.error, 2),
            f"minus “{names[reference]}” [{level:g} % interval]": interval(row.found) if row else "–",
            "p, Holm-corrected": _p(row) if row else "–",
            "detectable": number(100 * detectable(row.found), 1) if row else "–",
        }
        if comparison.score is MIOU:
            line["aAcc, %"] = per_cent(spread(record.scores.aacc for record in runs))
            agreement = [record.agreement for record in runs if record.agreement is not None]
            line["agrees with teacher, %"] = per_cent(spread(agreement))
    if not lines:
        return nothing(f"There is nothing to list: 0 records of “{names[reference]}” yet.")
    data, teacher = comparison.any_record.content["data"], comparison.teacher_score
    caption = f"{comparison.title}: scores on {data['images']} images of {data['split']}; p {_p_of(rows)}"
    caption += f"; {DETECTABLE}"
    return rows_table(lines, caption + f"; the teacher’s score is {100 * teacher:.1f} %" * (not math.isnan(teacher)))


def differences_table(rows: Mapping[Any, Corrected], names: Mapping[Any, str], caption: str) -> Drawing:
    """Differences in percentage points that were Holm-corrected together, with their intervals."""
    lines = {}
    for key, row in rows.items():
        line = lines[names[key]] = {"points": interval(row.found), "seeds": str(len(row.found.pairs))}
        line |= {"p, Holm-corrected": _p(row), "detectable": number(100 * detectable(row.found), 1)}
    return rows_table(lines, f"{caption}; p {_p_of(rows)}; {DETECTABLE}")


def change_of_gains(
    before: Comparison, after: Comparison, questions: Iterable[tuple[str, str]], confidence: float = 0.95
) -> Drawing:
    """Gains of one method over another in two comparisons, and their change, seed by seed, corrected together."""
    gains = {q: [one.difference(*q, confidence) for one in (before, after)] for q in questions}
    changes = {q: paired_difference(last.pairs, first.pairs, confidence) for q, (first, last) in gains.items()}
    lines = {}
    for q, row in holm_corrected(changes).items():
        line = lines["{} over {}".format(*(before.names[method] for method in q))] = {}
        line |= {one.title: interval(gain) for one, gain in zip((before, after), gains[q], strict=True)}
        line |= {"change": interval(row.found), "p, Holm-corrected": _p(row)}
    return rows_table(lines, f"gains in points of mIoU, with their {100 * confidence:g} % intervals")


def answers_table(
    comparisons: Sequence[Comparison],
    confidence: float = 0.95,
    questions: Sequence[tuple[str, str, str]] = QUESTIONS,
    among: Sequence[tuple[str, str]] = (),
) -> Drawing:
    """Whether each question's paired difference is significant, with its interval, a column for each comparison.

    `among`: further pairs of a method and its reference that are corrected together with the questions.
    """
    asked = [*questions, *((*pair, "") for pair in among)]
    rows: dict[tuple[str, str], dict[str, str]] = {}
    corrections = []
    for comparison in comparisons:
        names = comparisons[0].names
        found = {q: comparison.difference(*q[:2], confidence) for q in asked}
        corrections.append(corrected := holm_corrected(found))
        for method, reference, remark in questions:
            difference, row = found[method, reference, remark], corrected.get((method, reference, remark))
            line = rows.setdefault((remark, f"{names[method]} against {names[reference]}"), {})
            if math.isnan(difference.low):
                answer = f"too few runs {interval(difference)}" if difference.pairs else "not run"
            elif row and row.significant:
                answer = f"{'outperforms' if difference.mean > 0 else 'underperforms'} {interval(difference)}"
            else:
                missed = number(100 * detectable(difference), 1)
                answer = f"not significant {interval(difference)}, detectable {missed}"
            line[comparison.title] = answer
    caption = f"mean difference in mIoU, percentage points, with its {100 * confidence:g} % interval"
    return rows_table(rows, f"{caption}; Holm-corrected by column, {_p_of(*corrections)}; {DETECTABLE}")


def setup_table(comparisons: Sequence[Comparison]) -> Drawing:
    """The set-up of each comparison: data, networks, schedules, and the teacher's own score."""
    rows = {}
    for one in comparisons:
        experiment, data = one.any_record.experiment, one.data
        parts = {"student": experiment, "teacher": experiment.teacher}
        rows[one.title] = {who: _network(part.network) for who, part in parts.items() if part} | {
            "steps of each": " and ".join(str(part.training.iterations) for part in parts.values() if part),
            "batch, crop": f"{experiment.training.batch_size}, {data.crop_height} × {data.crop_width}",
            "teacher’s score, %": number(100 * one.teacher_score, 1),
            "test images": str(one.any_record.content["data"]["images"]),
        }
    return rows_table(rows, "set-up of the comparisons")


def _network(network: NetworkConfig) -> str:
    start = "random weights" if network.weights == "none" else "ImageNet weights"
    backbone = BACKBONE_NAMES.get(network.backbone, network.backbone)
    return f"{HEAD_NAMES[network.head]}, {backbone}, width {network.head_width}, {start}"


def cost_table(comparisons: Sequence[Comparison]) -> Drawing:
    """What each method's training takes: steps, seconds of a step and of all, and the largest memory."""
    rows = {}
    for comparison in comparisons:
        runs = {method: list(found.values()) for method, found in comparison.variants.items()}
        step = {method: comparison.step_seconds(method) for method in runs}
        whole = {method: comparison.run_seconds(method) for method in runs}
        for method, of in runs.items():
            rows[comparison.title, comparison.names[method]] = {
                "steps": str(of[0].experiment.training.iterations),
                "seconds a step": f"{step[method]:.3f}",
                "of the baseline’s step": f"× {step[method] / step['student']:.2f}" if "student" in step else "–",
                "seconds a run": f"{whole[method]:.0f}",
                "of the equal-time baseline’s": f"× {whole[method] / whole[LONGER]:.2f}" if LONGER in whole else "–",
                # on a CPU the process's peak, to which its earlier runs belong too: the least bounds it best
                "peak memory, GB": f"{min(record.content['peak_memory_bytes'] for record in of) / 1e9:.2f}",
            }
    caption = "cost of training; seconds: median over a run’s steps, and of those and memory the least over seeds"
    return rows_table(rows, caption)


def _device(type: str, name: str, precision: str, threads: int = 0, **_others: object) -> str:
    return f"{name}, {threads} threads, {precision}" if type == "cpu" else f"{name}, {precision}"


def _counted(values: Iterable[str]) -> str:
    """Different values with how often each occurs, when there is more than one."""
    counts = Counter(values)
    return "; ".join(f"{value} ({count})" if len(counts) > 1 else value for value, count in sorted(counts.items()))


def commit_text(git: Mapping[str, object]) -> str:
    """The commit of the code that made something, and whether it had been changed since."""
    commit = str(git["commit"]) or "unknown"
    return commit if " " in commit else commit[:10] + ("" if git["clean"] else " with changes")


def provenance_table(campaigns: Mapping[str, Sequence[Record]]) -> Drawing:
    """Where the numbers come from: code, machine, versions and data of every campaign's records."""
    columns: dict[str, dict[str, str]] = {}
    for name, records in campaigns.items():
        contents, column = [record.content for record in records], {"records": str(len(records))}
        if contents:
            started = sorted(c["started"][:16].replace("T", " ") for c in contents)
            column |= {"first run started (UTC)": started[0], "last run started (UTC)": started[-1]}
            column["hours of training"] = f"{sum(c['wall_seconds'] for c in contents) / 3600:.1f}"
            column["commit"] = _counted(commit_text(c["git"]) for c in contents)
            column["device"] = _counted(_device(**c["device"]) for c in contents)
            column["evaluated images"] = _counted(f"{c['data']['images']} of {c['data']['split']}" for c in contents)
            column["data, sha256"] = _counted(c["data"]["fingerprint"][:12] for c in contents)
        for package in sorted({package for c in contents for package in c["versions"]}):
            column[package] = _counted(c["versions"].get(package, "unknown") for c in contents)
        columns[name] = column
    return table(pd.DataFrame(columns).fillna("–"), f"provenance of {sum(map(len, campaigns.values()))} records")


def pairs_table(pairs: Sequence[Pair], confidence: float = 0.95) -> Drawing:
    """One row for each pair of one data set: the teacher, the baseline, and what each method adds to it."""
    rows = {}
    for pair in pairs:
        gains = {m: pair.runs.difference(m, "student", confidence) for m in PAIR_METHODS[1:]}
        rows[pair.heads, BACKBONE_NAMES[pair.student.backbone]] = {
            "teacher’s mIoU, %": f"{100 * pair.runs.teacher_score:.1f}",
            "baseline’s, %": per_cent(spread(pair.runs.values("student").values())),
            **{METHOD_NAMES[m]: interval(gain) if gain.pairs else "–" for m, gain in gains.items()},
            "seeds": ", ".join(dict.fromkeys(str(len(gain.pairs)) for gain in gains.values())),
        }
    caption = "mean ± standard deviation over seeds; gains over the baseline in points of mIoU, with their"
    return rows_table(rows, f"{pairs[0].runs.title}: {caption} {100 * confidence:g} % intervals")
