"""What was changed behind a run's back, between two of its processes, is refused, passed over or marked."""

import json
import os
import re
import shutil
from dataclasses import replace

import pytest
from bad_input import refused
from small_experiments import TEACHER, Thrown, outcome, thrown_at, tiny

from apd.training import trainer as loop
from apd.training.checkpoint import CheckpointError
from apd.training.run import run_folder, train
from apd.training.task import TeacherError

OF_TEACHER = tiny("apd").teacher_experiment()


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A folder of runs that stopped after step 4 of 6, with a checkpoint after each step."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("APD_RUNS", str(folder))
        patch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
        for experiment in (tiny(), tiny(seed=1), tiny("apd")):
            with pytest.raises(Thrown):
                train(experiment, on_step=thrown_at(4))
    return folder


@pytest.fixture
def stopped(begun, runs):
    """A copy of those runs for one test; the folder of the student's."""
    shutil.copytree(begun, runs)
    return run_folder(tiny())


LOGS = [  # what in the log becomes what, and the steps that it costs: the first two have one checksum
    (rb"\Z", b'{"step": 4, "loss": 0.0}\n{"st', []),
    (rb"(.*\n)(.*\n)", rb"\2\1\2", []),
    (rb"(?s).+", b"", [0, 1, 2, 3]),
    (rb"(?s).+", b"\x00\xff" * 999, [0, 1, 2, 3]),
    (rb'(?s)\{"step": 2.*', b"", [2, 3]),
    (rb"...\n\Z", b"", [3]),
    (rb'\{"step": 1.*\n', b"", [0, 1]),
    (rb'"loss": ', b'"loss": 1', [0, 1]),
    (rb'"seconds": ', b'"seconds": 1', [0, 1]),
    (rb'"step": 0', b'"step": 3', [0, 1]),
    (rb'"step": 2,.*', b'"step": 2, "loss": NaN}', [2]),
    (rb'"step": 2,.*', b'"step": 2, "loss": 1%s}' % (b"0" * 400), [2]),
    (rb'"step": 2,.*', b'"step": 2, "loss": %s}' % (b"1" * 5000), [2]),
    (rb'"step": 2,.*', b'"step": 2, "loss": "1"}', [2]),
    (rb'"step": 2,', b'"step": [2],', [2]),
    (rb'"step": 2,', b"", [2]),
    *((rb'\{"step": 2.*', line, [2]) for line in (b"{]", b"[]", b"7", b"null", b"[" * 100_000)),
]


@pytest.mark.parametrize(("old", "new", "lost"), LOGS)
def test_a_damaged_log_costs_the_curves_of_the_damaged_steps_and_no_training(
    old, new, lost, stopped, undisturbed, capsys
):
    path = stopped / "log.jsonl"
    path.write_bytes(re.sub(old, new, path.read_bytes(), count=1))
    content, expected = train(tiny()).content, undisturbed(tiny())
    assert outcome(tiny())["weights"] == expected["weights"]
    assert content.get("log_damaged") == ((lost and {"first": lost[0], "last": lost[-1], "steps": len(lost)}) or None)
    assert (f"log.jsonl is damaged: the curves lack {len(lost)} steps" in capsys.readouterr().out) == bool(lost)
    kept = [step for step in range(6) if step not in lost]
    assert content["curves"]["iteration"] == [step + 1 for step in kept]
    assert content["curves"]["loss"] == [expected["curves"]["loss"][step] for step in kept]


