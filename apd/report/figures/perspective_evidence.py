"""Do images gain where their own perspective is far from the shared one? The evidence, image by image."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from apd.report.correlations import PerImage, relations, seeds_agree
from apd.report.figures.forest import signed
from apd.report.figures.style import (
    INK,
    METHOD_COLOURS,
    WIDTH,
    Drawing,
    Mark,
    Markdown,
    figure,
    hoverable,
    nothing,
    quiet_axes,
    table,
)
from apd.report.figures.tables import commit_text, interval, points
from apd.report.statistics import paired_difference
from apd.study.recipes import METHOD_NAMES

NUMBER_NAMES = {
    "distance": "distance",
    "divergence": "divergence of the views",
    "disagreement": "their disagreement",
    "revealed": "what the own one adds",
}
"""Numbers of an image that are held against its gain; the first is the one the question is about."""
POINTS = 100.0
FIFTHS = 5


def gain_by_distance(images: Sequence[PerImage], number: str = "distance") -> Drawing:
    """Gain of APD over pixel KD against a number of the image, one panel for each context shift given.

    A dot is an image, its gain the mean over seeds; steps are means over fifths of the images. A pointer on a dot reads
    the image, its class furthest from the shared perspective, and the scores behind it.
    """
    if not images:
        return nothing("The gains of single images cannot be drawn: 0 files of evidence yet.")
    with figure(width=WIDTH, height=0.5 + 2.7 * len(images)) as fig:
        fig.get_layout_engine().set(h_pad=0.1)
        marks, said = [], []
        all_axes = fig.subplots(len(images), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
        for axes, one in zip(all_axes, images, strict=True):
            x, y = one.numbers[number], POINTS * one.gain()
            kept = ~(np.isnan(x) | np.isnan(y))
            dots = {"s": 14, "color": METHOD_COLOURS["apd"], "alpha": 0.7, "linewidth": 0, "zorder": 2}
            sns.scatterplot(x=x[kept], y=y[kept], ax=axes, **dots)
            _fifths(axes, x[kept], y[kept])
            axes.axhline(0, color=INK, linewidth=1.0, zorder=1)
            axes.set_title(f"context shift {one.context_shift:g}")
            axes.yaxis.set_major_formatter(signed)
            quiet_axes(axes, grid="y")
            order = [i for i in np.argsort(x, kind="stable").tolist() if kept[i]]
            marks += [Mark(axes, x[i], y[i], _told(one, number, i), group=str(i)) for i in order]
            said.append(f"context shift {one.context_shift:g}: {len(order)} images, mean gain {y[kept].mean():+.1f}")
        all_axes[-1].set_xlabel(f"{NUMBER_NAMES[number]} of the image’s own perspective from the shared one")
        fig.supylabel("gain over pixel KD, points of mIoU", fontsize=11)
        return hoverable(fig, marks, "Gain of APD over pixel KD, image by image. " + "; ".join(said))


def _fifths(axes: Axes, x: np.ndarray, y: np.ndarray) -> None:
    """The mean of y in each fifth of the images, sorted by x, as a step over the fifth's width."""
    order = np.argsort(x, kind="stable")
    for part in np.array_split(order, FIFTHS):
        if len(part):
            axes.plot([x[part[0]], x[part[-1]]], [y[part].mean()] * 2, color=INK, linewidth=2.4, zorder=3)


def _told(one: PerImage, number: str, image: int) -> tuple[str, ...]:
    label = one.furthest[image]
    said = {
        name: f"{METHOD_NAMES.get(name, name).removeprefix('+ ')} {POINTS * one.scores[name]['miou'][image]:.1f}"
        for name in ("pixel_kd", "apd", "teacher", "student")
        if name in one.scores
    }
    return (
        f"test picture {image}",
        f"{NUMBER_NAMES[number]} {one.numbers[number][image]:.3f}",
        f"furthest class: {one.class_names[label] if label >= 0 else 'none'}",
        f"mIoU, %: {said.pop('pixel_kd')}, {said.pop('apd')}, gain {points(one.gain()[image])}",
        ", ".join(said.values()),
    )


def _signed(value: float) -> str:
    if math.isnan(value):
        return "–"
    text = f"{value:+.2f}"
    return text.replace("-", "−") if float(text) else text[1:]


