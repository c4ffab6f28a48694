"""A record holds evidence and no score: scores are computed from it when it is read, and what was edited is refused."""

import copy
import json
import re

import pytest
import torch
from small_detection import small
from small_experiments import tiny

from apd.evaluation.inference import scores
from apd.training.record import Record, RecordError, differences, read_record, read_records
from apd.training.run import train


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """What a run of each task with a teacher leaves behind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("APD_RUNS", str(tmp_path_factory.mktemp("runs")))
        return {each.task: train(each).content for each in (tiny("apd"), small("roi_apd"))}


@pytest.fixture
def content(contents):
    return contents["segmentation"]


def written(folder, content, name="a.json"):
    path = folder / name
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_a_record_comes_back_as_it_was_saved(contents, tmp_path, task):
    path, content = tmp_path / "new" / "folder" / "a.json", contents[task]
    record = Record(content).save(path)
    assert read_record(path).content == record.content == content
    lines = path.read_text().splitlines()
    assert [line.split(":")[0].strip(' "') for line in lines[1:-1]] == list(content), "one entry a line: small diffs"


def test_a_record_says_where_it_came_from_and_how_it_went(content):
    data, device = content["data"], content["device"]
    assert content["experiment"]["training"]["iterations"] == 6
    assert (data["images"], data["split"]) == (3, "val")
    assert len(data["fingerprint"]) == len(data["training_fingerprint"]) == len(content["weights_sha256"]) == 64
    assert data["fingerprint"] != data["training_fingerprint"]
    assert set(content["git"]) == {"commit", "clean"}
    assert torch.__version__.startswith(content["versions"]["torch"])
    assert "not installed" not in content["versions"].values()
    assert (device["type"], device["precision"], device["threads"]) == ("cpu", "fp32", torch.get_num_threads())
    assert content["started"].endswith("+00:00")
    assert 0 < content["seconds_per_iteration"] < content["wall_seconds"] < 600
    assert content["peak_memory_bytes"] > 10**7
    assert content["parameters"] > 10**4
    assert content["curves"]["iteration"] == [1, 2, 3, 4, 5, 6]
    terms = {"task", "auxiliary", "apd.regularisation", "apd.alignment", "apd.observation", "apd.pixel_kd", "loss"}
    assert set(content["curves"]) == {"iteration", "learning_rate"} | terms
    assert [(e["step"], e["split"]) for e in content["evaluations"]] == [(3, "val"), (6, "val")]
    assert not any(part.startswith("/") for part in content["command"].split()), "no absolute path"


def test_scores_are_computed_from_the_matrices_whenever_it_is_read(content, tmp_path):
    record = read_record(written(tmp_path, content))
    assert record.scores.miou == scores(torch.tensor(content["confusion"])).miou
    assert record.teacher_scores.aacc == scores(torch.tensor(content["teacher"]["confusion"])).aacc
    perfect = copy.deepcopy(content)
    del perfect["digest"]
    counts = torch.tensor(perfect["confusion"]).sum(1).diag().tolist()
    perfect["confusion"] = perfect["teacher"]["confusion"] = perfect["teacher"]["agreement"] = counts
    again = read_record(written(tmp_path, perfect))
    assert (again.scores.miou, again.scores.aacc, again.agreement) == (1.0, 1.0, 1.0)
    assert "miou" not in json.dumps(content).replace("expected_miou", "").lower()


def test_scores_of_detection_are_computed_from_the_tables(contents):
    content = copy.deepcopy(contents["detection"])
    del content["digest"]
    for rows in content["ap"]["boxes"]["ap"]:
        rows[:] = [[None if value is None else 0.25 for value in row] for row in rows]
    record = Record(content)
    assert (record.headline, record.ap["boxes"].ap50) == (("box AP", 0.25), 0.25)


def test_scores_of_the_other_task_are_refused_with_the_right_ones_named(contents):
    names = ("scores", "teacher_scores", "agreement")
    for task, instead, refused in (("detection", "ap", names), ("segmentation", "scores", ("ap",))):
        for name in refused:
            with pytest.raises(RecordError, match=rf"a record of {task} has no .*: use Record\.{instead}$"):
                getattr(Record(contents[task]), name)


def entry(*path):
    """A change of one entry; `...` removes it."""

    def change(content, value):
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value
        if value is ...:
            del content[path[-1]]

    return change


def test_the_records_of_a_folder_come_in_the_order_of_their_names(content, tmp_path):
    paths = [str(written(tmp_path, content, name)) for name in ("b.json", "a.json")]
    (tmp_path / "notes.txt").touch()
    assert [record.source for record in read_records(tmp_path)] == paths[::-1]
    with pytest.raises(RecordError, match=r"scenes-tiny: no records; .*apd campaign scenes-tiny"):
        read_records(tmp_path / "scenes-tiny")


CHANGES = [
    (entry("confusion", 1, 2), 77, "confusion: 1 of 100 numbers differ, the first is {} in the record and 77 here"),
    (entry("evaluations", 1, "confusion", 0, 0), 77, "evaluations[1].confusion: 1 of 100 numbers differ"),
    (lambda content, more: content["evaluations"].append(more), {}, "evaluations[2]: None in the record and {} here"),
    (entry("curves", "loss", 3), 0.5, "curves.loss: 1 of 6 numbers differ, the first is {}"),
    (entry("curves", "loss"), ..., "curves.loss: ["),
    (entry("weights_sha256"), "0", "weights_sha256: {} in the record and '0' here"),
]


@pytest.mark.parametrize(("change", "value", "line"), CHANGES)
def test_what_came_out_otherwise_is_named_once_and_what_no_replay_repeats_is_left_alone(content, change, value, line):
    again = copy.deepcopy(content) | {"wall_seconds": 1.0, "started": "", "git": {}, "core_seconds_per_iteration": 2}
    assert list(differences(content, again)) == []
    change(again, value)
    (found,) = differences(content, again)
    assert re.match(re.escape(line).replace(r"\{\}", ".*"), found)


def test_an_entry_that_a_record_of_old_does_not_have_is_no_difference(content):
    old = copy.deepcopy(content)
    del old["teacher"]["weights_sha256"], old["curves"]["apd.alignment"]
    assert list(differences(old, content)) == []
