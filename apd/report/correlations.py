"""How a number of each test image goes with what APD gains on it: evidence from files, and rank correlations."""

import itertools
import math
from collections.abc import Sequence
from functools import cached_property, reduce
from operator import getitem
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from apd.config.experiment import Experiment
from apd.config.identity import fingerprint, from_dict
from apd.report.statistics import ComparisonError, Difference, mean_interval
from apd.training.record import Measured

LARGEST = {"distance": 2.0, "divergence": math.inf, "disagreement": 1.0, "own_right": 1.0, "shared_right": 1.0}
"""Numbers of an image's perspective with their largest possible value."""
REVEALED = "revealed"
"""What an image's own perspective shows and the shared one hides: `own_right` minus `shared_right`; not stored."""
NUMBERS = (*LARGEST, REVEALED)
SCORES = ("miou", "right")
"""Scores of an image: mIoU over the classes in its labels, and share of valid pixels right."""
NEEDED = ("teacher", "pixel_kd", "apd")
"""Networks that every file has scores of."""

Values = NDArray[np.float64]


class Evidence(Measured):
    """Evidence of one context shift and seed."""

    maker: ClassVar[str] = "perspective_evidence.py"
    folder: ClassVar[str] = "perspectives"

    def check(self) -> None:
        """Raise where an entry is missing or does not fit another."""
        runs, data = self.content["runs"], self.content["data"]
        if fingerprint(self.experiment) != runs["apd"]["fingerprint"]:
            raise ValueError("runs.apd.fingerprint is not that of the experiment: the file was edited")
        entries = {"valid": math.inf, "furthest": len(data["class_names"]) - 1}
        entries |= {f"perspective.{name}": most for name, most in LARGEST.items()}
        entries |= {f"scores.{network}.{score}": 1.0 for network in (*NEEDED, *runs) for score in SCORES}
        for entry, most in entries.items():
            values = self._values(*entry.split("."))
            known = values[~np.isnan(values)]
            if values.shape != (data["images"],) or not ((known >= 0) & (known <= most) & (known < math.inf)).all():
                expected = f"{data['images']} values, null or from 0 to {most:g}"
                raise ValueError(f"{entry} = {values.tolist()!r:.80}: expected {expected}")

    def _values(self, *path: str) -> Values:
        values = reduce(getitem, path, self.content)
        found = np.array([math.nan if value is None else value for value in values])
        if found.dtype.kind not in "fi":
            raise ValueError(f"{'.'.join(path)} = {values!r:.80}: expected numbers")
        return found.astype(np.float64)

    @cached_property
    def experiment(self) -> Experiment:
        """The run of APD."""
        return from_dict(self.content["experiment"])

    def number(self, name: str) -> Values:
        """(N,) one of NUMBERS, NaN where an image has none."""
        if name == REVEALED:
            return self.number("own_right") - self.number("shared_right")
        return self._values("perspective", name)

    def score(self, network: str, name: str) -> Values:
        """(N,) the images' scores of one network, NaN where an image has none."""
        return self._values("scores", network, name)

    def gain(self) -> Values:
        """(N,) mIoU of each image with APD minus that with pixel KD."""
        return self.score("apd", "miou") - self.score("pixel_kd", "miou")


class Correlation(NamedTuple):
    """A rank correlation with its interval over images, NaN where there is none."""

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
        if any(map(math.isnan, lows)):
            return "cannot be compared yet with"
        sign = (min(lows) > 0) - (max(highs) < 0)
        return ("shows no significant relation to", "rises with", "falls with")[sign]


class PerImage(NamedTuple):
    """The evidence of one context shift, averaged over seeds, and the seeds' own."""

    context_shift: float
    seeds: tuple[int, ...]
    numbers: dict[str, Values]
    scores: dict[str, dict[str, Values]]
    each: list[Evidence]

    def gain(self) -> Values:
        """(N,) mIoU of each image with APD minus that with pixel KD, mean over seeds."""
        return self.scores["apd"]["miou"] - self.scores["pixel_kd"]["miou"]


