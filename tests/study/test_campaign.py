"""A campaign skips what has a record, goes seed by seed or side by side, and can be stopped and continued."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from small_experiments import exit_code, exit_codes, outcome, start, tiny

from apd.config.experiment import TeacherConfig
from apd.config.identity import fingerprint, to_dict
from apd.study import campaign, parallel
from apd.study.campaign import Ledger, main, run_campaign
from apd.study.campaigns import CAMPAIGNS, CampaignError, experiments_of, steps_done
from apd.study.parallel import SideBySide, Worker
from apd.training.checkpoint import only_process
from apd.training.distributed import ALONE
from apd.training.record import read_record
from apd.training.run import run_folder, train
from apd.training.run_log import NonFiniteLossError, UnfinishedRunsError
from apd.training.schema import with_digest

TAUGHT = [tiny(method, seed=seed) for seed in range(2) for method in ("student", "pixel_kd", "apd")]
ENDLESS = replace(tiny(iterations=100_000, evaluations=0), name="endless")
LABELS = ["short-seed0", "long-seed0", "short-seed1", "long-seed1"]


def quick(method, seed=0):
    """An experiment of one step or two."""
    start = tiny(seed=seed, iterations={"short": 1, "long": 2}[method], evaluations=0)
    return replace(start, name=f"{method}-seed{seed}")


@pytest.fixture
def folder(runs, tmp_path, monkeypatch):
    """Where records go; workers are forks, which start in a moment and have this process's environment and patches."""
    monkeypatch.setattr(parallel, "START", "fork")
    monkeypatch.setitem(CAMPAIGNS, "taught", lambda: iter(TAUGHT))
    monkeypatch.setitem(CAMPAIGNS, "endless", lambda: iter([ENDLESS, tiny()]))
    monkeypatch.setitem(CAMPAIGNS, "four", lambda: (quick(m, seed) for seed in range(2) for m in ("short", "long")))
    return tmp_path / "records"


@pytest.fixture
def trained(monkeypatch):
    """The labels of the experiments that a campaign has trained; those in `raises` end with an error instead."""
    labels = type("Labels", (list,), {"raises": {}})()

    def noted(experiment, **options):
        if experiment.name in labels.raises:
            raise labels.raises[experiment.name]
        labels.append(experiment.name)
        return train(experiment, **options)

    monkeypatch.setattr(campaign, "train", noted)
    return labels


def test_a_campaign_leaves_a_record_of_every_experiment(folder, trained, capsys):
    records = run_campaign("four", folder=folder)
    assert [record.experiment.name for record in records] == trained == LABELS
    assert {path.stem for path in folder.iterdir()} == {f"{e.name}-{fingerprint(e)}" for e in experiments_of("four")}
    out = capsys.readouterr().out
    assert "four: 4 experiments, 0 have a record" in out
    assert f"four: 4/4 long-seed1: mIoU {records[-1].scores.miou:.4f}, about 0 min left" in out


def test_what_has_a_record_is_skipped_wherever_its_run_was_and_under_any_name(folder, trained, tmp_path, capsys):
    train(quick("short")).save(folder / "any-name.json")
    train(tiny(iterations=3)).save(folder / "before.json")
    shutil.rmtree(tmp_path / "runs")  # as on another machine, that has the committed records only
    records = run_campaign("four", folder=folder)
    assert trained == LABELS[1:]
    assert [record.experiment.name for record in records] == LABELS
    assert (folder / "before.json").exists()
    out = capsys.readouterr().out
    assert "four: 4 experiments, 1 have a record" in out
    assert "1 records there are of no experiment of this campaign, such as before.json: its recipe has changed" in out


def test_an_experiment_that_diverges_does_not_keep_the_others_from_their_records(folder, trained, capsys):
    trained.raises = {"long-seed0": NonFiniteLossError("step 8: loss = nan")}
    with pytest.raises(NonFiniteLossError, match=r"four: 1 of 4 experiments diverged.*: long-seed0"):
        run_campaign("four", folder=folder)
    assert trained == [label for label in LABELS if label != "long-seed0"]
    assert len(list(folder.iterdir())) == 3
    assert "four: 2/4 long-seed0 diverged and has no record: step 8: loss = nan" in capsys.readouterr().out


def test_a_finished_run_without_record_in_the_campaign_is_not_trained_again(folder, monkeypatch):
    train(replace(quick("short"), name="begun-elsewhere"))
    monkeypatch.setattr("apd.training.trainer.TrainStep.__call__", lambda *_: pytest.fail("a step was done again"))
    (record,) = run_campaign("four", folder=folder, only="short-seed0")
    found = train(quick("short"))
    assert (record.experiment.name, found.experiment.name) == ("short-seed0", "begun-elsewhere")
    assert record.content == with_digest(found.content | {"experiment": to_dict(record.experiment)})


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--only=long-seed7", "only = 'long-seed7': expected a part of one of the labels short-seed0, long-seed0"),
        ("--workers=-1", "workers = -1: expected a whole number of at least 0 and at most 256\n"),
        ("--processes=0", "processes = 0: expected a whole number of at least 1 and at most 256\n"),
        ("--minutes=nan", "minutes = nan: expected a number above 0\n"),
        ("--device=cpu", "short-seed0.json: cannot be read as JSON"),
    ],
)
def test_a_wrong_option_or_a_damaged_record_stops_a_campaign_before_it_starts(option, message, folder, trained, capsys):
    folder.mkdir()
    (folder / "short-seed0.json").write_text("{")
    assert main(["four", "--records", str(folder), option]) == (1 if "json" in message else 2)
    assert message in capsys.readouterr().err
    assert trained == []


