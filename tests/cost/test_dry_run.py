"""A dry run names everything that is missing, reports what a run takes, and leaves nothing behind."""

import re
from dataclasses import replace
from unittest import mock

import pytest
import torch
from miniatures import write_converted
from small_experiments import dry_run_report, tiny

from apd import APDLoss
from apd.cli import app as cli
from apd.config.datasets import build_splits
from apd.config.experiment import DataConfig, NetworkConfig
from apd.cost import dry_run as module
from apd.cost.count import step_cost
from apd.cost.dry_run import measure_steps
from apd.cost.measure import cost_of, peak_of
from apd.losses import task_loss
from apd.study.recipes import recipe
from apd.training.segmentation import build_network

CPU = torch.device("cpu")


def test_a_dry_run_reports_data_sizes_steps_memory_and_time_and_writes_nothing(runs):
    missing, text = dry_run_report(tiny("apd"))
    assert missing == []
    for line in (
        "data: scenes, 6 images to train, 3 of val; at most 20 of each were read and are in order",
        "iterations: 6 of 2 images, 2.0 times each training image",
        "optimiser: sgd, learning rate 0.01 and 0.1 for heads, poly with power 0.9",
        "measured on the data: 3 steps of 2 images",
        "student: test_efficientnet psp, 8 channels, stride 16",
        "trained first unless its run is finished",
        "the teacher's training before it",
        *("classes in sight: ", "M parameters", "GMAC at 32x32", "memory, estimated", "time, in"),
    ):
        assert line in text
    assert not runs.exists()


def test_what_an_accumulation_holds_at_a_time_is_what_memory_is_estimated_for(runs):
    missing, text = dry_run_report(tiny("apd", batch_size=16, accumulation=4, gradient_checkpointing=True), steps=1)
    assert missing == []
    assert re.search(r"for 4 images in one process, 4 times a step\n.* 2 images in each of 2 processes, 4 times", text)
    assert "for 1 image" not in text
    assert "estimated in fp32 (less with gradient checkpointing)" in text


def test_the_classes_in_sight_are_those_of_the_crops_wherever_these_are_made(runs):
    texts = [dry_run_report(tiny(device_augmentation=there), steps=1)[1] for there in (False, True)]
    assert len({re.search("classes in sight: .*", text)[0] for text in texts}) == 1


@pytest.mark.parametrize(
    ("experiment", "said"),
    [
        (tiny(iterations=18_000), "iterations: 18000 of 2 images, .*: 10.0 hours"),
        # at the published sizes, without data and weights; real steps would take half a minute
        (recipe("coco", "student"), "31.3 M parameters, .* GMAC at 800x1333.*: 180000 of 8 images\n.*: 400.0 hours"),
    ],
)
def test_the_time_is_that_of_all_images_and_a_student_without_a_teacher_is_reported_without_one(
    experiment, said, tmp_path, monkeypatch
):
    measured = module.Measured(steps=1, images=2, load_seconds=0.1, step_seconds=0.9, classes_seen=(1.0, 2.0))
    monkeypatch.setenv("APD_DATA", str(tmp_path))
    monkeypatch.setattr("apd.models.detector.fill_from_imagenet", lambda *_: None)
    monkeypatch.setattr(module, "measure_steps", lambda *_: measured)
    missing, text = dry_run_report(experiment)
    assert re.search(said, text, re.DOTALL)
    assert len(missing) == (experiment.data.name == "coco")
    assert "teacher" not in text


def test_steps_are_timed_one_by_one_and_the_first_is_left_out(monkeypatch):
    experiment, data = tiny("apd"), build_splits(tiny().data).train
    networks = [build_network(n, 10, CPU, seed=0) for n in (experiment.network, experiment.teacher.network)]
    ticks = iter([0.0, 100.0, 100.0, *(t for n in range(3) for t in (n, n + 0.5, n + 2.5))])
    monkeypatch.setattr(module, "PATIENCE", 1000.0)
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(ticks, 0.0))
    monkeypatch.setattr(module.TrainStep, "__call__", lambda self, batch: None)
    measured = measure_steps(experiment, *networks, data, 3, 2)
    assert (measured.steps, measured.load_seconds, measured.step_seconds) == (3, 0.25, 1.0)
    monkeypatch.setattr(module, "PATIENCE", -1.0)
    assert measure_steps(experiment, *networks, data, 3, 2).steps == 1, "a slow machine is not asked for more"


def test_where_memory_does_not_hold_the_batch_half_of_it_is_measured(monkeypatch):
    measure = mock.Mock(side_effect=[torch.OutOfMemoryError("too large")] * 2 + ["measured"])
    monkeypatch.setattr(module, "_measure", measure)
    assert measure_steps(tiny(), None, None, None, 3, 8) == "measured"
    assert [call.args[-1] for call in measure.call_args_list] == [8, 4, 2]


