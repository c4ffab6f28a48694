"""How a number of each image goes with what a method gains on that image: rank correlations over images.

Images are the unit. An image's gain is averaged over seeds first, because the seeds see the same images; that interval
speaks of other images. Whether other students would gain on the same images is asked of each seed by itself. A relation
is significant only when both intervals leave out zero.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from apd.report.evidence import NUMBERS, SCORES, Evidence, Values
from apd.report.statistics import ComparisonError, Difference, mean_interval
from apd.training.record import Record

RESAMPLES = 2000


class Correlation(NamedTuple):
    """A rank correlation with its interval over images; NaN where there is none."""

    value: float
    low: float
    high: float
    images: int


class Relation(NamedTuple):
    """A number of the images correlated with their gains: means over seeds, and the mean of each seed's own."""

    over_images: Correlation
    over_seeds: Difference

    @property
    def verdict(self) -> str:
        """Says whether gains rise with the number, fall with it, or neither."""
        lows, highs = zip(self.over_images[1:3], self.over_seeds[1:3], strict=True)
        if any(math.isnan(low) for low in lows):
            return "cannot be compared yet with"
        if min(lows) > 0:
            return "rises with"
        return "falls with" if max(highs) < 0 else "shows no significant relation to"


class PerImage(NamedTuple):
    """The evidence of one context shift, averaged over seeds, and the seeds' own.

    `numbers[name]` and `scores[network][score]` have one value for each image; `furthest` is the class whose prototype
    is furthest from its row, -1 where there is none.
    """

    context_shift: float
    seeds: tuple[int, ...]
    numbers: dict[str, Values]
    scores: dict[str, dict[str, Values]]
    furthest: list[int]
    class_names: list[str]
    each: list[Evidence]

    def gain(self, method: str = "apd", reference: str = "pixel_kd", score: str = "miou") -> Values:
        """(N,) by how much a method's score of an image is above another's, mean over seeds."""
        return self.scores[method][score] - self.scores[reference][score]


def _pearson(x: Values, y: Values) -> Values:
    """Correlation along the last axis; NaN where one side never varies."""
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    lengths = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    return np.divide((x * y).sum(-1), lengths, out=np.full(lengths.shape, np.nan), where=lengths > 0)


def _of_ranks(x: Values, y: Values, held: Values | None = None) -> Values:
    """Correlation of ranks along the last axis, with what `held` explains taken out of both sides."""
    xy = _pearson(x, y)
    if held is None:
        return xy
    xh, yh = _pearson(x, held), _pearson(y, held)
    left = (1 - xh**2) * (1 - yh**2)
    rest = np.divide(xy - xh * yh, np.sqrt(np.maximum(left, 0)), out=np.full(xy.shape, np.nan), where=left > 1e-12)
    return np.where(np.isnan(xh) | np.isnan(yh), xy, rest)  # what never varies takes nothing out


def spearman(*columns: Values) -> float:
    """Spearman's rank correlation of two columns; a third is taken out of the ranks of both first, linearly.

    NaN below three pairs, and where all of one side are equal or nothing is left of it.

    >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([1.0, 4.0, 9.0]))
    1.0
    """
    return float(_of_ranks(*map(rankdata, columns))) if len(columns[0]) >= 3 else math.nan


def _complete(*columns: Values) -> Values:
    """(columns, images) of which every column knows something."""
    together = np.stack(columns).astype(np.float64)
    return together[:, ~np.isnan(together).any(0)]


