"""`apd replay RECORD`: the experiment is run again in a place of its own and compared with the record."""

import json

import pytest
import torch
from small_detection import small
from small_experiments import tiny

from apd.cli.app import main
from apd.training.record import Record
from apd.training.run import run_folder, train
from apd.training.run_log import StoppedError

EXPERIMENTS = {"segmentation": tiny("apd", iterations=2, evaluations=1), "detection": small("roi_apd", iterations=2)}


@pytest.fixture(scope="module", params=EXPERIMENTS)
def record(request, tmp_path_factory):
    """The file of a record outside the folder of runs, where its teacher's run is."""
    experiment, folder = EXPERIMENTS[request.param], tmp_path_factory.mktemp("replayed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("APD_RUNS", str(folder / "runs"))
        train(experiment).save(folder / "record.json")
        for path in run_folder(experiment).glob("*.*"):
            path.unlink()
        yield folder / "record.json"


def replayed(path, capsys):
    code = main(["replay", str(path), "--device", "cpu"])
    return code, capsys.readouterr().out.splitlines()


def test_a_record_of_this_machine_comes_out_equal_and_leaves_no_run(record, capsys):
    runs = sorted((record.parent / "runs").rglob("record.json"))
    code, lines = replayed(record, capsys)
    score, value = Record(json.loads(record.read_text())).headline
    assert code == 0
    assert (
        lines[-1]
        == f"equal: {score} {value:.4f}; weights, scores, curves, teacher and data are the record's, bit by bit"
    )
    assert not [line for line in lines if "in the record" in line]
    assert "note: the teacher is not trained again: its finished run lies in " in "\n".join(lines)
    assert sorted((record.parent / "runs").rglob("record.json")) == runs, "the teacher's only, which was found"


def test_another_count_commit_and_version_are_named_and_end_with_1(record, tmp_path, capsys):
    content = json.loads(record.read_text())
    content["git"], content["versions"]["torch"] = {"commit": "0" * 40, "clean": False}, "1.0"
    if "confusion" in content:
        content["confusion"][0][0] += 1
        expected = "confusion: 1 of 100 numbers differ, the first is "
    else:
        content["ap"]["boxes"]["ap"][0][0][0] = 0.5
        expected = "ap.boxes.ap: 1 of 120 numbers differ, the first is 0.5 in the record and "
    (tmp_path / "changed.json").write_text(json.dumps(content))
    code, lines = replayed(tmp_path / "changed.json", capsys)
    assert code == 1
    assert f"note: versions.torch: 1.0 in the record and {torch.__version__} here" in lines
    assert f"note: git.commit: {'0' * 40} in the record and " in "\n".join(lines)
    assert "note: git.clean: the record's code had changes that were not committed" in lines
    assert lines[-2].startswith(expected)
    assert lines[-1].startswith("differences: 1, at most 20 of them above; ")


def test_a_replay_that_is_stopped_does_not_promise_to_go_on(record, monkeypatch, capsys):
    monkeypatch.setattr("apd.training.run.train", lambda *_, **__: (_ for _ in ()).throw(StoppedError("goes on")))
    assert main(["replay", str(record), "--device", "cpu"]) == 130
    assert capsys.readouterr().err.startswith("apd: stopped: a replay begins anew")