def run_worker(runs, records):
    os.environ["APD_RUNS"] = str(runs)
    CAMPAIGNS["taught"] = lambda: (tiny(method, seed=seed) for seed in range(2) for method in ("pixel_kd", "apd"))
    sys.exit(main(["taught", "--records", str(records)]))


def test_two_workers_on_one_file_system_train_their_teacher_once(tmp_path):
    runs, records = tmp_path / "runs", tmp_path / "records"
    workers = [start(run_worker, runs, records, output=tmp_path / str(number)) for number in (1, 2)]
    assert exit_codes(workers) == [0, 0], [(tmp_path / number).read_text() for number in "12"]
    (teacher,) = runs.glob("scenes-teacher-*")
    assert len((teacher / "log.jsonl").read_text().splitlines()) == 4
    used = [read_record(path).content["teacher"]["weights_sha256"] for path in records.iterdir()]
    assert used == [read_record(teacher / "record.json").content["weights_sha256"]] * 4


def test_a_run_that_another_worker_holds_is_left_for_the_end(folder, monkeypatch, capsys):
    with contextlib.ExitStack() as elsewhere:
        elsewhere.enter_context(only_process(run_folder(quick("short"))))
        asked = []

        def asked_for(experiment, **options):
            asked.append(experiment.name)
            if len(asked) > len(LABELS):
                elsewhere.close()
            return train(experiment, **options)

        monkeypatch.setattr(campaign, "train", asked_for)
        records = run_campaign("four", folder=folder)
    assert asked == [*LABELS, "short-seed0"]
    assert [record.experiment.name for record in records] == LABELS
    assert "four: short-seed0 is another worker's and left for the end\n" in capsys.readouterr().out