@pytest.mark.parametrize("put", [lambda path: None, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_log_that_is_lost_under_a_running_process_leaves_a_record_without_curves(put, runs, undisturbed):
    path = run_folder(tiny()) / "log.jsonl"
    content = train(tiny(), on_step=lambda step: step == 6 and [path.unlink(), put(path)]).content
    assert (content["curves"], content["log_damaged"]["steps"]) == ({"iteration": []}, 6)
    assert content["seconds_per_iteration"] > 0
    assert content["confusion"] == undisturbed(tiny())["confusion"]


def without(*names):
    return lambda manifest: [(manifest if name in manifest else manifest["facts"]).pop(name) for name in names]


def facts(**changes):
    return lambda manifest: manifest["facts"].update(changes)


older = without("checksum", "identity", "history", "log_parts")  # as it was written before there were checksums
OLD = [facts(seconds="1"), facts(log_lines=10**12), facts(log_lines="4"), facts(evaluations={}), facts(teacher=[1])]
OLD += [without(name) for name in ("seconds", "log_lines", "evaluations", "started", "teacher")]
VALUES = {"seconds": 1.0, "log_lines": 2, "evaluations": [], "started": "then", "identity": {}, "history": []}
MANIFESTS = [
    *(facts(**{name: value}) for name, value in (VALUES | {"log_parts": [], "teacher": {}}).items()),
    *(without(name) for name in (*VALUES, "log_parts", "step", "facts", "sha256")),
    *(lambda manifest, new=new: manifest.update(new) for new in ({"step": 5}, {"facts": []}, {"checksum": "0"})),
    *(lambda manifest, change=change: [older(manifest), change(manifest)] for change in OLD),
]


@pytest.mark.parametrize("change", [older, *MANIFESTS])
def test_an_edited_manifest_is_passed_over_and_one_of_before_checksums_is_not(change, stopped, undisturbed, capsys):
    path = stopped / "checkpoints" / "step-00000004" / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    history = train(tiny()).content["history"]
    *said, resumed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("student-seed0: ")]
    assert outcome(tiny()) == undisturbed(tiny())
    if change is older:
        assert (said, history[0], history[1]["steps"]) == ([], {"steps": [0, 4]}, [4, 6])
    else:
        assert re.match(f"student-seed0: (checkpoint )?{path.parent}.*step 3 before it is used$", said[0])
        assert [entry["steps"] for entry in history] == [[0, 3], [3, 6]]
    assert resumed.endswith("resumed at step 4" if change is older else "resumed at step 3")


def flip(path):
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])


TEACHERS = [  # what becomes of the weights that its run left, and what is said of it
    (flip, "it is not the file that", "record.json to finish the teacher's run again"),
    (lambda path: path.unlink(), "there is no such file; restore it, or delete", "record.json"),
    (lambda path: [path.unlink(), os.mkfifo(path)], "there is no such file", "record.json"),
    (lambda path: path.write_bytes(b""), "cannot be read as safetensors", "weights.safetensors"),
]


@pytest.mark.parametrize(("change", "said", "file"), TEACHERS)
def test_a_teacher_that_is_not_what_its_run_left_is_refused_before_a_step(change, said, file, stopped):
    change(run_folder(OF_TEACHER) / "weights.safetensors")
    refused(lambda: train(tiny("apd"), on_step=pytest.fail), TeacherError, names=(said, file))


def test_a_run_goes_on_with_the_teacher_and_the_settings_that_it_was_begun_with_only(stopped, monkeypatch):
    file = stopped.with_name("mine.safetensors")
    shutil.copy(run_folder(OF_TEACHER) / "weights.safetensors", file)
    experiment = replace(tiny("apd"), teacher=replace(TEACHER, weights_file=str(file)))
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(Thrown):
        train(experiment, on_step=thrown_at(4))
    whole, names = file.read_bytes(), ("other weights of the teacher", "restore them, or delete", "checkpoints")
    flip(file)
    refused(lambda: train(experiment, on_step=pytest.fail), CheckpointError, names=names)
    file.unlink()
    refused(lambda: train(experiment), TeacherError, names=(str(file), "no such file; (--teacher.weights-file)"))
    file.write_bytes(whole)
    content = train(experiment, on_step=lambda step: step == 6 and file.unlink()).content
    assert content["teacher"]["weights_sha256"] == train(OF_TEACHER).content["weights_sha256"], "of what was loaded"
    shutil.rmtree(stopped / "checkpoints")
    shutil.copytree(run_folder(tiny(seed=1)) / "checkpoints", stopped / "checkpoints")
    refused(lambda: train(tiny(), on_step=pytest.fail), CheckpointError, names=("other settings", "checkpoints"))
