"""Each mishap ends in one clear message and an exit code that is not zero, and nothing that was finished is lost."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from small_experiments import TEACHER, exit_code, outcome, run_as_a_command, start, tiny

from apd.cli import app as cli
from apd.training import checkpoint
from apd.training import run_log as log
from apd.training import trainer as loop
from apd.training.checkpoint import RunBusyError
from apd.training.run import run_folder, train
from apd.training.run_log import StoppedError


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A folder for runs, and the tiny experiments of these tests in the place of the recipes."""
    monkeypatch.setenv("APD_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr("apd.study.recipes.recipe", lambda _size="tiny", method="apd", **_: tiny(method))
    return tmp_path / "runs"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What a run gives when nothing goes wrong."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("APD_RUNS", str(tmp_path_factory.mktemp("undisturbed")))
        train(tiny())
        return outcome(tiny())


@pytest.fixture
def told(capsys):
    """Call a command; it must fail with that exit code and one message, which is returned."""

    def call(*arguments, code=1):
        capsys.readouterr()
        assert cli.main([str(argument) for argument in arguments]) == code
        (message,) = capsys.readouterr().err.splitlines()
        assert message.startswith("apd: ")
        return message

    return call


class Thrown(Exception):
    pass


def stopped_at(last):
    def on_step(step):
        if step == last:
            raise Thrown

    return on_step


def interrupted_run(step, monkeypatch):
    """A run that has a checkpoint after each of its first `step` steps. Returns the folder of the checkpoints."""
    with monkeypatch.context() as patch:
        patch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
        with pytest.raises(Thrown):
            train(tiny(), on_step=stopped_at(step))
    return run_folder(tiny()) / "checkpoints"


# data


def test_a_missing_data_folder_says_what_to_set_and_which_script_to_run(runs, told, monkeypatch, tmp_path):
    monkeypatch.delenv("APD_DATA", raising=False)
    message = told("train", "--data.name", "camvid")
    assert "environment variable APD_DATA is not set" in message
    assert "python data_scripts/camvid.py fetch DEST" in message
    monkeypatch.setenv("APD_DATA", str(tmp_path))
    assert f"APD_DATA={tmp_path} holds no folder CamVid/" in told("train", "--data.name", "camvid")
    assert not list(runs.glob("*teacher*")), "the teacher is not trained before the data are there"


def test_a_half_extracted_data_folder_tells_what_is_there(runs, told, monkeypatch, tmp_path):
    for split in ("train", "trainannot", "val"):
        (tmp_path / "CamVid" / split).mkdir(parents=True)
    (tmp_path / "CamVid" / "train" / "a.png").touch()
    monkeypatch.setenv("APD_DATA", str(tmp_path))
    message = told("train", "--method", "student", "--data.name", "camvid")
    assert "is not complete: train/ 1 of 367, trainannot/ 0 of 367, val/ 0 of 101" in message


# networks and teachers


def test_weights_that_cannot_be_had_are_an_error_and_no_random_start(runs, told, monkeypatch):
    def unreachable(*_, **options):
        assert options["weights"] == "imagenet"
        raise RuntimeError("weights='imagenet' for backbone 'test_efficientnet': not there")

    monkeypatch.setattr("apd.training.segmentation.build_segmenter", unreachable)
    message = told("train", "--method", "student", "--network.weights", "imagenet")
    assert message == (
        "apd: this network cannot be built: weights='imagenet' for backbone 'test_efficientnet': not there"
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "there is no such file (--teacher.weights-file)"),
        (b"garbage", "cannot be read as safetensors"),
        ({"classifier.bias": torch.zeros(10)}, "tensors differ, first image_mean is missing"),
    ],
)
def test_teacher_weights_that_do_not_fit_are_told_in_a_line(runs, told, tmp_path, content, expected):
    file = tmp_path / "teacher.safetensors"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content:
        save_file(content, file)
    message = told("train", "--teacher.weights-file", file)
    assert f"teacher weights {file}" in message
    assert expected in message
    assert len(message) < 800


def test_a_teacher_of_another_width_is_told_with_both_shapes(runs, told):
    train(tiny("apd").teacher_experiment())
    file = run_folder(tiny("apd").teacher_experiment()) / "weights.safetensors"
    message = told("train", "--teacher.weights-file", file, "--teacher.network.head-width", 8)
    assert "; the network is NetworkConfig(backbone='test_efficientnet'" in message
    assert "tensors differ, first head.merge.0.weight is (12, 128, 3, 3), expected (8, 128, 3, 3);" in message