def test_processes_that_prepare_batches_are_asked_for_in_every_run(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(campaign, "train", lambda e, *, workers, **_: asked.append((e.name, workers)) or train(e))
    assert main(["four", "--records", str(folder), "--workers", "2", "--only", "short", "--device", "cpu"]) == 0
    assert asked == [("short-seed0", 2), ("short-seed1", 2)]


def failing(kind, times, tmp_path):
    """What `train` is in a worker: it fails so often in one way for one experiment, and then works."""

    def trained(experiment, **options):
        marks = sorted(tmp_path.glob("failed-*"))
        if experiment.name == "apd-seed0" and len(marks) < times:
            (tmp_path / f"failed-{len(marks)}").touch()
            if kind == "memory":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")
            os.kill(os.getpid(), signal.SIGKILL)
        return train(experiment, **options)

    return trained


def test_side_by_side_every_run_ends_as_alone_and_the_teacher_is_trained_once(folder, tmp_path, capfd, monkeypatch):
    records = run_campaign("taught", folder=folder, processes=3)
    assert [record.experiment.name for record in records] == [e.name for e in TAUGHT]
    out = capfd.readouterr().out
    assert len(re.findall(r"taught: scenes-teacher is trained, ", out)) == 1
    assert re.search(r"taught: 6/6 \S+: mIoU 0\.\d+, \d+\.\d steps/s, \d at a time, about 0 min left", out)
    together = [outcome(experiment) for experiment in TAUGHT]
    monkeypatch.setenv("APD_RUNS", str(tmp_path / "alone"))
    run_campaign("taught", folder=tmp_path / "again")
    assert [outcome(experiment) for experiment in TAUGHT] == together


def test_at_the_deadline_runs_stop_with_checkpoints_and_what_is_left_is_said(folder, capfd):
    (record,) = run_campaign("endless", folder=folder, processes=2, minutes=0.07)
    assert record.experiment.name == "student-seed0"
    reached = steps_done(ENDLESS)
    assert 0 < reached < ENDLESS.training.iterations
    left = rf"endless: 1 experiments are left, about [1-9]\d* min; begun: endless at step {reached} of 100000\. The "
    assert re.search(left, capfd.readouterr().out)
    run_campaign("endless", folder=folder, processes=1, minutes=0.05)
    assert steps_done(ENDLESS) > reached
    assert f"endless: resumed at step {reached}" in capfd.readouterr().out


def test_a_stop_from_outside_leaves_checkpoints_and_exit_code_130(folder, tmp_path):
    output = tmp_path / "output"
    assert exit_code(stopped_campaign, tmp_path / "runs", folder, output=output) == 130
    assert "apd.study.campaign: endless: stopped; the same command goes on from there" in output.read_text()
    reached = steps_done(ENDLESS)
    time.sleep(1.0)
    assert steps_done(ENDLESS) == reached > 0, "no worker is left behind"


def stopped_campaign(runs, records):
    os.environ["APD_RUNS"] = str(runs)
    parallel.START = "fork"
    CAMPAIGNS["endless"] = lambda: iter([ENDLESS])
    listen = SideBySide.listen

    def listen_and_stop(state, seconds):
        listen(state, seconds)
        if state.speed:
            signal.raise_signal(signal.SIGTERM)
            SideBySide.listen = listen

    SideBySide.listen = listen_and_stop
    code = main(["endless", "--records", str(records), "--processes", "2", "--minutes", "5"])
    sys.stderr.flush()
    os._exit(code)


@pytest.mark.parametrize(
    ("kind", "times", "said"),
    [
        ("memory", 1, "out of memory; tried again, with 1 at a time from now on"),
        ("killed", 1, "its worker ended by signal 9; the run goes on from its last checkpoint in an"),
        ("killed", 2, " was given up: its worker ended by signal 9 a second time"),
    ],
)
def test_a_failing_worker_is_named_and_its_run_tried_again(folder, tmp_path, capfd, monkeypatch, kind, times, said):
    monkeypatch.setattr(parallel, "train", failing(kind, times, tmp_path))
    monkeypatch.setitem(CAMPAIGNS, "taught", lambda: iter(TAUGHT[:3]))
    given_up = pytest.raises(UnfinishedRunsError, match=r"1 of 3 experiments were given up, see above: apd-seed0; the")
    with given_up if times == 2 else contextlib.nullcontext():
        run_campaign("taught", folder=folder, processes=2)
    assert len(list(folder.iterdir())) == (2 if times == 2 else 3)
    assert re.search(rf"taught: (\d/3 )?apd-seed0:? ?{said}", capfd.readouterr().out)


def test_what_stops_every_run_stops_the_campaign_with_its_message(folder, monkeypatch, capsys):
    wrong = replace(TAUGHT[1], teacher=TeacherConfig(weights_file="nowhere.safetensors"))
    monkeypatch.setitem(CAMPAIGNS, "taught", lambda: iter([wrong]))
    assert main(["taught", "--records", str(folder), "--processes", "2"]) == 1
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith("apd.study.campaign: teacher weights nowhere.safetensors: there is no such file")


def test_several_ranks_have_one_run_at_a_time(folder, monkeypatch):
    monkeypatch.setattr("apd.study.campaign.join", lambda: replace(ALONE, size=2))
    with pytest.raises(CampaignError, match="start it without torchrun"):
        run_campaign("taught", folder=folder, processes=2)


@pytest.fixture
def state(folder):
    ledger = Ledger("made-up", folder, {}, len(TAUGHT), ALONE)
    made = SideBySide(TAUGHT, ledger, None, processes=2, loaders=0)
    made.workers = [Worker(None, None), Worker(None, None)]
    return made


def at_pace(worker, run, seconds):
    """The worker is at a run whose steps take so long."""
    worker.run, worker.queued, worker.speed = run, True, 1 / seconds
    return worker


def test_a_teacher_comes_before_its_students_and_those_without_one_go_on(state):
    assert state.next_run() == TAUGHT[0]
    state.queue.popleft()
    teacher = state.next_run()
    assert teacher == TAUGHT[1].teacher_experiment()
    state.workers[0].run = teacher
    assert state.next_run().name == "student-seed1"
    train(teacher)
    assert state.next_run() == TAUGHT[1]


def test_no_run_is_begun_that_cannot_finish_by_the_seconds_of_runs_like_it(state):
    train(TAUGHT[1].teacher_experiment())
    now = time.monotonic()
    state.deadline = now + 100
    assert state.next_run() == TAUGHT[0], "nothing is known yet"
    at_pace(state.workers[0], TAUGHT[5], seconds=50)  # 6 steps of an apd run take 300 seconds
    at_pace(state.workers[1], TAUGHT[0], seconds=2)
    state.queue.clear()
    state.queue.extend([TAUGHT[2], TAUGHT[1], TAUGHT[3]])
    assert state.speed == pytest.approx(1 / 50 + 1 / 2), "of all workers together, without their starts"
    seconds = [state.expected_seconds(run) for run in state.queue]
    assert seconds == pytest.approx([300, 300, 12]), "of a run like it, else of the slowest"
    assert state.next_run() == TAUGHT[3]
    (run_folder(TAUGHT[3]) / "checkpoints" / "step-00000004").mkdir(parents=True)
    assert state.expected_seconds(TAUGHT[3]) == pytest.approx(4), "what is done already does not count against it"
    state.deadline = now + 3
    assert state.next_run() is None


def test_the_helper_of_all_worker_processes_outlives_a_hangup():
    """Else a campaign that is hung up would end with tracebacks of multiprocessing's resource tracker."""
    code = (
        "from apd.study.parallel import resource_tracker, side_by_side\n"
        "side_by_side([], None, device='cpu', processes=2, minutes=None)\n"
        "print(open(f'/proc/{resource_tracker._resource_tracker._pid}/status').read())"
    )
    status = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(re.search(r"SigBlk:\s*(\w+)", status)[1], 16) >> (signal.SIGHUP - 1) & 1
