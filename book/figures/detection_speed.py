"""Measure what each distiller adds to a training step of a detector, and write it down.

    python -m book.figures.detection_speed                         the study's small scenes, on the CPU, one thread
    python -m book.figures.detection_speed --device cuda --coco    and COCO's images at their size, on a GPU

The file, `book/results/detection-speed/<device>.json`, is what the chapter on detection is drawn from. Run it on a
quiet machine.
"""

import argparse
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.benchmark import timer
from torchvision.models.detection import FasterRCNN

from apd.config.detection_config import DetectorConfig
from apd.cost.measure import quartiles
from apd.data.batches import InstanceBatch, on_device, unit_range
from apd.data.instances import InstanceSpec, Noise, as_target
from apd.distillers.apd import RoIAPD, dense_apd
from apd.distillers.on_detectors import ReviewKD, pyramid_matching, roi_dkd, roi_kd
from apd.models.detector import build_detector
from apd.models.detector_hooks import DetectorTap, teacher_view, training_step
from apd.study.published_recipes import HEAD_WIDTH, scenes_detection_experiment
from apd.training.record import records_folder
from book.figures.speed import header, rounded, shown, write

RECIPE = scenes_detection_experiment("student", seed=0)


def sizes_of(network: DetectorConfig) -> dict[str, Any]:
    """A detector's sizes as :func:`apd.models.detector.build_detector` names them."""
    return {name: value for name, value in asdict(network).items() if name not in ("kind", "weights")}


SHAPES: dict[str, dict[str, Any]] = {
    "scenes": dict(
        batch=RECIPE.training.batch_size,
        height=RECIPE.data.height,
        width=RECIPE.data.width,
        classes=3,
        heads=HEAD_WIDTH,
        student=sizes_of(RECIPE.network),
        teacher=sizes_of(RECIPE.teacher.network),
    ),
    "coco": dict(batch=2, height=800, width=1216, classes=80, heads=256)
    | {"student": dict(backbone="resnet18"), "teacher": dict(backbone="resnet50")},
}
"""Sizes of the campaign on scenes, and COCO's in the batch of one GPU; `heads` is the width of APD's projections."""


def built(config: dict[str, Any], shape: dict[str, Any], device: torch.device) -> FasterRCNN:
    """A Mask R-CNN of random weights."""
    torch.manual_seed(0)
    sides = sorted((shape["height"], shape["width"]))
    return build_detector(num_classes=shape["classes"], min_size=sides[0], max_size=sides[1], **config).to(device)


def distillers_for(student: FasterRCNN, teacher: FasterRCNN, classes: int, heads: int) -> dict[str, nn.Module]:
    """Every distiller between detectors, by the key of its variant."""
    pyramids = student.backbone.out_channels, teacher.backbone.out_channels
    vectors = tuple(net.roi_heads.box_predictor.cls_score.in_features for net in (student, teacher))
    return {
        "roi_kd": roi_kd(),
        "roi_dkd": roi_dkd(),
        "pyramid_matching": pyramid_matching(*pyramids),
        "review_kd": ReviewKD(*pyramids, width=heads),
        "roi_apd": RoIAPD(*vectors, classes, width=heads),
        "dense_apd": dense_apd(*pyramids, classes, width=heads),
    }


def noise_batch(shape: dict[str, Any], device: torch.device) -> InstanceBatch:
    """Images of noise with eight boxes each: the cost of a step does not depend on what is seen."""
    spec = InstanceSpec("noise", tuple(map(str, range(shape["classes"]))))
    sample = Noise(spec, (shape["height"], shape["width"]))[0]
    count = shape["batch"]
    batch = InstanceBatch([unit_range(sample.image_3HW)] * count, [as_target(sample)] * count)
    return on_device(batch, device, pinned=False)


def detector_step_cost(
    student: FasterRCNN, teacher: FasterRCNN, distillers: Mapping[str, nn.Module], batch: InstanceBatch, *, repeats: int
) -> dict[str, Any]:
    """Time training steps of one batch, without the optimiser; quartiles over the repeats.

    Milliseconds of the `student`'s step without a teacher, of the `teacher`'s forward pass on the boxes that the
    student drew, and of the `steps` with each distiller; and, repeat by repeat, what each adds beyond the teacher:
    `added`, (step − student − teacher) / student. All take turns within a repeat, so that what slows the machine for
    a while slows all of them, and draw the same boxes. The networks are left as they are.
    """
    student = copy.deepcopy(student).train()

    def alone() -> None:
        sum(student(*batch).values()).backward()

    def distilled(distiller: nn.Module) -> None:
        with DetectorTap(student) as tap:
            losses, pair = training_step(student, tap, teacher, *batch)
            (sum(losses.values()) + distiller(pair)["loss"]).backward()

    def teacher_part() -> Callable[[], object]:
        with DetectorTap(student) as tap, torch.no_grad():
            student(*batch)
            return partial(teacher_view, teacher, batch.images, tap.boxes, tap.view.image_sizes)

    def milliseconds(call: Callable[[], object]) -> float:
        torch.manual_seed(repeat)  # the boxes that are drawn
        started = timer()  # waits for a GPU
        call()
        took = 1e3 * (timer() - started)
        for module in (student, *distillers.values()):
            module.zero_grad(set_to_none=True)
        return took

    rows = []
    with torch.random.fork_rng():
        for repeat in range(1 + repeats):  # the first one warms up
            torch.manual_seed(repeat)
            calls = (alone, teacher_part(), *(partial(distilled, each) for each in distillers.values()))
            rows.append([milliseconds(call) for call in calls])
    own, taught, *steps = np.array(rows[1:]).T
    named = dict(zip(distillers, steps, strict=True))
    return {
        "student": rounded(quartiles(own)),
        "teacher": rounded(quartiles(taught)),
        "steps": {name: rounded(quartiles(each)) for name, each in named.items()},
        "added": {name: rounded(quartiles((each - own - taught) / own)) for name, each in named.items()},
    }


def measured(device: torch.device, names: list[str], repeats: int) -> Iterator[dict[str, Any]]:
    """A row for each shape."""
    for name in names:
        shape = SHAPES[name]
        student, teacher = (built(shape[who], shape, device) for who in ("student", "teacher"))
        teacher.eval().requires_grad_(False)
        distillers = nn.ModuleDict(distillers_for(student, teacher, shape["classes"], shape["heads"])).to(device)
        cost = detector_step_cost(student, teacher, distillers, noise_batch(shape, device), repeats=repeats)
        yield {"shape": name, **cost}


def main() -> None:
    """Measure, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--coco", action="store_true", help="also at COCO's size, which a CPU takes minutes for")
    parser.add_argument("--repeats", type=int, default=9, help="at least 2")
    parser.add_argument("--to", type=Path, default=records_folder("detection-speed"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(chosen.device)
    shapes = {name: SHAPES[name] for name in SHAPES if name != "coco" or chosen.coco}
    content = header(device, "fp32") | {"repeats": chosen.repeats, "shapes": shapes}
    print(write(content | {"rows": list(shown(measured(device, list(shapes), chosen.repeats)))}, chosen.to))


if __name__ == "__main__":
    main()
