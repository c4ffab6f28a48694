"""A dry run names everything that is missing, reports what a run takes, and leaves nothing behind."""

from dataclasses import replace

import pytest
import torch
from miniatures import write_converted
from small_experiments import tiny

from apd.cli import app as cli
from apd.config.datasets import build_splits, spec_of
from apd.config.experiment import DataConfig, ExperimentError, NetworkConfig
from apd.cost import dry_run as module
from apd.cost.count import step_cost, teacher_step_cost
from apd.cost.dry_run import dry_run, measure_steps
from apd.cost.measure import cost_of, peak_of
from apd.data.instances import Noise
from apd.distillers.apd import APDConfig
from apd.study.recipes import recipe
from apd.training.distributed import choose_device
from apd.training.segmentation import build_network, task_loss

CPU = torch.device("cpu")


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("APD_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("APD_DATA", raising=False)
    return tmp_path / "runs"


def report_of(experiment, **options):
    """What is missing, and all lines as one text."""
    lines = []
    missing = dry_run(experiment, device="cpu", tell=lines.append, **options)
    return missing, "\n".join(lines)


# --- when all is there -----------------------------------------------------------------------------------------------


def test_a_dry_run_reports_data_sizes_steps_memory_and_time_and_writes_nothing(runs):
    experiment = tiny("apd")
    missing, text = report_of(experiment)
    assert missing == []
    assert "data: scenes, 6 images to train, 3 of val; at most 20 of each were read and are in order" in text
    assert "iterations: 6 of 2 images, 2.0 times each training image" in text
    assert "optimiser: sgd, learning rate 0.01 and 0.1 for heads, poly with power 0.9" in text
    assert "measured on the data: 3 steps of 2 images" in text
    assert "classes in sight: " in text
    assert "student: test_efficientnet psp, 8 channels, stride 16" in text
    assert "trained first unless its run is finished" in text
    assert "the teacher's training before it" in text
    assert all(f"{quantity}" in text for quantity in ("M parameters", "GMAC at 32x32", "memory, estimated", "time, in"))
    assert not runs.exists()


def test_the_classes_in_sight_are_those_of_the_crops_wherever_these_are_made(runs):
    def classes_in_sight(experiment):
        missing, text = report_of(experiment, steps=1)
        assert missing == []
        return next(line for line in text.splitlines() if line.startswith("classes in sight: "))

    experiment = tiny("student")
    there = replace(experiment, training=replace(experiment.training, device_augmentation=True))
    assert classes_in_sight(there) == classes_in_sight(experiment)


def test_the_time_is_that_of_all_images_and_a_student_without_a_teacher_is_reported_without_one(runs, monkeypatch):
    measured = module.Measured(steps=3, images=2, load_seconds=1.0, step_seconds=2.0, classes_seen=(1.0, 2.0))
    monkeypatch.setattr(module, "measure_steps", lambda *_: measured)
    _, text = report_of(tiny("student", iterations=6000))
    assert "time, in one process on this machine: 10.0 hours" in text  # 6000 steps of 2 images of 3 seconds
    assert "teacher" not in text


def test_steps_are_timed_one_by_one_and_the_first_is_left_out(monkeypatch):
    experiment = tiny("apd")
    splits = build_splits(experiment.data)
    networks = [build_network(n, 10, CPU, seed=0) for n in (experiment.network, experiment.teacher.network)]
    ticks = iter([0.0, 100.0, 100.0, *(t for n in range(3) for t in (n, n + 0.5, n + 2.5))])
    monkeypatch.setattr(module, "PATIENCE", 1000.0)
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(ticks, 0.0))
    monkeypatch.setattr(module.TrainStep, "__call__", lambda self, batch: None)
    measured = measure_steps(experiment, *networks, splits.train, 3, 2)
    assert (measured.steps, measured.load_seconds, measured.step_seconds) == (3, 0.25, 1.0)

    monkeypatch.setattr(module, "PATIENCE", -1.0)
    assert measure_steps(experiment, *networks, splits.train, 3, 2).steps == 1, "a slow machine is not asked for more"


def test_where_memory_does_not_hold_the_batch_half_of_it_is_measured(monkeypatch):
    asked = []

    def measure(*arguments):
        asked.append(arguments[-1])
        if arguments[-1] > 2:
            raise torch.OutOfMemoryError("too large")
        return "measured"

    monkeypatch.setattr(module, "_measure", measure)
    assert measure_steps(tiny(), None, None, None, 3, 8) == "measured"
    assert asked == [8, 4, 2]


# --- when something is missing ---------------------------------------------------------------------------------------


def test_everything_that_is_missing_is_named_and_the_rest_is_reported(runs):
    published = recipe("pascal_context", "apd")
    experiment = replace(
        published,
        data=replace(published.data, crop_height=33, crop_width=33),
        network=replace(published.network, weights_file="gone-resnet18.pth"),
        teacher=replace(published.teacher, weights_file="gone-psp.pth", network=published.network),
    )
    missing, text = report_of(experiment, steps=1)
    assert len(missing) == 3
    assert "APD_DATA is not set" in missing[0]
    assert "data_scripts/pascal_context.py fetch DEST" in missing[0]
    assert missing[1].startswith("student: ")
    assert "gone-resnet18.pth" in missing[1]
    assert missing[2].startswith("teacher: ")
    assert "gone-psp.pth: there is no such file" in missing[2]
    assert [f"missing {n} of 3: {message}" in text for n, message in enumerate(missing, start=1)] == [True] * 3
    assert "16.3 M parameters" in text
    assert "iterations: 41600 of 12 images\n" in text
    assert "measured on noise: 1 steps of " in text
    assert "classes in sight" not in text, "noise has no classes worth counting"