def test_a_teacher_below_its_stated_score_is_refused_and_its_own_run_stays(runs, told):
    message = told("train", "--teacher.expected-miou", 0.9)
    teacher = train(tiny("apd").teacher_experiment())
    assert f"the teacher's mIoU is {teacher.scores.miou:.4f} on val, below teacher.expected_miou = 0.9" in message
    assert "wrong weights, wrong data or wrong image size" in message
    enough = replace(tiny("apd"), teacher=replace(TEACHER, expected_miou=teacher.scores.miou))
    assert train(enough).experiment == enough


# damaged files


def test_of_a_damaged_newest_checkpoint_the_one_before_is_used_and_the_run_ends_the_same(
    runs, monkeypatch, capsys, undisturbed
):
    newest = interrupted_run(4, monkeypatch) / "step-00000004" / "optimisers.pt"
    newest.write_bytes(newest.read_bytes()[:100])
    train(tiny())
    first, second = capsys.readouterr().out.splitlines()
    assert first == (
        f"student-seed0: {newest} is damaged: its sha256 is not the one in manifest.json; step 3 before it is used"
    )
    assert second == "student-seed0: resumed at step 3"
    assert outcome(tiny()) == undisturbed


def test_without_a_whole_checkpoint_the_run_says_so_and_starts_again(runs, monkeypatch, capsys, undisturbed):
    for path in interrupted_run(4, monkeypatch).iterdir():
        (path / "manifest.json").write_text("[]")
    train(tiny())
    out = capsys.readouterr().out
    assert out.count("none before it is whole: step 0 again") == 2
    assert outcome(tiny()) == undisturbed


def test_a_log_shorter_than_its_checkpoint_is_told_and_not_papered_over(runs, monkeypatch, told, undisturbed):
    checkpoints = interrupted_run(4, monkeypatch)
    path = run_folder(tiny()) / "log.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    message = told("train", "--method", "student")
    assert f"{path} is damaged: it has 2 whole lines where the checkpoint expects 4" in message
    assert f"Delete {checkpoints} and start the same command again" in message
    shutil.rmtree(checkpoints)
    train(tiny())
    assert outcome(tiny()) == undisturbed


def test_a_damaged_record_of_a_run_is_named_and_made_again_when_deleted(runs, told, undisturbed):
    train(tiny())
    path = run_folder(tiny()) / "record.json"
    path.write_text(path.read_text()[:500])
    for command in (("train", "--method", "student"), ("evaluate", path.parent)):
        message = told(*command)
        assert f"{path}: cannot be read as JSON" in message
        assert "delete it to have it made again" in message
    path.unlink()
    train(tiny())
    assert outcome(tiny()) == undisturbed


# full and read-only disks


@dataclass
class FullDisk:
    """After step 3 no file may grow beyond that many bytes, which the system enforces on every write."""

    largest: int

    def __call__(self, step):
        if step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.largest, resource.RLIM_INFINITY))


@pytest.mark.parametrize(("largest", "often", "refused"), [(100_000, True, "step-00000004"), (900, False, "log.jsonl")])
def test_a_full_disk_stops_a_run_with_a_message_and_it_goes_on_when_there_is_space(
    runs, tmp_path, capsys, undisturbed, largest, often, refused
):
    """Once it is a checkpoint that does not fit any more, once the log."""
    output = tmp_path / "output"
    assert exit_code(fill_the_disk, runs, largest, often, output=output) == 1
    (message,) = output.read_text().splitlines()
    assert message.startswith("apd: cannot write ")
    assert refused in message.split(":")[1]
    assert "Nothing that was finished is lost" in message
    assert "start the same command again; it goes on from the last checkpoint" in message
    train(tiny())
    assert ("student-seed0: resumed at step 3" in capsys.readouterr().out) == often
    assert outcome(tiny()) == undisturbed


def fill_the_disk(runs, largest, often):
    loop.CHECKPOINT_SECONDS = 0.0 if often else 1e9
    run_as_a_command(tiny(), runs, FullDisk(largest))


