"""The scene by which the book explains distillation between detectors, and what two networks make of it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from apd.data.instances import InstanceSample, InstanceSpec
from apd.data.scenes.instances import SceneInstances
from apd.models.detector import build_detector
from apd.report.box_perspectives import BoxPerspectives, box_perspectives, first_with_all_classes
from apd.report.detection_findings import Findings

_SIZES = dict(min_size=96, max_size=128, smallest_anchor=8, proposals=200, rois=64)


class Example(NamedTuple):
    """A scene, its classes, what both networks make of the student's boxes, and whether they were trained."""

    sample: InstanceSample
    spec: InstanceSpec
    seen: BoxPerspectives
    trained: bool


def method_example(findings: Sequence[Findings]) -> Example:
    """From the first file of findings; where there is none, from small networks of random weights.

    The scene is the first of its split in which every class has to be found.

    >>> example = method_example([])
    >>> example.trained, len(example.seen.labels_N)
    (False, 64)
    """
    if findings:
        dataset = findings[0].dataset()
        return Example(dataset[findings[0].boxes_of], dataset.spec, findings[0].boxes(), True)
    dataset = SceneInstances(20, height=96, width=128, context_shift=1.0, seed=0, split="test")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classes = dataset.spec.num_classes
        student = build_detector("mobilenet_v3_small", classes, width=32, box_width=64, **_SIZES)
        teacher = build_detector("resnet18", classes, width=48, box_width=96, **_SIZES).eval()
    sample = dataset[first_with_all_classes(dataset)]
    return Example(sample, dataset.spec, box_perspectives(student, teacher, sample), False)