def test_a_damaged_image_is_found_before_the_run(runs, tmp_path, monkeypatch):
    root = write_converted(tmp_path, "ade20k")
    monkeypatch.setenv("APD_DATA", str(tmp_path))
    start = tiny("student")
    experiment = replace(start, data=DataConfig(name="ade20k", height=0, width=0, crop_height=32, crop_width=32))
    assert report_of(experiment, steps=1)[0] == []
    broken = sorted((root / "images" / "validation").iterdir())[1]
    broken.write_bytes(broken.read_bytes()[:300])
    (message,) = report_of(experiment, steps=1)[0]
    assert broken.name in message


def test_a_folder_that_does_not_say_its_classes_ends_the_dry_run_with_that_message(runs, tmp_path):
    start = tiny("student")
    experiment = replace(start, data=replace(start.data, name="folder", folder=str(tmp_path / "nothing")))
    missing, text = report_of(experiment)
    assert len(missing) == 1
    assert "nothing" in missing[0]
    assert "parameters" not in text
    assert f"missing 1 of 1: {missing[0]}" in text


def test_the_command_exits_with_1_when_something_is_missing_and_with_0_when_not(runs, monkeypatch, capsys):
    monkeypatch.setattr("apd.study.recipes.recipe", lambda _size="tiny", method="apd", **_: tiny(method))
    assert cli.main(["train", "--method", "student", "--dry-run", "--device", "cpu"]) == 0
    assert capsys.readouterr().err == ""
    options = ["--device", "cpu", "--data.name", "cityscapes"]
    assert cli.main(["train", "--method", "student", "--dry-run", *options]) == 1
    captured = capsys.readouterr()
    assert captured.err == "apd: training cannot start: 1 missing, named above\n"
    assert "missing 1 of 1: the data set cityscapes is needed" in captured.out
    assert not runs.exists()


def test_less_than_a_step_and_an_unknown_device_are_refused():
    with pytest.raises(ValueError, match="steps=0: expected at least 1"):
        dry_run(tiny(), steps=0)
    with pytest.raises(ExperimentError, match="device = 'gpu'"):
        dry_run(tiny(), device="gpu")


def test_noise_is_an_image_of_the_data_sets_classes_and_always_the_same():
    noise = Noise(spec_of(recipe("tiny").data), (33, 40))
    image, labels, _ = noise[0]
    assert (tuple(image.shape), tuple(labels.shape), len(noise)) == ((3, 33, 40), (33, 40), 1)
    assert int(labels.max()) < noise.spec.num_classes
    assert torch.equal(noise[0].image_3HW, image)


# --- what a step takes -----------------------------------------------------------------------------------------------


def test_what_is_counted_without_computing_is_what_is_counted_with():
    experiment = tiny("apd")
    cost = step_cost(experiment, 10)
    student = build_network(experiment.network, 10, choose_device("cpu"), seed=0)
    real = cost_of(student, height=32, width=32, seconds=0.01)
    assert (cost.student.parameters, cost.student.macs) == (real.parameters, real.macs)


def test_a_step_counts_three_passes_of_the_student_and_one_of_the_teacher():
    experiment = tiny("pixel_kd")
    alone, taught = step_cost(tiny("student"), 10), step_cost(experiment, 10)
    assert alone.teacher is None
    assert taught.macs_per_image == alone.macs_per_image + taught.teacher.macs
    assert alone.macs_per_image > 3 * alone.student.macs  # the auxiliary head's
    assert teacher_step_cost(experiment, 10).student == taught.teacher


def test_projection_heads_are_counted_as_what_is_trained():
    without = replace(tiny("apd"), distillers=(APDConfig(width=8, observation=0.0, alignment=0.0),))
    whole = step_cost(tiny("apd"), 10).macs_per_image - step_cost(without, 10).macs_per_image
    cells, width = 4, 8  # 32×32 pixels at stride 16; both convolutions of the student's head, and the observations
    assert whole >= 3 * cells * (8 * width + width * width)


def test_the_memory_of_a_step_grows_with_its_images_from_what_the_networks_take():
    cost = step_cost(tiny("apd"), 10)
    assert cost.memory_bytes(0) == cost.fixed_bytes
    assert cost.memory_bytes(5) - cost.memory_bytes(3) == 2 * cost.bytes_per_image
    student = build_network(tiny().network, 10, CPU, seed=0)
    alone = step_cost(tiny("student"), 10)
    numbers, counters = sum(p.numel() for p in student.parameters()), list(student.buffers())
    assert alone.fixed_bytes == 3 * 4 * numbers + sum(b.numel() * b.element_size() for b in counters)
    with_adamw = step_cost(tiny("student", optimiser="adamw"), 10)
    assert with_adamw.fixed_bytes == alone.fixed_bytes + 4 * numbers, "two moments in the place of one"


def test_the_estimate_of_memory_is_near_what_a_step_allocates():
    images, side = 4, 96
    start = tiny("student")
    network = NetworkConfig(backbone="resnet18_deep", head_width=32, output_stride=8)
    experiment = replace(start, network=network, data=replace(start.data, crop_height=side, crop_width=side))
    cost = step_cost(experiment, 10)
    student = build_network(network, 10, CPU, seed=0)
    noise, labels = torch.rand(images, 3, side, side), torch.randint(10, (images, side, side))

    def step():
        output = student(noise)
        (task_loss(output.logits, labels, 255) + 0.4 * task_loss(output.aux, labels, 255)).backward()

    kept = peak_of(step, CPU)
    gradients = sum(p.numel() * 4 for p in student.parameters())
    assert 0.6 < (images * cost.bytes_per_image + gradients) / kept < 1.2
