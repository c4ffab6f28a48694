"""Each mishap ends in one clear message and an exit code that is not zero, and nothing that was finished is lost."""

import resource
import shutil
import signal
import threading
from dataclasses import dataclass, replace

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from small_experiments import TEACHER, Thrown, exit_code, outcome, run_as_a_command, thrown_at, tiny

from apd.cli import app as cli
from apd.training import checkpoint
from apd.training import trainer as loop
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
def refused(capsys):
    """Call a command; it must fail with that exit code and one message, which is returned."""

    def call(*arguments, code=1):
        capsys.readouterr()
        assert cli.main([str(argument) for argument in arguments]) == code
        (message,) = capsys.readouterr().err.splitlines()
        assert message.startswith("apd: ")
        return message

    return call


STUDENT = ("train", "--method", "student")


def interrupted_run(step, monkeypatch):
    """A run that has a checkpoint after each of its first `step` steps. Returns the folder of the checkpoints."""
    with monkeypatch.context() as patch:
        patch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
        with pytest.raises(Thrown):
            train(tiny(), on_step=thrown_at(step))
    return run_folder(tiny()) / "checkpoints"


# data, networks and teachers


def test_missing_and_half_extracted_data_say_what_to_set_and_what_is_there(runs, refused, monkeypatch, tmp_path):
    monkeypatch.delenv("APD_DATA", raising=False)
    message = refused("train", "--data.name", "camvid")
    assert "environment variable APD_DATA is not set" in message
    assert "python data_scripts/camvid.py fetch DEST" in message
    monkeypatch.setenv("APD_DATA", str(tmp_path))
    assert f"APD_DATA={tmp_path} holds no folder CamVid/" in refused("train", "--data.name", "camvid")
    for split in ("train", "trainannot", "val"):
        (tmp_path / "CamVid" / split).mkdir(parents=True)
    (tmp_path / "CamVid" / "train" / "a.png").touch()
    message = refused("train", "--data.name", "camvid")
    assert "is not complete: train/ 1 of 367, trainannot/ 0 of 367, val/ 0 of 101" in message
    assert not list(runs.glob("*teacher*")), "the teacher is not trained before the data are there"


def test_weights_that_cannot_be_had_are_an_error_and_no_random_start(runs, refused, monkeypatch):
    def unreachable(*_, **options):
        assert options["weights"] == "imagenet"
        raise RuntimeError("weights='imagenet' for backbone 'test_efficientnet': not there")

    monkeypatch.setattr("apd.training.segmentation.build_segmenter", unreachable)
    message = refused(*STUDENT, "--network.weights", "imagenet")
    assert message.endswith(
        "this network cannot be built: weights='imagenet' for backbone 'test_efficientnet': not there"
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "there is no such file (--teacher.weights-file)"),
        (b"garbage", "cannot be read as safetensors"),
        ({"classifier.bias": torch.zeros(10)}, "tensors differ, first image_mean is missing"),
        ("wider", "tensors differ, first head.merge.0.weight is (12, 128, 3, 3), expected (8, 128, 3, 3);"),
    ],
)
def test_teacher_weights_that_do_not_fit_are_an_error_in_a_line(runs, refused, tmp_path, content, expected):
    file, options = tmp_path / "teacher.safetensors", []
    if content == "wider":
        train(tiny("apd").teacher_experiment())
        file = run_folder(tiny("apd").teacher_experiment()) / "weights.safetensors"
        options = ["--teacher.network.head-width", 8]
    elif isinstance(content, bytes):
        file.write_bytes(content)
    elif content:
        save_file(content, file)
    message = refused("train", "--teacher.weights-file", file, *options)
    assert f"teacher weights {file}" in message
    assert expected in message
    assert len(message) < 800


def test_a_teacher_below_its_stated_score_is_refused_and_its_own_run_stays(runs, refused):
    message = refused("train", "--teacher.expected-miou", 0.9)
    teacher = train(tiny("apd").teacher_experiment())
    assert f"the teacher's mIoU is {teacher.scores.miou:.4f} on val, below teacher.expected_miou = 0.9" in message
    assert "wrong weights, wrong data or wrong image size" in message
    enough = replace(tiny("apd"), teacher=replace(TEACHER, expected_miou=teacher.scores.miou))
    assert train(enough).experiment == enough


# damaged files


@pytest.mark.parametrize("both", [False, True])
def test_of_damaged_checkpoints_the_newest_whole_one_or_none_is_used_and_the_run_ends_the_same(
    both, runs, monkeypatch, capsys, undisturbed
):
    checkpoints = interrupted_run(4, monkeypatch)
    newest = checkpoints / "step-00000004" / "optimisers.pt"
    newest.write_bytes(newest.read_bytes()[:100])
    if both:
        (checkpoints / "step-00000003" / "manifest.json").write_text("[]")
    train(tiny())
    instead = "none before it is whole: step 0 again" if both else "step 3 before it is used"
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"student-seed0: {newest} is damaged: its sha256 is not the one in manifest.json; {instead}"
    assert second.endswith(instead if both else "resumed at step 3")
    assert outcome(tiny()) == undisturbed


def test_a_log_shorter_than_its_checkpoint_is_an_error_and_not_papered_over(runs, monkeypatch, refused, undisturbed):
    checkpoints = interrupted_run(4, monkeypatch)
    path = run_folder(tiny()) / "log.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    message = refused(*STUDENT)
    assert f"{path} is damaged: it has 2 whole lines where the checkpoint expects 4" in message
    assert f"Delete {checkpoints} and start the same command again" in message
    shutil.rmtree(checkpoints)
    train(tiny())
    assert outcome(tiny()) == undisturbed


