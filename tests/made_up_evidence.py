"""Evidence on perspectives of runs that never took place, with chosen numbers and scores."""

import numpy as np

from apd.config.identity import fingerprint, to_dict
from apd.data.specs import SCENES
from apd.report.correlations import Evidence
from apd.study.campaigns import scenes_experiment

IMAGES = 40


def _stored(values, digits):
    return [None if np.isnan(value) else round(float(value), digits) for value in values]


def made_up_evidence(context_shift=1.0, seed=0, *, distance=None, miou=None, images=IMAGES, weights=None):
    """Valid evidence: random numbers, the same for each seed, and random scores, unless they are given."""
    experiment = scenes_experiment("apd", seed, context_shift)
    of_images, of_seed = np.random.default_rng(0), np.random.default_rng(1 + seed)
    distance = of_images.uniform(0.1, 0.5, images) if distance is None else distance
    ranges = {"divergence": (0, 0.3), "disagreement": (0, 0.2), "own_right": (0.85, 0.95), "shared_right": (0.8, 0.9)}
    numbers = {"distance": distance} | {name: of_images.uniform(*ends, images) for name, ends in ranges.items()}
    networks = ["teacher", "student", "pixel_kd", "apd", "apd_without_kd"]
    drawn = {name: of_seed.uniform(0.3, 0.6, images) for name in networks} | dict(miou or {})
    right = {name: of_seed.uniform(0.7, 0.9, images) for name in networks}
    names, known = {"apd": fingerprint(experiment)}, weights or {}
    runs = {n: {"fingerprint": names.get(n, "0" * 12), "weights_sha256": known.get(n, "9" * 64)} for n in networks}
    data = {"name": "scenes", "split": "test", "class_names": list(SCENES.class_names)}
    return Evidence(
        {
            "schema": 1,
            "experiment": to_dict(experiment),
            "runs": runs,
            "data": data | {"images": images, "fingerprint": "f" * 64},
            "git": {"commit": "0123456789abcdef", "clean": True},
            "valid": [9000] * images,
            "furthest": [i % SCENES.num_classes for i in range(images)],
            "perspective": {name: _stored(values, 4) for name, values in numbers.items()},
            "scores": {name: {"miou": _stored(drawn[name], 3), "right": _stored(right[name], 3)} for name in networks},
        },
        source=f"context{context_shift:g}-seed{seed}.json",
    )