def test_everything_that_is_missing_is_named_and_the_rest_is_reported(own_runs):
    published = recipe("pascal_context", "apd")
    data = replace(published.data, crop_height=33, crop_width=33)
    network = replace(published.network, weights_file="gone-resnet18.pth")
    teacher = replace(published.teacher, weights_file="gone-psp.pth", network=published.network)
    experiment = replace(published, data=data, network=network, teacher=teacher)
    missing, text = dry_run_report(experiment, steps=1)
    data, student, teacher = missing
    assert re.search(r"APD_DATA is not set.*data_scripts/pascal_context\.py fetch DEST", data)
    assert re.match(r"student: .*gone-resnet18\.pth", student)
    assert re.match(r"teacher: .*gone-psp\.pth: there is no such file", teacher)
    assert all(f"missing {number} of 3: {message}" in text for number, message in enumerate(missing, start=1))
    assert "16.3 M parameters" in text
    assert "measured on noise: 1 steps of " in text
    assert "classes in sight" not in text, "noise has no classes worth counting"


def test_a_damaged_image_is_found_before_the_run(runs, tmp_path, monkeypatch):
    root = write_converted(tmp_path, "ade20k")
    monkeypatch.setenv("APD_DATA", str(tmp_path))
    experiment = replace(tiny(), data=DataConfig(name="ade20k", height=0, width=0, crop_height=32, crop_width=32))
    broken = sorted((root / "images" / "validation").iterdir())[1]
    broken.write_bytes(broken.read_bytes()[:300])
    (message,) = dry_run_report(experiment, steps=1)[0]
    assert broken.name in message


@pytest.mark.parametrize(("options", "code"), [([], 0), (["--data.name", "cityscapes"], 1)])
def test_the_command_exits_with_1_when_something_is_missing(options, code, runs, own_runs, tiny_recipes, capsys):
    assert cli.main(["train", "--method", "student", "--dry-run", "--device", "cpu", *options]) == code
    captured = capsys.readouterr()
    assert captured.err == ("apd: training cannot start: 1 missing, named above\n" if code else "")
    assert ("missing 1 of 1: the data set cityscapes is needed" in captured.out) == bool(code)
    assert not runs.exists()


def test_a_step_counts_three_passes_of_the_student_and_one_of_the_teacher():
    alone, taught = step_cost(tiny("student"), 10), step_cost(tiny("pixel_kd"), 10)
    real = cost_of(build_network(tiny().network, 10, CPU, seed=0), height=32, width=32, seconds=0.01)
    assert (alone.student.parameters, alone.student.macs) == (real.parameters, real.macs)
    assert alone.teacher is None
    assert taught.macs_per_image == alone.macs_per_image + taught.teacher.macs
    assert alone.macs_per_image > 3 * alone.student.macs  # the auxiliary head's
    assert step_cost(tiny("pixel_kd").teacher_experiment(), 10).student == taught.teacher
    heads = step_cost(tiny("apd"), 10).macs_per_image - taught.macs_per_image
    assert heads > 3 * 4 * (8 * 8 + 8 * 8), "both convolutions of APD's head of 8 in 4 cells"


def test_the_memory_of_a_step_grows_with_its_images_from_what_the_networks_take():
    alone, student = step_cost(tiny("student"), 10), build_network(tiny().network, 10, CPU, seed=0)
    assert alone.memory_bytes(5) - alone.memory_bytes(3) == 2 * alone.bytes_per_image
    numbers, counters = sum(p.numel() for p in student.parameters()), list(student.buffers())
    assert alone.memory_bytes(0) == 3 * 4 * numbers + sum(b.numel() * b.element_size() for b in counters)
    with_adamw = step_cost(tiny("student", optimiser="adamw"), 10)
    assert with_adamw.fixed_bytes == alone.fixed_bytes + 4 * numbers, "two moments in the place of one"
    heads = APDLoss(8, 12, 10, width=8)
    ours, theirs = (sum(p.numel() for p in part) for part in (heads.student_parameters(), heads.teacher_parameters()))
    added = step_cost(tiny("apd"), 10).fixed_bytes - step_cost(tiny("pixel_kd"), 10).fixed_bytes
    assert added == 4 * (3 * ours + 4 * theirs), "the teacher's head has Adam's two moments"


def test_the_estimate_of_memory_is_near_what_a_step_allocates():
    network = NetworkConfig(backbone="resnet18_deep", head_width=32, output_stride=8)
    experiment = replace(tiny(), network=network, data=replace(tiny().data, crop_height=96, crop_width=96))
    student = build_network(network, 10, CPU, seed=0)
    noise, labels = torch.rand(4, 3, 96, 96), torch.randint(10, (4, 96, 96))

    def step():
        output = student(noise)
        (task_loss(output.logits, labels, 255) + 0.4 * task_loss(output.aux, labels, 255)).backward()

    gradients = sum(p.numel() * 4 for p in student.parameters())
    assert 0.6 < (4 * step_cost(experiment, 10).bytes_per_image + gradients) / peak_of(step, CPU) < 1.2
