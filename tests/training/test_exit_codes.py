"""Each mishap ends in one clear message and an exit code that is not zero, and nothing that was finished is lost."""

import re
import resource
import shutil
import signal
import threading

import pytest
import torch
from small_experiments import Thrown, exit_code, outcome, run_as_a_command, thrown_at, tiny

from apd.cli import app as cli
from apd.training import checkpoint
from apd.training import trainer as loop
from apd.training.run import run_folder, train
from apd.training.run_log import StoppedError

pytestmark = pytest.mark.usefixtures("tiny_recipes")
STUDENT = ("train", "--method", "student")


@pytest.fixture
def ends_undisturbed(undisturbed):
    """Start the run of a mishap again: it must end as if nothing had happened. Returns the steps that were made."""

    def again():
        steps = []
        train(tiny(), on_step=steps.append)
        assert outcome(tiny()) == undisturbed(tiny())
        return steps

    return again


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


def interrupted_run(step, monkeypatch):
    """A run that has a checkpoint after each of its first `step` steps. Returns the folder of the checkpoints."""
    with monkeypatch.context() as patch:
        patch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
        with pytest.raises(Thrown):
            train(tiny(), on_step=thrown_at(step))
    return run_folder(tiny()) / "checkpoints"


def test_missing_and_half_extracted_data_say_what_to_set_and_what_is_there(runs, refused, monkeypatch, tmp_path):
    command = ("train", "--data.name", "camvid")
    monkeypatch.delenv("APD_DATA", raising=False)
    assert re.search("APD_DATA is not set.*python data_scripts/camvid.py fetch DEST", refused(*command))
    monkeypatch.setenv("APD_DATA", str(tmp_path / "no"))
    assert "is not a folder" in refused(*command)
    monkeypatch.setenv("APD_DATA", str(tmp_path))
    assert f"APD_DATA={tmp_path} holds no folder CamVid/" in refused(*command)
    for split in ("train", "trainannot", "val"):
        (tmp_path / "CamVid" / split).mkdir(parents=True)
    (tmp_path / "CamVid" / "train" / "a.png").touch()
    assert "is not complete: train/ 1 of 367, trainannot/ 0 of 367, val/ 0 of 101" in refused(*command)
    assert not list(runs.glob("*teacher*")), "the teacher is not trained before the data are there"


@pytest.mark.parametrize("both", [False, True])
def test_of_damaged_checkpoints_the_newest_whole_one_or_none_is_used_and_the_run_ends_the_same(
    both, monkeypatch, capsys, ends_undisturbed
):
    checkpoints = interrupted_run(4, monkeypatch)
    newest = checkpoints / "step-00000004" / "optimisers.pt"
    newest.write_bytes(newest.read_bytes()[:100])
    if both:
        (checkpoints / "step-00000003" / "manifest.json").write_text("[]")
    assert ends_undisturbed()[0] == (1 if both else 4)
    instead = "none before it is whole: step 0 again" if both else "step 3 before it is used"
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"student-seed0: {newest} is damaged: its sha256 is not the one in manifest.json; {instead}"
    assert second.endswith(instead if both else "resumed at step 3")


def test_a_log_shorter_than_its_checkpoint_is_an_error_and_not_papered_over(monkeypatch, refused, ends_undisturbed):
    checkpoints = interrupted_run(4, monkeypatch)
    path = run_folder(tiny()) / "log.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    message = refused(*STUDENT)
    assert f"{path} is damaged: it has 2 whole lines where the checkpoint expects 4" in message
    assert f"Delete {checkpoints} and start the same command again" in message
    shutil.rmtree(checkpoints)
    assert ends_undisturbed()[0] == 1


def test_damaged_files_of_a_finished_run_are_named_and_made_again_when_deleted(refused, ends_undisturbed):
    train(tiny())
    weights, path = (run_folder(tiny()) / name for name in ("weights.safetensors", "record.json"))
    weights.write_bytes(weights.read_bytes()[:-1])
    message = refused("evaluate", path.parent)
    assert message == f"apd: {weights} is missing or damaged; delete {path} to finish the run again"
    path.write_text(path.read_text()[:500])
    for command in (STUDENT, ("evaluate", path.parent)):
        assert re.search(f"{path}: cannot be read as JSON.*delete it to have it made again", refused(*command))
    path.unlink()
    ends_undisturbed()


def fill_the_disk(runs, largest, often):
    """After step 3 no file may grow beyond that many bytes, which the system enforces on every write."""

    def limit(step):
        if step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))

    loop.CHECKPOINT_SECONDS = 0.0 if often else 1e9
    run_as_a_command(tiny(), runs, limit)


@pytest.mark.parametrize(("largest", "often", "file"), [(100_000, True, "step-00000004"), (900, False, "log.jsonl")])
def test_a_full_disk_stops_a_run_with_a_message_and_it_goes_on_when_there_is_space(
    runs, tmp_path, ends_undisturbed, largest, often, file
):
    """Once it is a checkpoint that does not fit any more, once the log."""
    output = tmp_path / "output"
    assert exit_code(fill_the_disk, runs, largest, often, output=output) == 1
    (message,) = output.read_text().splitlines()
    assert re.match(f"apd: cannot write [^:]*{file}.*Nothing that was finished is lost.*start the same comm", message)
    assert ends_undisturbed()[0] == (4 if often else 1)


def test_a_disk_that_is_full_at_the_very_end_costs_no_step(refused, monkeypatch, ends_undisturbed):
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
    assert ends_undisturbed() == []


def test_a_read_only_disk_is_an_error_before_anything_is_computed(refused, monkeypatch, tmp_path):
    """A regular file in the place of a folder stands for it: root may write everywhere else."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("APD_RUNS", str(tmp_path / "file" / "runs"))
    monkeypatch.setattr("apd.training.segmentation.build_splits", lambda *_: pytest.fail("too late"))
    assert f"cannot write to {tmp_path / 'file' / 'runs'}" in refused(*STUDENT)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_is_honoured_after_the_step_and_loses_nothing(number, ends_undisturbed):
    handler = signal.getsignal(number)
    with pytest.raises(StoppedError, match="stopped at step 3; the same command goes on from there"):
        train(tiny(), on_step=lambda step: signal.raise_signal(number) if step == 2 else None)
    assert signal.getsignal(number) is handler
    with pytest.raises(KeyboardInterrupt, match=r"^$"):  # a second Ctrl-C stops at once
        train(tiny(), on_step=lambda _: [signal.raise_signal(signal.SIGINT) for _ in range(2)])
    assert [path.name for path in (run_folder(tiny()) / "checkpoints").iterdir()] == ["step-00000003"]
    thread = threading.Thread(target=ends_undisturbed)  # where no signal can be caught
    thread.start()
    thread.join()
    assert ends_undisturbed() == []


def test_a_gpu_without_enough_memory_is_reported_in_a_line_and_the_run_goes_on_from_its_checkpoint(
    refused, monkeypatch, ends_undisturbed
):
    interrupted_run(3, monkeypatch)
    with monkeypatch.context() as patch:
        full = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB"
        patch.setattr(loop.TrainStep, "__call__", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError(full)))
        message = refused(*STUDENT)
    assert "the GPU's memory does not hold this run (CUDA out of memory)" in message
    assert ends_undisturbed() == [4, 5, 6]


def test_a_defect_of_the_package_shows_its_traceback(monkeypatch):
    monkeypatch.setattr("apd.training.segmentation.build_splits", lambda *_: [][0])
    with pytest.raises(IndexError):
        cli.main([*STUDENT])