def _pearson(x: Values, y: Values) -> Values:
    """Correlation along the last axis; NaN where one side never varies."""
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    lengths = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    return np.divide((x * y).sum(-1), lengths, out=np.full(lengths.shape, np.nan), where=lengths > 0)


def spearman(x: Values, y: Values) -> float:
    """Spearman's rank correlation; NaN below three pairs, and where all of one side are equal."""
    return float(_pearson(rankdata(x), rankdata(y))) if len(x) >= 3 else math.nan


def _complete(*columns: Values) -> Values:
    """(columns, images) of which every column knows something."""
    together = np.stack(columns).astype(np.float64)
    return together[:, ~np.isnan(together).any(0)]


def correlate(x: Values, y: Values, *, confidence: float = 0.95, resamples: int = 2000) -> Correlation:
    """:func:`spearman` over images, without those that have a NaN, with a percentile bootstrap interval."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: expected a number between 0 and 1, such as 0.95")
    together = _complete(x, y)
    images, value = together.shape[1], spearman(*together)
    if math.isnan(value):
        return Correlation(value, value, value, images)
    # uniform numbers instead of Generator.integers: NumPy may change how it draws integers
    drawn_RN = (np.random.default_rng(0).random((resamples, images)) * images).astype(np.int64)
    found_R = _pearson(*(rankdata(column[drawn_RN], axis=1) for column in together))
    found_R = found_R[~np.isnan(found_R)]
    if len(found_R) < resamples / 2:  # in most draws one side never varies
        return Correlation(value, math.nan, math.nan, images)
    low, high = np.quantile(found_R, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Correlation(value, float(low), float(high), images)


def per_image(evidence: Sequence[Evidence]) -> list[PerImage]:
    """The evidence by context shift, averaged over seeds, of the networks that all of them have; files must fit."""
    ordered = sorted(evidence, key=lambda one: (one.experiment.data.context_shift, one.experiment.seed))
    groups = itertools.groupby(ordered, lambda one: one.experiment.data.context_shift)
    return [_average(shift, list(each)) for shift, each in groups]


def _average(context_shift: float, each: list[Evidence]) -> PerImage:
    first, seeds = each[0], tuple(one.experiment.seed for one in each)
    for one in each[1:]:
        shared = [(e.content["data"], e.content["runs"]["teacher"], e.experiment.distillers) for e in (one, first)]
        for what, own, other in zip(("images", "teacher", "settings of APD"), *shared, strict=True):
            if own != other:
                raise ComparisonError(f"{one.source} and {first.source} differ in the {what}")
    if len(set(seeds)) < len(seeds):
        raise ComparisonError(f"context shift {context_shift:g}: seeds {list(seeds)}, expected each once")
    networks = [name for name in first.content["runs"] if all(name in one.content["runs"] for one in each)]
    return PerImage(
        context_shift,
        seeds,
        {name: np.mean([one.number(name) for one in each], axis=0) for name in NUMBERS},
        {n: {score: np.mean([one.score(n, score) for one in each], axis=0) for score in SCORES} for n in networks},
        each,
    )


def seeds_agree(images: PerImage) -> float:
    """Mean rank correlation of the images' gains between two seeds: near 0, no number of an image can predict them."""
    gains = _complete(*(one.gain() for one in images.each))
    found = [spearman(a, b) for a, b in itertools.combinations(gains, 2)]
    return float(np.mean(found)) if found else math.nan


def relation(images: PerImage, confidence: float = 0.95) -> Relation:
    """How the images' distances go with their gains."""
    by_seed = {one.experiment.seed: spearman(*_complete(one.number("distance"), one.gain())) for one in images.each}
    whole = correlate(images.numbers["distance"], images.gain(), confidence=confidence)
    return Relation(whole, mean_interval({s: v for s, v in by_seed.items() if not math.isnan(v)}, confidence))
