"""Findings of detectors that never were: the ground truth of each scene, some objects left out and some invented."""

import torch
from chapter_cells import book_script

from apd.data.instances import encode
from apd.data.scenes import SceneInstances
from apd.evaluation.average_precision import Detections
from apd.report.detections import Findings

maker = book_script("detection_findings")
SCENES = SceneInstances(6, height=96, width=128, context_shift=1.0, seed=0, split="test")
FOUND = {"student": (3, 1), "roi_apd": (2, 0), "teacher": (99, 0)}
"""By network: of how many objects one is missed (each `every`th), and how many detections are false."""


def detections(sample, every, false):
    """Objects to be found, all but each `every`th of them, and some false ones in a corner."""
    wanted = (~sample.crowd_N).nonzero().flatten().tolist()
    kept = [n for place, n in enumerate(wanted) if (place + 1) % every]
    masks = torch.zeros(false, *sample.image_3HW.shape[1:], dtype=torch.bool)
    masks[:, :7, :9] = True
    return Detections(
        torch.cat([sample.boxes_N4[kept], torch.tensor([[0.0, 0.0, 9.0, 7.0]]).repeat(false, 1)]),
        torch.linspace(0.95, 0.55, len(kept) + false),
        torch.cat([sample.labels_N[kept], torch.zeros(false, dtype=torch.long)]),
        encode(torch.cat([sample.masks_NHW[kept], masks]).numpy()),
    )


def made_up_findings():
    """Findings of a baseline, a distilled student and a teacher in all scenes."""
    content = {
        "schema": 1,
        "seed": 0,
        "runs": {name: {"fingerprint": "a" * 12, "weights_sha256": "0" * 64} for name in FOUND},
        "data": {"pictures": 6, "scenes": maker.settings_of(SCENES), "fingerprint": SCENES.fingerprint()},
        "found": {name: [maker.sure_findings(detections(s, *rule)) for s in SCENES] for name, rule in FOUND.items()},
    }
    return Findings(content)
