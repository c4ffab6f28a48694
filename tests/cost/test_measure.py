"""Cost of networks, losses, steps and runs: against counts by hand, and what is measured is left as it was."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.utils.benchmark  # which may warn when it is loaded
from small_experiments import copied, equal, tiny
from torch import nn

from apd import APDLoss
from apd.cost.measure import CLASSES_IN_AN_IMAGE, STARTS, LossShape, cost_of, loss_batch, loss_cost, start_latency
from apd.distillers.on_detectors import roi_kd
from apd.models import build_segmenter
from apd.models.detector import build_detector
from apd.report.detections import DETECTION_NAMES
from apd.report.figures.curves import read_measurements
from apd.training.run import task_of
from apd.training.trainer import Trainer
from book.figures import detection_speed, loop_speed
from book.figures.speed import random_batch, step_latency

CPU = torch.device("cpu")
WRONG = [(name, 0, "at least 1") for name in ("height", "width", "batch")]
WRONG += [("seconds", 0, "more than 0"), ("device", "meta", "a CPU or CUDA device")]
SMALLEST = dict(backbone="mobilenet_v3_small", smallest_anchor=8, proposals=40, rois=8, width=8, box_width=16)


class Small(nn.Module):
    """Strided, grouped and depthwise convolutions, a norm, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        strided, grouped = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 12, 5, padding=2, groups=4, bias=False)
        depthwise, pool = nn.Conv2d(12, 12, 3, padding=2, dilation=2, groups=12), nn.AdaptiveAvgPool2d(2)
        layers = strided, nn.BatchNorm2d(8), nn.ReLU(), grouped, depthwise, pool, nn.Flatten(), nn.Linear(48, 10)
        self.layers = nn.Sequential(*layers)
        self.aux_head = nn.Conv2d(8, 10, 1)

    def forward(self, images):
        if self.training:
            return self.layers(images), self.aux_head(self.layers[0](images))
        return self.layers(images)


def test_multiply_accumulates_and_parameters_of_one_image_equal_a_count_by_hand_beside_the_setting():
    grid = 10 * 8
    for batch in (1, 3):
        cost = cost_of(Small(), height=20, width=15, batch=batch, seconds=0.01)
        assert cost.macs == 8 * 3 * 9 * grid + 12 * 2 * 25 * grid + 12 * 1 * 9 * grid + 48 * 10
        assert cost.parameters == (8 * 27 + 8) + 2 * 8 + 12 * 2 * 25 + (12 * 9 + 12) + (480 + 10)
        assert cost.threads == torch.get_num_threads()
        assert 0 < cost.latency_ms.lower <= cost.latency_ms.median <= cost.latency_ms.upper < 9000


