"""Records of runs that never took place, with chosen confusion matrices, for tests of what is computed from records."""

import math
from functools import partial

import numpy as np

from apd.config.datasets import spec_of
from apd.config.identity import fingerprint, to_dict
from apd.study.campaigns import experiments_of
from apd.training.record import Record
from apd.training.schema import SCHEMA

PIXELS = 1000


def confusion(classes, right):
    """1000 pixels of each class, the share `right` of them called so and the others called the class after it."""
    kept, own = round(PIXELS * right), np.eye(classes, dtype=int)
    return (kept * own + (PIXELS - kept) * np.roll(own, 1, axis=1)).tolist()


def made_up_record(experiment, right=0.7, *, teacher_right=0.9, seconds=0.1, images="f" * 64):
    """A valid record of `experiment` whose student is right on this share of each class's pixels."""
    names = list(spec_of(experiment.data).class_names)
    found = partial(confusion, len(names))
    terms = ["task", "auxiliary"]
    for distiller in experiment.distillers:
        weights = ("regularisation", "alignment", "observation", "pixel_kd")
        own = [n for n in weights if distiller.method == "apd" and getattr(distiller, n)]
        terms += [f"{distiller.method}.{name}" for name in own or ["pixel_kd"]]
    steps = sorted({max(1, experiment.training.iterations * (i + 1) // 20) for i in range(20)})
    falling = [round(2 * math.exp(-3 * step / steps[-1]), 6) for step in steps]
    rates = [experiment.training.learning_rate * (1 - step / steps[-1]) ** 0.9 for step in steps]
    curves = {"iteration": steps, "learning_rate": rates} | dict.fromkeys([*terms, "loss"], falling)
    scores = {steps[len(steps) // 2 - 1]: 0.8 * right, steps[-1]: right}
    data = {"name": experiment.data.name, "split": experiment.data.evaluation_split, "class_names": names}
    teacher = {"confusion": found(teacher_right), "agreement": found(0.8)}
    return Record(
        {
            "schema": SCHEMA,
            "experiment": to_dict(experiment),
            "fingerprint": fingerprint(experiment),
            "data": data | {"images": 10, "fingerprint": images, "training_fingerprint": "e" * 64},
            "git": {"commit": "0123456789abcdef", "clean": True},
            "versions": {"python": "3.11.7", "apd": "0.1.0", "torch": "2.15.0"},
            "device": {"type": "cpu", "name": "a processor", "threads": 1, "precision": "fp32"},
            "command": "apd campaign made-up",
            "started": "2026-01-02T03:04:05+00:00",
            "wall_seconds": 30.0,
            "seconds_per_iteration": seconds,
            "curves": curves,
            "peak_memory_bytes": 10**9,
            "parameters": 10**6,
            "evaluations": [{"step": n, "split": "val", "confusion": found(share)} for n, share in scores.items()],
            "confusion": found(right),
            "teacher": teacher if experiment.teacher is not None else None,
            "weights_sha256": "0" * 64,
        },
        source=f"{experiment.name}.json",
    )


def made_up_campaign(name, right=lambda experiment: 0.7, keep=lambda experiment: True):
    """Records of a campaign's planned runs, those that are kept, with a share of right pixels for each."""
    return [made_up_record(experiment, right(experiment)) for experiment in experiments_of(name) if keep(experiment)]


def method_in(experiment):
    """What its label begins with."""
    return experiment.name.split("-")[0]
