"""A run from experiment to record: seeds, log and curves, the teacher, and what is refused."""

import json
import multiprocessing
import os
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from small_detection import small
from small_experiments import TEACHER, copied, digest, equal, outcome, prepared_run, tiny

from apd.config.experiment import ExperimentError
from apd.report.perspectives import trained_distiller
from apd.training import run_log
from apd.training.checkpoint import CheckpointError
from apd.training.run import run_folder, task_of, train, trained_network
from apd.training.run_log import CURVE_POINTS, ProgressLines, RunLog
from apd.training.segmentation import build_network
from apd.training.task import load_teacher

CPU = torch.device("cpu")


# seeds


def test_a_seed_decides_everything_and_another_seed_changes_it(runs, monkeypatch):
    one = train(tiny("apd"))
    first = outcome(tiny("apd"))
    monkeypatch.setenv("APD_RUNS", str(runs / "again"))
    train(tiny("apd"))
    assert outcome(tiny("apd")) == first
    other = train(tiny("apd", seed=1))
    assert outcome(tiny("apd", seed=1))["weights"] != first["weights"]
    assert other.content["data"] == one.content["data"], "the seed of an experiment never changes its data"
    assert other.content["teacher"]["confusion"] == one.content["teacher"]["confusion"]


def test_methods_share_initial_weights_and_the_order_of_images_for_one_seed(tmp_path):
    made = {method: prepared_run(tiny(method, seed=4), tmp_path / method) for method in ("student", "pixel_kd", "apd")}
    states = [copied(run.student) for run in made.values()]
    assert equal(states[0], states[1])
    assert equal(states[0], states[2])
    for run in made.values():
        run.execute()
    first, last = ([run.log.read()[place]["task"] for run in made.values()] for place in (0, -1))
    assert len(set(first)) == 1
    assert len(set(last)) == 3
    assert not equal(states[0], copied(prepared_run(tiny(seed=5), tmp_path / "other").student))


def test_making_networks_leaves_the_random_state_alone():
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    build_network(tiny().network, 10, CPU, seed=1)
    assert torch.equal(torch.rand(3), expected)


# the log and its curves