@pytest.mark.parametrize(
    ("writer", "file"), [("save_file", "weights.safetensors"), ("write_atomically", "record.json")]
)
def test_a_disk_that_is_full_at_the_very_end_costs_no_step(runs, told, monkeypatch, undisturbed, writer, file):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    execute = loop.Trainer.execute

    def execute_and_fill(run, on_step):
        execute(run, on_step)
        monkeypatch.setattr(checkpoint, "save_file", full if writer == "save_file" else checkpoint.save_file)
        monkeypatch.setattr(checkpoint.os, "fsync", full)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "execute", execute_and_fill)
        message = told("train", "--method", "student", "--name", tiny().name)
        assert f"cannot write {run_folder(tiny()) / file}: " in message
        assert "No space left on device" in message
    monkeypatch.undo()
    monkeypatch.setenv("APD_RUNS", str(runs))
    assert not (run_folder(tiny()) / "record.json").exists()
    monkeypatch.setattr(loop.TrainStep, "__call__", lambda *_: pytest.fail("a step was done again"))
    train(tiny())
    assert outcome(tiny()) == undisturbed


def test_a_read_only_disk_is_told_before_anything_is_computed(runs, told, monkeypatch, tmp_path):
    """A regular file in the place of a folder stands for it: root may write everywhere else."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("APD_RUNS", str(tmp_path / "file" / "runs"))
    monkeypatch.setattr("apd.training.segmentation.build_splits", lambda *_: pytest.fail("too late"))
    message = told("train", "--method", "student")
    assert f"cannot write to {tmp_path / 'file' / 'runs'}" in message
    assert "make it writable or set APD_RUNS to another folder" in message


# two at once


@dataclass
class Hold:
    """Says that step 2 is done and goes on when it may."""

    ready: Path
    go: Path

    def __call__(self, step):
        if step == 2:
            self.ready.touch()
            while not self.go.exists():
                time.sleep(0.01)


def test_of_two_processes_on_one_run_the_second_says_who_holds_it_or_waits(runs, told, tmp_path, capsys, undisturbed):
    hold = Hold(tmp_path / "ready", tmp_path / "go")
    first = start(run_as_a_command, tiny(), runs, hold, output=tmp_path / "output")
    while not hold.ready.exists():
        assert first.is_alive(), (tmp_path / "output").read_text()
        time.sleep(0.01)
    holder = f"process {first.pid} on "
    assert f"is in use by {holder}" in told("train", "--method", "student")
    with pytest.raises(RunBusyError, match=holder):
        train(tiny())
    threading.Timer(0.3, hold.go.touch).start()
    record = train(tiny(), wait=True)
    assert f"waiting for {holder}" in capsys.readouterr().out
    first.join(60)
    assert first.exitcode == 0
    assert record.content == json.loads((run_folder(tiny()) / "record.json").read_text())
    assert outcome(tiny()) == undisturbed


# stopping


def test_ctrl_c_writes_a_checkpoint_leaves_with_130_and_the_same_command_goes_on(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.undo()  # the true recipe, its smallest
    environment = {**os.environ, "APD_RUNS": str(runs), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    small = {
        "network.backbone": "test_efficientnet",
        "network.head-width": "8",
        "data.height": "32",
        "data.width": "32",
        "data.crop-height": "32",
        "data.crop-width": "32",
        "data.train-images": "4",
        "data.evaluation-images": "2",
        "training.batch-size": "2",
        "training.iterations": "100",
        "teacher.network.backbone": "test_efficientnet",
        "teacher.network.head-width": "8",
        "teacher.training.iterations": "2",
        "teacher.training.batch-size": "2",
    }
    arguments = ["train", "--method", "student", *(f"--{name}={value}" for name, value in small.items())]
    command = subprocess.Popen(
        [sys.executable, "-m", "apd", *arguments], env=environment, stdout=-1, stderr=-1, text=True
    )

    def lines():
        found = [path for path in runs.glob("tiny-student-*/log.jsonl") if path.exists()]
        return len(found[0].read_text().splitlines()) if found else 0

    while lines() < 5:
        assert command.poll() is None, command.stderr.read()
        time.sleep(0.02)
    command.send_signal(signal.SIGINT)
    _out, err = command.communicate(timeout=120)
    assert command.returncode == 130
    notice, message = [line for line in err.splitlines() if line]
    assert notice == "stopping after this step; once more stops at once"
    assert message.startswith("apd: stopped at step ")
    assert "the same command goes on from there" in message
    step = int(message.split("step ")[1].split(";")[0])
    assert 5 <= step < 100
    (folder,) = runs.glob("tiny-student-*")
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"step-{step:08d}"]
    monkeypatch.setenv("APD_RUNS", str(runs))
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert f"resumed at step {step}" in out
    assert lines() == 100
    assert Path(out.splitlines()[-1]) == folder / "record.json"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_is_honoured_after_the_step_and_loses_nothing(runs, number, undisturbed):
    handler = signal.getsignal(number)
    with pytest.raises(StoppedError, match="stopped at step 3; the same command goes on from there"):
        train(tiny(), on_step=lambda step: signal.raise_signal(number) if step == 2 else None)
    assert signal.getsignal(number) is handler
    assert [path.name for path in (run_folder(tiny()) / "checkpoints").iterdir()] == ["step-00000003"]
    steps = []
    train(tiny(), on_step=steps.append)
    assert steps == [4, 5, 6]
    assert outcome(tiny()) == undisturbed


def test_a_second_ctrl_c_stops_at_once(runs, capsys):
    def twice(step):
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        train(tiny(), on_step=twice)
    assert not isinstance(caught.value, StoppedError)
    assert not (run_folder(tiny()) / "checkpoints").exists()


def test_a_run_works_outside_the_main_thread_where_no_signal_can_be_caught(runs, undisturbed):
    thread = threading.Thread(target=train, args=(tiny(),))
    thread.start()
    thread.join()
    assert outcome(tiny()) == undisturbed


# numbers that are none, and runs that are none


def test_a_loss_that_is_no_number_leaves_with_a_message(runs, told):
    message = told("train", "--method", "student", "--training.learning-rate", "1e30")
    assert "task = " in message
    assert "the batch is saved in " in message
    assert "Lower --training.learning-rate" in message


def test_a_gpu_without_enough_memory_is_told_in_a_line_and_the_run_goes_on_from_its_checkpoint(
    runs, told, monkeypatch, undisturbed
):
    interrupted_run(3, monkeypatch)
    with monkeypatch.context() as patch:
        full = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB"
        patch.setattr(loop.TrainStep, "__call__", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError(full)))
        message = told("train", "--method", "student")
    assert "the GPU's memory does not hold this run (CUDA out of memory)" in message
    assert "Lower --training.batch-size, raise --training.accumulation" in message
    steps = []
    train(tiny(), on_step=steps.append)
    assert steps == [4, 5, 6]
    assert outcome(tiny()) == undisturbed


@pytest.mark.parametrize("command", [("evaluate",), ("predict",)])
def test_a_folder_that_is_no_run_is_told(told, tmp_path, command):
    picture = [tmp_path / "a.png"] if command == ("predict",) else []
    for folder in (tmp_path, tmp_path / "missing"):
        message = told(*command, folder, *picture, code=2)
        assert message == f"apd: {folder} is not the folder of a finished run: it holds no record.json"


def test_what_is_no_image_is_reported_before_any_image_is_predicted(runs, told, tmp_path):
    train(tiny())
    (tmp_path / "text.png").write_text("this is no picture")
    Image.new("RGB", (40, 40)).save(tmp_path / "good.png")
    message = told("predict", run_folder(tiny()), tmp_path / "good.png", tmp_path / "text.png", "--to", tmp_path / "to")
    assert message.startswith(f"apd: {tmp_path / 'text.png'}: cannot be read as an image")
    assert not (tmp_path / "to").exists()


def test_damaged_weights_of_a_run_are_told(runs, told):
    train(tiny())
    path = run_folder(tiny()) / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    message = told("evaluate", run_folder(tiny()))
    assert message == f"apd: {path} is missing or damaged; delete {path.parent / 'record.json'} to finish the run again"


def test_a_device_that_is_not_there_is_told(runs, told):
    message = told("train", "--method", "student", "--device", "gpu")
    assert "device = 'gpu': expected cpu, or cuda where there is a GPU" in message


def test_a_defect_of_the_package_shows_its_traceback(runs, monkeypatch):
    monkeypatch.setattr("apd.training.segmentation.build_splits", lambda *_: [][0])
    with pytest.raises(IndexError):
        cli.main(["train", "--method", "student"])


def test_the_log_says_that_it_is_damaged_when_a_line_is_no_json(tmp_path):
    (tmp_path / "log.jsonl").write_text("{}\n{\n")
    with pytest.raises(checkpoint.CheckpointError, match=r"log\.jsonl is damaged"):
        log.RunLog(tmp_path / "log.jsonl").summary()