class Doubling(nn.Module):
    """Two maps of the input's size are alive at once, never three; big enough to be no rounding matter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(7))
        self.register_buffer("offset", torch.zeros(5, dtype=torch.float64))

    def forward(self, images):
        first = images + 1
        second = first + 1
        del first
        return second + 1


def test_the_peak_on_a_cpu_is_what_is_alive_at_once():
    cost = cost_of(Doubling(), height=64, width=64, batch=2, seconds=0.01)
    map_bytes = 2 * 3 * 64 * 64 * 4
    expected = (1 + 2) * map_bytes + 7 * 4 + 5 * 8
    assert expected <= cost.peak_memory_bytes <= expected + 64  # torch makes a tensor of a number that it adds


def test_the_network_the_generator_and_the_environment_are_left_as_they_were(monkeypatch, capfd):
    monkeypatch.setenv("KINETO_LOG_LEVEL", "3")
    model = build_segmenter("test_efficientnet", 5, head_width=16, output_stride=16)
    model.head.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    state, generator = copied(model), torch.get_rng_state()
    cost_of(model, height=64, width=96, seconds=0.01)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert equal(model.state_dict(), state)
    assert torch.equal(torch.get_rng_state(), generator)
    assert os.environ["KINETO_LOG_LEVEL"] == "3"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("name", "value", "expected"), WRONG)
def test_numbers_below_their_least_and_a_device_without_a_memory_figure_are_refused(name, value, expected):
    with pytest.raises(ValueError, match=f"{name}: got '?{value}'?, expected {expected}"):
        cost_of(Small(), **{"height": 20, "width": 15, name: value})


def test_a_start_is_a_fresh_python_timed_to_its_end():
    latency = start_latency("-c", "import sys, time; assert 'torch' not in sys.modules; time.sleep(0.05)", seconds=0.01)
    assert 50 < latency.lower <= latency.median <= latency.upper
    with pytest.raises(subprocess.CalledProcessError):
        start_latency("-c", "raise SystemExit(3)", seconds=0.01)
    assert set(STARTS) == {"from apd import APDLoss", "apd --help"}


def test_a_loss_is_timed_on_a_batch_of_few_classes_and_leaves_no_gradient():
    batch = loss_batch(LossShape(batch=2, channels=8, grid=6, classes=30, labels=48), dtype=torch.bfloat16)
    assert batch["student_features"].shape == (2, 8, 6, 6)
    assert batch["teacher_logits"].shape == (2, 30, 6, 6)
    assert batch["teacher_features"].dtype == torch.bfloat16
    assert (batch["student_logits"].requires_grad, batch["teacher_features"].requires_grad) == (True, False)
    assert all(1 < len(labels.unique()) <= CLASSES_IN_AN_IMAGE for labels in batch["labels"])
    module = APDLoss(8, 8, 30, width=4)
    cost = loss_cost(module, batch, seconds=0.01)
    assert 0 < cost.milliseconds.lower <= cost.milliseconds.median <= cost.milliseconds.upper
    assert cost.peak_bytes > 0
    assert all(value.grad is None for value in [*batch.values(), *module.parameters()])


def test_an_optimiser_step_is_timed_on_a_batch_of_the_experiments_size():
    experiment = tiny("apd", batch_size=4)
    latency = step_latency(experiment, CPU, seconds=0.01)
    assert 0 < latency.lower <= latency.median <= latency.upper
    batch = random_batch(experiment, classes=10)
    assert (batch.images_B3HW.shape, batch.labels_BHW.shape) == ((4, 3, 32, 32), (4, 32, 32))
    assert 0 <= batch.labels_BHW.min() < batch.labels_BHW.max() < 10


class Slow(nn.Module):
    """A distiller whose loss takes so many seconds by the clock of the test."""

    def __init__(self, clock, seconds):
        super().__init__()
        self.distiller, self.clock, self.seconds, self.labels = roi_kd(), clock, seconds, []

    def forward(self, pair):
        self.clock[0] += self.seconds
        self.labels.append(pair.labels_B1N)
        return self.distiller(pair)


def test_what_is_added_is_the_step_without_the_students_and_the_teachers(monkeypatch):
    student, teacher = (build_detector(num_classes=3, min_size=64, max_size=64, **SMALLEST) for _ in range(2))
    teacher.eval()
    clock, forward = [0.0], teacher.backbone.forward
    batch = detection_speed.noise_batch(dict(batch=2, height=64, width=64, classes=3), CPU)

    def slowly(images):
        clock[0] += 2.0
        return forward(images)

    monkeypatch.setattr(teacher.backbone, "forward", slowly)
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, *_: clock.__setitem__(0, clock[0] + 4.0 * (type(module).__name__ == "MaskRCNN"))
    )
    monkeypatch.setattr(detection_speed, "timer", lambda: clock[0])
    slow, slower = Slow(clock, 0.5), Slow(clock, 1.0)
    try:
        cost = detection_speed.detector_step_cost(student, teacher, {"slow": slow, "slower": slower}, batch, repeats=2)
    finally:
        hook.remove()
    assert (cost["student"], cost["teacher"], cost["steps"]["slow"]) == ([4000.0] * 3, [2000.0] * 3, [6500.0] * 3)
    assert cost["added"] == {"slow": [0.125] * 3, "slower": [0.25] * 3}
    assert all(torch.equal(one, other) for one, other in zip(slow.labels, slower.labels, strict=True))


def test_every_distiller_is_measured(tmp_path, monkeypatch):
    shape = dict(batch=2, height=64, width=64, classes=3, heads=8, student=SMALLEST, teacher=SMALLEST)
    monkeypatch.setattr(detection_speed, "SHAPES", {"scenes": shape})
    monkeypatch.setattr(sys, "argv", ["detection_speed", "--repeats", "2", "--to", str(tmp_path)])
    detection_speed.main()
    (measurement,) = read_measurements(tmp_path, "detection-speed")
    (row,) = measurement["rows"]
    assert set(row["steps"]) == set(row["added"]) == set(DETECTION_NAMES) - {"student"}


@pytest.mark.parametrize("method", ["student", "apd"])
def test_the_bare_loop_makes_the_steps_of_a_run(method, tmp_path):
    start = tiny(method, evaluations=0)
    experiment = replace(start, network=replace(start.network, dropout=0.0))  # whose draws would be others
    task = task_of(experiment)
    run = Trainer(task, tmp_path, task.splits(), *loop_speed.networks(experiment, task, CPU))
    run.facts["teacher"] = {}
    losses = [loss.item() for loss in loop_speed.bare_loop(experiment, run.splits.train, CPU)]
    run.execute()
    assert losses == pytest.approx([line["loss"] for line in run.log.read()], rel=1e-4)


def test_a_row_has_the_ratio_with_its_interval_and_the_committed_ones_are_at_most_1_05(monkeypatch):
    monkeypatch.setattr(loop_speed, "BLOCK", 1)
    monkeypatch.setattr(loop_speed, "recipe", lambda *_: tiny("apd"))
    *_, row = loop_speed.measured(["tiny-apd"], CPU, pairs=4)
    low, ratio, high = row["ratio"]
    assert low < ratio < high
    assert (row["pairs"], row["steps"], row["tensorboard"]) == (4, 4, loop_speed.HAS_TENSORBOARD)
    for measurement in read_measurements(of="loop-speed"):
        assert all(row["ratio"][1] <= 1.05 for row in measurement["rows"])