def test_damaged_files_of_a_finished_run_are_named_and_made_again_when_deleted(runs, refused, undisturbed):
    train(tiny())
    weights, path = (run_folder(tiny()) / name for name in ("weights.safetensors", "record.json"))
    weights.write_bytes(weights.read_bytes()[:-1])
    assert (
        refused("evaluate", path.parent)
        == f"apd: {weights} is missing or damaged; delete {path} to finish the run again"
    )
    path.write_text(path.read_text()[:500])
    for command in (STUDENT, ("evaluate", path.parent)):
        message = refused(*command)
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


def fill_the_disk(runs, largest, often):
    loop.CHECKPOINT_SECONDS = 0.0 if often else 1e9
    run_as_a_command(tiny(), runs, FullDisk(largest))


@pytest.mark.parametrize(("largest", "often", "file"), [(100_000, True, "step-00000004"), (900, False, "log.jsonl")])
def test_a_full_disk_stops_a_run_with_a_message_and_it_goes_on_when_there_is_space(
    runs, tmp_path, capsys, undisturbed, largest, often, file
):
    """Once it is a checkpoint that does not fit any more, once the log."""
    output = tmp_path / "output"
    assert exit_code(fill_the_disk, runs, largest, often, output=output) == 1
    (message,) = output.read_text().splitlines()
    assert message.startswith("apd: cannot write ")
    assert file in message.split(":")[1]
    assert "Nothing that was finished is lost" in message
    assert "start the same command again; it goes on from the last checkpoint" in message
    train(tiny())
    assert ("student-seed0: resumed at step 3" in capsys.readouterr().out) == often
    assert outcome(tiny()) == undisturbed


def test_a_disk_that_is_full_at_the_very_end_costs_no_step(runs, refused, monkeypatch, undisturbed):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    execute = loop.Trainer.execute

    def execute_and_fill(run, on_step):
        execute(run, on_step)
        patch.setattr(checkpoint.os, "fsync", full)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "execute", execute_and_fill)
        message = refused(*STUDENT, "--name", tiny().name)
    assert f"cannot write {run_folder(tiny()) / 'record.json'}: No space left on device" in message
    assert not (run_folder(tiny()) / "record.json").exists()
    monkeypatch.setattr(loop.TrainStep, "__call__", lambda *_: pytest.fail("a step was done again"))
    train(tiny())
    assert outcome(tiny()) == undisturbed


def test_a_read_only_disk_is_an_error_before_anything_is_computed(runs, refused, monkeypatch, tmp_path):
    """A regular file in the place of a folder stands for it: root may write everywhere else."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("APD_RUNS", str(tmp_path / "file" / "runs"))
    monkeypatch.setattr("apd.training.segmentation.build_splits", lambda *_: pytest.fail("too late"))
    message = refused(*STUDENT)
    assert f"cannot write to {tmp_path / 'file' / 'runs'}" in message
    assert "make it writable or set APD_RUNS to another folder" in message


# stopping


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


def stopped(runs):
    run_as_a_command(tiny(), runs, lambda step: signal.raise_signal(signal.SIGINT) if step == 2 else None)


def test_a_command_that_is_stopped_leaves_with_130_and_says_how_to_go_on(runs, tmp_path):
    assert exit_code(stopped, runs, output=tmp_path / "output") == 130
    notice, message = [line for line in (tmp_path / "output").read_text().splitlines() if line]
    assert notice == "stopping after this step; once more stops at once"
    assert message.startswith("apd: stopped at step 3; the same command goes on from there (student-seed0-")


def test_a_second_ctrl_c_stops_at_once(runs):
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


# what else can go wrong


def test_a_gpu_without_enough_memory_is_reported_in_a_line_and_the_run_goes_on_from_its_checkpoint(
    runs, refused, monkeypatch, undisturbed
):
    interrupted_run(3, monkeypatch)
    with monkeypatch.context() as patch:
        full = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB"
        patch.setattr(loop.TrainStep, "__call__", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError(full)))
        message = refused(*STUDENT)
    assert "the GPU's memory does not hold this run (CUDA out of memory)" in message
    assert "Lower --training.batch-size, raise --training.accumulation" in message
    train(tiny())
    assert outcome(tiny()) == undisturbed


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_folder_that_is_no_run_is_refused(refused, tmp_path, command):
    for folder in (tmp_path, tmp_path / "missing"):
        message = refused(command, folder, *([tmp_path / "a.png"] if command == "predict" else []), code=2)
        assert message == f"apd: {folder} is not the folder of a finished run: it holds no record.json"


def test_what_is_no_image_is_reported_before_any_image_is_predicted(runs, refused, tmp_path):
    train(tiny())
    (tmp_path / "text.png").write_text("this is no image")
    Image.new("RGB", (40, 40)).save(tmp_path / "good.png")
    message = refused(
        "predict", run_folder(tiny()), tmp_path / "good.png", tmp_path / "text.png", "--to", tmp_path / "to"
    )
    assert message.startswith(f"apd: {tmp_path / 'text.png'}: cannot be read as an image")
    assert not (tmp_path / "to").exists()


def test_a_defect_of_the_package_shows_its_traceback(runs, monkeypatch):
    monkeypatch.setattr("apd.training.segmentation.build_splits", lambda *_: [][0])
    with pytest.raises(IndexError):
        cli.main([*STUDENT])