def test_every_step_is_logged_once_with_every_term(runs):
    train(tiny("both"))
    lines = [json.loads(line) for line in (run_folder(tiny("both")) / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(6))
    terms = {"task", "auxiliary", "pixel_kd.pixel_kd", "apd.regularisation", "apd.alignment", "apd.observation", "loss"}
    assert all(set(line) == {"step", "seconds", "core_seconds", "learning_rate"} | terms for line in lines)
    for line in lines:
        apd = line["apd.regularisation"] + 10 * line["apd.alignment"] + line["apd.observation"]
        total = line["task"] + 0.4 * line["auxiliary"] + line["pixel_kd.pixel_kd"] + apd
        assert line["loss"] == pytest.approx(total, rel=1e-5)


def test_curves_are_means_over_equal_stretches_of_steps(tmp_path):
    log = RunLog(tmp_path / "log.jsonl")
    log.start_over(0)
    for step in range(250):
        taken = {"seconds": 1.0 if step == 0 else 0.25, "core_seconds": 0.5 if step == 0 else 0.125}
        log.write({"step": step, **taken, "loss": float(step)})
    summary = log.summary()
    curves = summary["curves"]
    assert summary["core_seconds_per_iteration"] == 0.125
    assert summary["seconds_per_iteration"] == 0.25  # a median: the first step, with its warming up, does not count
    assert len(curves["iteration"]) == len(curves["loss"]) == 84 <= CURVE_POINTS
    assert (curves["iteration"][:2], curves["iteration"][-1]) == ([3, 6], 250)
    assert (curves["loss"][:2], curves["loss"][-1]) == ([1.0, 4.0], 249.0)


def test_a_resumed_log_keeps_the_lines_of_its_checkpoint_and_drops_later_ones(tmp_path):
    log = RunLog(tmp_path / "log.jsonl")
    log.start_over(0)
    for step in range(4):
        log.write({"step": step})
    with log.path.open("a") as file:
        file.write('{"step": 4, "se')  # a full disk, or a kill in the middle of a line
    with pytest.raises(CheckpointError, match=r"log\.jsonl is damaged"):
        log.summary()
    again = RunLog(log.path)
    again.start_over(2)
    again.write({"step": 2})
    assert [line["step"] for line in again.read()] == [0, 1, 2]
    assert again.lines == 3


def test_progress_lines_come_in_a_bounded_number(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(run_log.time, "monotonic", lambda: clock[0])
    lines = ProgressLines("run", 100, 10_000)
    for step in range(101, 10_001):
        clock[0] += 0.125
        lines.step_done(step, 0.5)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "run: step 100 of 10000"
    assert printed[1] == "run: step 340 of 10000, loss 0.5000, 0.12 s a step, about 20 min left"
    assert len(printed) == 1 + 9900 * 0.125 // 30


def test_evaluations_on_the_way_come_at_equal_distances_and_at_the_end(runs):
    record = train(tiny(iterations=7, evaluations=3))
    assert [entry["step"] for entry in record.content["evaluations"]] == [2, 4, 7]
    assert record.content["evaluations"][-1]["confusion"] == record.content["confusion"]
    assert train(tiny(evaluations=0)).content["evaluations"] == []


def test_final_scores_are_those_of_the_split_that_the_experiment_names(runs):
    content = train(replace(tiny(), data=replace(tiny().data, evaluation_split="test"))).content
    assert content["data"]["split"] == "test"
    assert content["evaluations"][-1]["split"] == "val"
    assert content["evaluations"][-1]["confusion"] != content["confusion"]


# the teacher


def test_students_share_one_teacher_that_is_trained_once(runs, capsys):
    kd, apd = train(tiny("pixel_kd")), train(tiny("apd", seed=1))
    (teacher,) = runs.glob("scenes-teacher*")
    assert json.loads((teacher / "record.json").read_text())["confusion"] == kd.content["teacher"]["confusion"]
    assert kd.content["teacher"]["confusion"] == apd.content["teacher"]["confusion"]
    score = f"teacher mIoU {kd.teacher_scores.miou:.4f} on val"
    assert capsys.readouterr().out.splitlines() == [f"pixel_kd-seed0: {score}", f"apd-seed1: {score}"]


def test_a_teacher_may_come_from_a_file_and_is_loaded_strictly_frozen_and_in_eval_mode(runs):
    train(tiny("apd"))
    file = run_folder(tiny("apd").teacher_experiment()) / "weights.safetensors"
    teacher = load_teacher(task_of(tiny("apd")), file, 10, CPU)
    assert equal(copied(teacher), load_file(file))
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    experiment = replace(tiny("apd"), teacher=replace(TEACHER, weights_file=str(file)))
    train(experiment)
    given, trained = outcome(experiment), outcome(tiny("apd"))
    assert given.pop("fingerprint") != trained.pop("fingerprint")
    assert given == trained


# what a run leaves


def test_the_network_of_a_run_comes_back_as_it_was_scored(runs):
    train(tiny())
    for given in (tiny(), run_folder(tiny())):
        model = trained_network(given)
        assert not model.training
        assert equal(copied(model), load_file(run_folder(tiny()) / "weights.safetensors"))


def test_weights_are_given_only_when_they_are_those_of_the_record(runs):
    with pytest.raises(CheckpointError, match="this run has not finished"):
        trained_network(tiny())
    train(tiny())
    path = run_folder(tiny()) / "weights.safetensors"
    before, content = digest(path), path.read_bytes()
    path.write_bytes(content[:-4] + b"\0\0\0\1")
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is missing or damaged; delete .*record\.json"):
        trained_network(tiny())
    (run_folder(tiny()) / "record.json").unlink()
    train(tiny())
    assert digest(path) == before


def test_a_distiller_that_a_run_does_not_have_is_an_error(runs):
    network = build_network(tiny().network, 10, CPU, seed=0)
    with pytest.raises(CheckpointError, match="'student-seed0' has no distiller 'apd': it has none at all"):
        trained_distiller(tiny(), network, network)
    with pytest.raises(CheckpointError, match=r"holds no whole checkpoint of the last step; delete .*apd-seed0-"):
        trained_distiller(tiny("apd"), network, network)


@pytest.mark.parametrize("experiment", [tiny(), small()])
def test_a_finished_run_of_another_generator_of_scenes_is_refused(experiment, runs, monkeypatch):
    train(experiment)
    monkeypatch.setattr("apd.data.scenes.GENERATOR_VERSION", 0)
    with pytest.raises(CheckpointError, match="scenes of another version of their generator: delete the folder"):
        train(experiment)


# what is refused


def test_what_cannot_be_run_is_an_error_of_the_experiment_before_anything_is_written(runs):
    for device in ("gpu", "cuda:99", "meta"):
        with pytest.raises(ExperimentError, match=f"device = '{device}': expected cpu, or cuda where there is a GPU"):
            train(tiny(), device=device)
    with pytest.raises(ExperimentError, match="workers = -1: expected a whole number of at least 0"):
        train(tiny(), workers=-1)
    assert not runs.exists()
    unknown = replace(tiny(), network=replace(tiny().network, backbone="test_eficientnet"))
    with pytest.raises(ExperimentError, match=r"this network cannot be built: backbone: .*test_efficientnet"):
        train(unknown)


# workers


def signalled(step):
    """What Ctrl-C in a terminal does to the workers, and a scheduler's stop."""
    if step in (1, 2):
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGINT if step == 1 else signal.SIGTERM)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_run_with_workers_ends_as_without_even_if_its_workers_are_asked_to_stop(tmp_path, monkeypatch):
    found, experiment = [], tiny()
    for workers, on_step in ((0, None), (1, signalled)):
        monkeypatch.setenv("APD_RUNS", str(tmp_path / str(workers)))
        train(experiment, workers=workers, on_step=on_step)
        found.append(outcome(experiment))
    assert found[0] == found[1]
    assert multiprocessing.active_children() == []
