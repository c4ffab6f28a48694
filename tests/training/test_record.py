"""A record holds evidence and no score: scores are computed from it when it is read, and what was edited is refused."""

import copy
import json
import math

import pytest
import torch
from small_experiments import tiny

from apd.evaluation.metrics import scores
from apd.training.checkpoint import CheckpointError
from apd.training.record import Record, RecordError, differences, read_record, read_records
from apd.training.run import train


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """What a run with a teacher leaves behind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("APD_RUNS", str(tmp_path_factory.mktemp("runs")))
        return train(tiny("apd")).content


def written(folder, content, name="a.json"):
    path = folder / name
    path.write_text(json.dumps(content))
    return path


def test_a_record_comes_back_as_it_was_saved(content, tmp_path):
    path = tmp_path / "new" / "folder" / "a.json"
    record = Record(content).save(path)
    assert read_record(path).content == record.content == content
    assert read_record(path).experiment == tiny("apd")
    lines = path.read_text().splitlines()
    assert [line.split(":")[0].strip(' "') for line in lines[1:-1]] == list(content), "one entry a line: small diffs"


def test_a_record_says_where_it_came_from_and_how_it_went(content):
    assert content["experiment"]["training"]["iterations"] == 6
    assert content["data"]["images"] == 3
    assert content["data"]["split"] == "val"
    assert len(content["data"]["fingerprint"]) == len(content["data"]["training_fingerprint"]) == 64
    assert content["data"]["fingerprint"] != content["data"]["training_fingerprint"]
    assert set(content["git"]) == {"commit", "clean"}
    assert torch.__version__.startswith(content["versions"]["torch"])
    assert "not installed" not in content["versions"].values()
    assert {name: content["device"][name] for name in ("type", "precision")} == {"type": "cpu", "precision": "fp32"}
    assert content["device"]["threads"] == torch.get_num_threads()
    assert content["started"].endswith("+00:00")
    assert 0 < content["seconds_per_iteration"] < content["wall_seconds"] < 600
    assert content["peak_memory_bytes"] > 10**7
    assert content["parameters"] > 10**4
    assert content["curves"]["iteration"] == [1, 2, 3, 4, 5, 6]
    terms = {"task", "auxiliary", "apd.regularisation", "apd.alignment", "apd.observation", "apd.pixel_kd", "loss"}
    assert set(content["curves"]) == {"iteration", "learning_rate"} | terms
    assert [(e["step"], e["split"]) for e in content["evaluations"]] == [(3, "val"), (6, "val")]
    assert len(content["weights_sha256"]) == 64
    assert not any(part.startswith("/") for part in content["command"].split()), "no absolute path"


def test_scores_are_computed_from_the_matrices_whenever_it_is_read(content, tmp_path):
    record = read_record(written(tmp_path, content))
    assert record.scores.miou == scores(torch.tensor(content["confusion"])).miou
    assert record.teacher_scores.aacc == scores(torch.tensor(content["teacher"]["confusion"])).aacc
    agreed = torch.tensor(content["teacher"]["agreement"], dtype=torch.float64)
    assert record.agreement == agreed.trace() / agreed.sum()
    perfect = copy.deepcopy(content)
    perfect["confusion"] = (torch.eye(10, dtype=torch.int64) * 5).tolist()
    perfect["teacher"]["agreement"] = perfect["confusion"]
    again = read_record(written(tmp_path, perfect))
    assert (again.scores.miou, again.scores.aacc, again.agreement) == (1.0, 1.0, 1.0)
    assert "miou" not in json.dumps(content).replace("expected_miou", "").lower()


def test_without_a_teacher_there_are_no_scores_of_one(tmp_path, monkeypatch):
    monkeypatch.setenv("APD_RUNS", str(tmp_path))
    record = train(tiny())
    assert (record.content["teacher"], record.teacher_scores, record.agreement) == (None, None, None)


def entry(*path):
    """A change of one entry; `...` removes it."""

    def change(content, value):
        owner = content
        for key in path[:-1]:
            owner = owner[key]
        if value is ...:
            del owner[path[-1]]
        else:
            owner[path[-1]] = value

    return change


NINE = [[1] * 10] * 9
DAMAGES = [
    (entry("confusion"), ..., "entry 'confusion' is missing"),
    (entry("wall_seconds"), "long", "wall_seconds = 'long' is not a finite number"),
    (entry("wall_seconds"), math.nan, "wall_seconds = nan is not a finite number"),
    (entry("parameters"), True, "parameters = True is not a whole number"),
    (entry("schema"), 99, "schema 99 is not 1, which this code reads"),
    (entry("experiment", "seed"), 7, "is not that of its experiment"),
    (entry("fingerprint"), "0" * 12, "fingerprint 000000000000 is not that of its experiment"),
    (entry("experiment", "sed"), 7, "Experiment has no field 'sed'; did you mean 'seed'?"),
    (entry("experiment", "training", "momentum"), 2, "TrainingConfig.momentum = 2.0: expected 0 <= momentum < 1"),
    (entry("data", "class_names"), ["road"], "data.class_names must be a list of at least two texts"),
    (entry("data", "split"), ..., "entry 'data.split' is missing"),
    (entry("data", "images"), "3", "data.images = '3' is not a whole number"),
    (entry("confusion"), NINE, "confusion must be a 10 x 10 matrix of counts >= 0"),
    (entry("confusion"), [*NINE, [1] * 9 + [-1]], "confusion must be a 10 x 10 matrix of counts >= 0"),
    (entry("confusion"), [*NINE, [1] * 9 + [2**70]], "confusion must be a 10 x 10 matrix of counts >= 0"),
    (entry("confusion"), [*NINE, [1] * 9 + ["1"]], "confusion must be a 10 x 10 matrix of counts >= 0"),
    (entry("teacher"), None, "teacher must be there exactly when the experiment has one"),
    (entry("teacher", "agreement"), ..., "teacher.agreement must be a 10 x 10 matrix of counts >= 0"),
    (entry("teacher", "confusion"), NINE, "teacher.confusion must be a 10 x 10 matrix of counts >= 0"),
    (entry("evaluations", 1), 6, "evaluations[1] must hold step"),
    (entry("evaluations", 0, "confusion"), NINE, "evaluations[0].confusion must be a 10 x 10 matrix of counts >= 0"),
    (entry("curves", "iteration"), ..., "entry 'curves.iteration' is missing"),
    (entry("curves", "loss"), [1.0], "curves.loss must be as long as curves.iteration"),
    (entry("curves", "loss"), [math.inf] * 6, "curves.loss must be a list of finite numbers"),
]


@pytest.mark.parametrize(("change", "value", "message"), DAMAGES)
def test_a_damaged_record_is_refused_with_file_and_entry(content, tmp_path, change, value, message):
    damaged = copy.deepcopy(content)
    change(damaged, value)
    path = written(tmp_path, damaged)
    with pytest.raises(RecordError) as caught:
        read_record(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert str(caught.value).endswith("Restore the file (records are committed), or delete it to have it made again")


@pytest.mark.parametrize("text", ["", "{", "\x00", "[1, 2]", "{}"])
def test_a_file_that_is_no_record_is_refused_by_name(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(
        RecordError, match=rf"{path}: (cannot be read as JSON|expected a JSON object|entry 'schema' is)"
    ):
        read_record(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(RecordError, match=f"{path}: cannot be read as JSON"):
        read_record(path)
    with pytest.raises(RecordError, match=r"missing\.json: cannot be read as JSON"):
        read_record(tmp_path / "missing.json")


def test_the_records_of_a_folder_come_in_the_order_of_their_names(content, tmp_path):
    for name in ("b.json", "a.json"):
        written(tmp_path, content, name)
    (tmp_path / "notes.txt").touch()
    assert [record.source for record in read_records(tmp_path)] == [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(RecordError, match=r"c\.json: entry 'schema' is missing"):
        read_records(tmp_path)
    with pytest.raises(RecordError, match=r"scenes-tiny: no records; .*apd campaign scenes-tiny"):
        read_records(tmp_path / "scenes-tiny")


def test_a_record_that_cannot_be_written_is_told(content, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot write .*a\.json: .*; free space or choose another folder"):
        Record(content).save(tmp_path / "file" / "a.json")


CHANGES = [
    (entry("confusion", 1, 2), 77, "confusion: 1 of 100 numbers differ, the first is {} in the record and 77 here"),
    (entry("teacher", "agreement", 0, 0), 77, "teacher.agreement: 1 of 100 numbers differ, the first is {}"),
    (entry("evaluations", 1, "confusion", 0, 0), 77, "evaluations[1].confusion: 1 of 100 numbers differ"),
    (entry("curves", "loss", 3), 0.5, "curves.loss: 1 of 6 numbers differ, the first is {}"),
    (entry("curves", "loss"), ..., "curves.loss: ["),
    (entry("data", "fingerprint"), "0", "data.fingerprint: {} in the record and '0' here"),
    (entry("weights_sha256"), "0", "weights_sha256: {} in the record and '0' here"),
]


@pytest.mark.parametrize(("change", "value", "line"), CHANGES)
def test_what_came_out_otherwise_is_named_once_and_what_no_replay_repeats_is_left_alone(content, change, value, line):
    again = copy.deepcopy(content) | {"wall_seconds": 1.0, "started": "", "git": {}, "core_seconds_per_iteration": 2}
    assert list(differences(content, again)) == []
    change(again, value)
    (found,) = differences(content, again)
    assert found.startswith(line.split("{}")[0])
    assert found.endswith(line.split("{}")[-1]) or not line.endswith("here")


def test_an_entry_that_a_record_of_old_does_not_have_is_no_difference(content):
    old = copy.deepcopy(content)
    del old["teacher"]["weights_sha256"], old["curves"]["apd.alignment"]
    assert list(differences(old, content)) == []