def coefficient(found: Sequence[float]) -> str:
    """A rank correlation (or the mean of some) with its interval: the first three of `found`."""
    value, low, high = (_signed(v) for v in found[:3])
    return value if math.isnan(found[1]) else f"{value}\u00a0[{low},\u00a0{high}]"


def relation_table(images: Sequence[PerImage], confidence: float = 0.95) -> Drawing:
    """Rank correlation of each number with the gain at each context shift: over images, over seeds, difficulty held."""
    if not images:
        return nothing("There is no correlation to tell: 0 files of evidence yet.")
    rows = {}
    for one in images:
        plain, held = relations(one, NUMBER_NAMES, confidence), relations(one, NUMBER_NAMES, confidence, held="teacher")
        for number, name in NUMBER_NAMES.items():
            rows[f"shift {one.context_shift:g}: {name}"] = {
                "over images": coefficient(plain[number].over_images),
                "over seeds": coefficient(plain[number].over_seeds),
                "over images, difficulty held": coefficient(held[number].over_images),
            }
    caption = f"rank correlation with an image’s gain of APD over pixel KD, {POINTS * confidence:g} % intervals"
    return table(pd.DataFrame.from_dict(rows, orient="index"), caption)


def relation_words(
    images: Sequence[PerImage], confidence: float = 0.95, *, method: str = "apd", reference: str = "pixel_kd"
) -> Markdown:
    """Does the gain of an image go with its distance? Worded by rule, one sentence for each context shift.

    Context shifts at which one of the two methods was not measured are passed over.
    """
    lines = []
    for one in images:
        if not {method, reference} <= one.scores.keys():
            continue
        found = relations(one, ("distance",), confidence, method=method, reference=reference)["distance"]
        seeds, agree = len(one.seeds), seeds_agree(one, method, reference)
        lines.append(
            f"- Context shift {one.context_shift:g}: an image’s gain of “{METHOD_NAMES[method]}” over "
            f"“{METHOD_NAMES[reference]}” **{found.verdict}** its distance "
            f"({coefficient(found.over_images)} over {found.over_images.images} images, "
            f"{coefficient(found.over_seeds)} over {seeds} {'seed' if seeds == 1 else 'seeds'})."
        )
        if not math.isnan(agree):
            lines[-1] += f" The gains of two seeds on the same images correlate by {coefficient((agree, math.nan, 0))}."
    return Markdown("\n".join(lines) or "0 files of evidence are there yet, so nothing can be said.")


def revealed_words(images: Sequence[PerImage], confidence: float = 0.95) -> Markdown:
    """Does the teacher see more through an image's own perspective than through its classifier? Worded by rule."""
    lines = []
    for one in images:
        own, shared = (
            {i: v for i, v in enumerate(one.numbers[name].tolist()) if not math.isnan(v)}
            for name in ("own_right", "shared_right")
        )
        found = paired_difference(own, shared, confidence)
        lines.append(
            f"- Context shift {one.context_shift:g}: what the teacher gets right through images’ own perspectives is "
            f"**{found.verdict}** what it gets right through its classifier, by {interval(found)} points of the cells, "
            f"{len(found.pairs)} images."
        )
    return Markdown("\n".join(lines) or "0 files of evidence are there yet, so nothing can be said.")


def evidence_table(images: Sequence[PerImage]) -> Drawing:
    """Where the evidence comes from: code, machine, and how well it agrees with the records."""
    if not images:
        return nothing("There is no provenance to tell: 0 files of evidence yet.")
    rows = {}
    for one in images:
        contents = [evidence.content for evidence in one.each]
        data = contents[0]["data"]
        rows[f"context shift {one.context_shift:g}"] = {
            "files": str(len(contents)),
            "seeds": ", ".join(map(str, one.seeds)),
            "images": f"{data['images']} of {data['split']}",
            "networks": ", ".join(METHOD_NAMES.get(name, name) for name in one.scores),
            "commit": _different(commit_text(c["git"]) for c in contents),
            "device": _different(c["device"]["name"] for c in contents),
            "torch": _different(c["versions"].get("torch", "unknown") for c in contents),
            "data, sha256": _different(c["data"]["fingerprint"][:12] for c in contents),
        }
    return table(pd.DataFrame.from_dict(rows, orient="index").T, f"evidence on {len(images)} context shifts")


def _different(values: Iterable[str]) -> str:
    return "; ".join(sorted(set(values)))