def correlate(*columns: Values, confidence: float = 0.95, resamples: int = RESAMPLES) -> Correlation:
    """Rank correlation with a percentile bootstrap interval over images, the same at every call.

    Columns as those of :func:`spearman`, one value per image; images with a NaN anywhere are left out.
    """
    if len({len(column) for column in columns}) != 1:
        raise ValueError(f"lengths {[len(column) for column in columns]}: expected one value per image in each")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: expected a number between 0 and 1, such as 0.95")
    together = _complete(*columns)
    images, value = together.shape[1], spearman(*together)
    if math.isnan(value):
        return Correlation(math.nan, math.nan, math.nan, images)
    # uniform numbers instead of Generator.integers: NumPy may change how it draws integers
    drawn_RN = (np.random.default_rng(0).random((resamples, images)) * images).astype(np.int64)
    found_R = _of_ranks(*(rankdata(column[drawn_RN], axis=1) for column in together))
    found_R = found_R[~np.isnan(found_R)]
    if len(found_R) < resamples / 2:  # in most draws one side never varies
        return Correlation(value, math.nan, math.nan, images)
    low, high = np.quantile(found_R, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Correlation(value, float(low), float(high), images)


def per_image(evidence: Sequence[Evidence]) -> list[PerImage]:
    """Average the evidence over seeds, for each context shift by itself, in rising order.

    Only networks that every seed has are kept. ComparisonError where files of one context shift do not fit.
    """

    def shift_of(one: Evidence) -> float:
        return one.experiment.data.context_shift

    ordered = sorted(evidence, key=lambda one: (shift_of(one), one.experiment.seed))
    return [_average(shift, list(each)) for shift, each in itertools.groupby(ordered, shift_of)]


def _average(context_shift: float, each: list[Evidence]) -> PerImage:
    first, seeds = each[0], tuple(one.experiment.seed for one in each)
    for one in each[1:]:
        for what, of in (
            ("images", lambda e: e.content["data"]),
            ("teacher", lambda e: e.content["runs"]["teacher"]),
            ("settings of APD", lambda e: e.experiment.distillers),
        ):
            if of(one) != of(first):
                raise ComparisonError(f"{one.source} and {first.source} differ in the {what}")
    if len(set(seeds)) < len(seeds):
        raise ComparisonError(f"context shift {context_shift:g}: seeds {list(seeds)}, expected each once")
    networks = [name for name in first.content["runs"] if all(name in one.content["runs"] for one in each)]
    return PerImage(
        context_shift,
        seeds,
        {name: np.mean([one.number(name) for one in each], axis=0) for name in NUMBERS},
        {n: {score: np.mean([one.score(n, score) for one in each], axis=0) for score in SCORES} for n in networks},
        [-1 if label is None else label for label in first.content["furthest"]],
        first.content["data"]["class_names"],
        each,
    )


def seeds_agree(images: PerImage, method: str = "apd", reference: str = "pixel_kd") -> float:
    """Mean rank correlation of the images' gains in mIoU between two seeds, over all pairs of seeds; NaN with one.

    Near 0, where an image gains is a matter of the seed, and nothing that belongs to the image can predict it.
    """
    gains = _complete(*(one.gain(method, reference) for one in images.each))
    found = [spearman(a, b) for a, b in itertools.combinations(gains, 2)]
    return float(np.mean(found)) if found else math.nan


def relations(
    images: PerImage,
    names: Iterable[str] = NUMBERS,
    confidence: float = 0.95,
    *,
    held: str | None = None,
    method: str = "apd",
    reference: str = "pixel_kd",
) -> dict[str, Relation]:
    """How numbers of the images' perspectives, by `names`, go with a method's gain in mIoU over a reference.

    The scores of the network `held`, if any, are taken out of both sides (see :func:`spearman`).
    """
    control, found = [images.scores[held]["miou"]] if held else [], {}
    for name in names:
        by_seed = {}
        for one in images.each:
            own = [one.score(held, "miou")] if held else []
            by_seed[one.experiment.seed] = spearman(*_complete(one.number(name), one.gain(method, reference), *own))
        known = {seed: value for seed, value in by_seed.items() if not math.isnan(value)}
        whole = correlate(images.numbers[name], images.gain(method, reference), *control, confidence=confidence)
        found[name] = Relation(whole, mean_interval(known, confidence))
    return found


class Backed(NamedTuple):
    """How evidence and records go together: runs in the evidence, those of them with a record of the same weights, and
    the largest difference in the share of pixels right; NaN where no run has such a record."""

    runs: int
    recorded: int
    difference: float


def backed_by(evidence: Sequence[Evidence], records: Sequence[Record]) -> Backed:
    """Compare the students' pixels in the evidence with the confusion matrices of the records of their runs."""
    known = {record.content["weights_sha256"]: record for record in records}
    students = [(one, n, run) for one in evidence for n, run in one.content["runs"].items() if n != "teacher"]
    differences = []
    for one, network, run in students:
        if record := known.get(run["weights_sha256"]):
            valid = np.array(one.content["valid"], dtype=np.float64)
            right = float(np.nansum(one.score(network, "right") * valid) / valid.sum())
            differences.append(abs(right - record.scores.aacc))
    return Backed(len(students), len(differences), max(differences, default=math.nan))
