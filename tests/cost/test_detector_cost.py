"""What a distiller adds to a step is measured from the step, the student's own and the teacher's, of the same boxes."""

import sys

import torch

from apd.distillers.on_detectors import roi_kd
from apd.models.detector import build_detector
from apd.report.detections import DETECTION_NAMES
from apd.report.figures.curves import read_measurements, step_cost_table
from book.figures import detection_speed
from book.figures.detection_speed import detector_step_cost, noise_batch

BATCH = noise_batch(dict(batch=2, height=64, width=64, classes=3), torch.device("cpu"))
SMALL = dict(backbone="mobilenet_v3_small", smallest_anchor=8, proposals=40, rois=8, width=8, box_width=16)


class Slow(torch.nn.Module):
    """A distiller whose loss takes so many seconds by the clock of the test."""

    def __init__(self, clock, seconds):
        super().__init__()
        self.distiller, self.clock, self.seconds, self.labels = roi_kd(), clock, seconds, []

    def forward(self, pair):
        self.clock[0] += self.seconds
        self.labels.append(pair.labels_B1N)
        return self.distiller(pair)


def test_what_is_added_is_the_step_without_the_students_and_the_teachers(monkeypatch):
    student, teacher = (build_detector(num_classes=3, min_size=64, max_size=64, **SMALL) for _ in range(2))
    teacher.eval()
    clock, forward = [0.0], teacher.backbone.forward

    def slowly(images):
        clock[0] += 2.0
        return forward(images)

    monkeypatch.setattr(teacher.backbone, "forward", slowly)
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, *_: clock.__setitem__(0, clock[0] + 4.0 * (type(module).__name__ == "MaskRCNN"))
    )
    monkeypatch.setattr(detection_speed, "timer", lambda: clock[0])
    slow, slower = Slow(clock, 0.5), Slow(clock, 1.0)
    state = {name: value.clone() for name, value in student.state_dict().items()}
    before = torch.random.get_rng_state()
    try:
        cost = detector_step_cost(student, teacher, {"slow": slow, "slower": slower}, BATCH, repeats=2)
    finally:
        hook.remove()
    assert cost["student"] == [4000.0] * 3
    assert cost["teacher"] == [2000.0] * 3
    assert cost["steps"]["slow"] == [6500.0] * 3
    assert cost["added"] == {"slow": [0.125] * 3, "slower": [0.25] * 3}
    assert all(torch.equal(one, other) for one, other in zip(slow.labels, slower.labels, strict=True))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(value, state[name]) for name, value in student.state_dict().items())
    assert all(parameter.grad is None for parameter in student.parameters())


def test_every_distiller_is_measured(tmp_path, monkeypatch):
    shape = dict(batch=2, height=64, width=64, classes=3, heads=8, student=SMALL, teacher=SMALL)
    monkeypatch.setattr(detection_speed, "SHAPES", {"scenes": shape})
    monkeypatch.setattr(sys, "argv", ["detection_speed", "--repeats", "2", "--to", str(tmp_path)])
    detection_speed.main()
    (measurement,) = read_measurements(tmp_path, "detection-speed")
    (row,) = measurement["rows"]
    assert set(row["steps"]) == set(row["added"]) == set(DETECTION_NAMES) - {"student"}
    assert "APD of boxes" in step_cost_table(measurement, row).description
