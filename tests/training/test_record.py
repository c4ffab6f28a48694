"""A record holds evidence and no score, from which scores are computed; one that was edited is refused when read."""

import copy
import json
import os
import random
import re
import shutil
from pathlib import Path

import pytest
import torch
from bad_input import edited, refused
from small_detection import small
from small_experiments import tiny

from apd.cli.app import main
from apd.evaluation.inference import scores
from apd.training.record import Record, RecordError, differences, read_record, read_records, records_folder
from apd.training.run import train
from apd.training.schema import with_digest

FILES = {"taught": "scenes-tiny/apd-context1-seed0", "alone": "scenes-tiny-tuning/teacher-rate0.03"}
FILES["detection"] = "scenes-detection/roi_apd-seed0"
CONTENTS = {kind: json.loads(next(records_folder("").glob(f"{name}-*")).read_text()) for kind, name in FILES.items()}


def more(value):
    return [entry + 1 for entry in value] if isinstance(value, list) else value + 1000


def back(values):
    return values[::-1]


def transposed(matrix):
    return [list(row) for row in zip(*matrix, strict=True)]


def halved(matrix):
    return [[count // 2 for count in row] for row in matrix]


def pixel_moved(matrix):
    row = max(matrix, key=lambda row: sorted(row)[-2])
    low, high = sorted(range(len(row)), key=row.__getitem__)[-2:]
    row[low], row[high] = row[low] + 1, row[high] - 1
    return matrix


NUMBERS = dict.fromkeys(("wall_seconds", "seconds_per_iteration", "parameters"), (-1, True, 10**30, "1", None, ...))
EVERYWHERE = NUMBERS | {
    "data/images": (-3, 1.5, 2**60),
    "data/class_names": (back, [], {}, [1, 2], lambda names: [*names[:-1], names[0]]),
    "data/class_names/0": ("\x1b[2Jroad", "another"),
    "data/name": ("another",),
    "data/split": ("train", ...),
    "curves/loss/0": (10**400, float("nan"), float("inf"), "1", True),
    "curves/iteration": (back, lambda steps: [*steps[:-1], 10**6], lambda steps: steps[:-1], ...),
    "evaluations": (back, {"a": 1}, [7]),
    "evaluations/0/step": (0, -1, True, ...),
    "evaluations/0/split": (None, 7),
    "other_splits": (7, {"night": []}),
    "git/clean": ("yes",),
    "git/commit": (7,),
    "device/name": ([],),
    "device/threads": (0, 2**53),
    "data/identities": (7, {}, {"val": 7}, {"train": {"fingerprint": "0"}}),
    "experiment/seed": (7,),
    "experiment/training": ([[]], 7),
    "experiment/training/learning_rate": (10**400, "fast"),
    "experiment/network/head": ("no" * 10**5,),
    "experiment/data": ({"x" * 5000: 1},),
    "experiment/sed": (7,),
    "fingerprint": (back, 7),
    "weights_sha256": (...,),
    "schema": (99, ...),
    "teacher": ([], "x", ...),
    "evaluations/0": (6, {}),
    "curves/loss": ([1.0], 7),
}
OF_MATRICES = {
    "confusion": (transposed, halved, pixel_moved, [[1]], back, ..., lambda matrix: [[0] * len(matrix)] * len(matrix)),
    "confusion/0/0": (more, 2**63 - 1, 2**53 + 1, 10**400, -1, 1.5, True, None, "7", [1]),
    "confusion/0/3": (more,),
    "teacher/confusion": (transposed, halved, pixel_moved),
    "teacher": (None,),
    "ap": ({},),
    "teacher/agreement": (transposed, halved, pixel_moved, ...),
    "evaluations/0/confusion": (transposed, halved),
}
OF_TABLES = {
    "ap": (..., 7),
    "ap/masks": (..., {"ap": 7}),
    "ap/boxes/things": (more, back, [1, 2, -1], ...),
    "ap/masks/things/1": (10**6,),
    "ap/boxes/ap/3": ([[0.5] * 4] * 2,),
    "confusion": ([[1]],),
    "teacher/ap": (...,),
    "evaluations/0/ap/boxes/ap": (7,),
    "teacher/ap/masks/things": (back,),
    "ap/boxes/ap/0/0/0": (None, 1.01, -0.1, True, "1", 10**400),
}
EDITS = {"taught": OF_MATRICES | EVERYWHERE, "alone": EVERYWHERE, "detection": NUMBERS | OF_TABLES}


@pytest.mark.parametrize(("kind", "place"), [(kind, place) for kind, places in EDITS.items() for place in places])
def test_what_contradicts_schema_or_other_entries_is_refused_by_name_with_a_digest_and_without(kind, place, tmp_path):
    path, fix = tmp_path / "a.json", "Restore the file (records are committed), or delete it to have it made again"
    for value in EDITS[kind][place]:
        for content in (CONTENTS[kind], with_digest(CONTENTS[kind])):
            path.write_text(json.dumps(edited(content, place, value)))
            message = refused(lambda: read_record(path), RecordError, names=(f"{path}: ", f". {fix}"))
            assert any(key in message for key in ("digest", *place.split("/")) if not key.isdecimal())


def leaves(value, *place):
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
        inside = isinstance(part, dict | list) and part
        yield from leaves(part, *place, str(key)) if inside else ["/".join((*place, str(key)))]


@pytest.mark.parametrize("kind", CONTENTS)
def test_a_digest_shows_a_change_of_any_entry_whatever_the_order_of_entries(kind, tmp_path):
    signed, path = with_digest(CONTENTS[kind] | {"history": []}), tmp_path / "a.json"
    path.write_text(json.dumps(dict(reversed(signed.items())), indent=3))
    assert read_record(path).content == signed
    for place in random.Random(0).sample([place for place in leaves(signed) if "." not in place], 60):
        other = edited(signed, place, lambda old: f"{old}0" if isinstance(old, str) else 0 if old else 1)
        path.write_text(json.dumps(other))
        refused(lambda: read_record(path), RecordError)
    path.write_text(json.dumps(signed | {"log_damaged": True}))
    refused(lambda: read_record(path), RecordError, names=("digest",))


TEXT = json.dumps(CONTENTS["taught"])
BYTES = [
    *(TEXT.replace('"wall_seconds": ', f'"wall_seconds": {value}, "x": ') for value in ("NaN", "1e999", "9" * 5000)),
    *(TEXT[:-1] + ', "schema": 1}', TEXT.replace('"clean": ', '"clean": false, "clean": '), TEXT[:999], TEXT + TEXT),
    *('{"a":' * 10**5, "", '"schema"', "null", "[]", "{}", "\x1b[31m", "\ufeff" + TEXT),
]


def test_a_file_that_is_no_record_no_regular_file_or_too_large_is_refused_at_once(tmp_path):
    for number, content in enumerate([*map(str.encode, BYTES), TEXT.encode("utf-16"), b"\xff"]):
        (tmp_path / f"{number}.json").write_bytes(content)
    os.mkfifo(tmp_path / "fifo.json")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "endless.json").symlink_to("/dev/zero")
    (tmp_path / "log.json").symlink_to("/proc/kmsg")
    (tmp_path / "a\n9 records are whole.json").touch()
    (tmp_path / "broken.json").symlink_to("nowhere")
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(2**40)
    for path in (*tmp_path.iterdir(), tmp_path / "missing.json"):
        refused(lambda path=path: read_record(path), RecordError, names=(ascii(path.name)[1:-1],))


def test_a_folder_is_checked_file_by_file(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "old.json").write_text(TEXT)
    (tmp_path / "run" / "record.json").write_text(json.dumps(with_digest(CONTENTS["detection"])))
    shutil.copytree(records_folder("speed"), tmp_path / "speed")
    assert main(["records", "check", str(tmp_path)]) == main(["records", "check", str(tmp_path / "old.json")]) == 0
    line, _ = capsys.readouterr().out.splitlines()
    assert "2 records are whole, 1 of them of the older kind" in line
    assert "0 refused; 1 files are no records" in line
    (tmp_path / "bad\x1b[31m.json").write_text(json.dumps(with_digest(CONTENTS["alone"]) | {"wall_seconds": 1.0}))
    os.mkfifo(tmp_path / "run" / "fifo.json")
    assert main(["records", "check", str(tmp_path)]) == main(["records", "check", str(tmp_path / "speed")]) == 1
    printed = capsys.readouterr()
    named = [line.partition(".json: ")[0] for line in printed.out.splitlines()[:2]]
    assert named == [f"{tmp_path}/bad\\x1b[31m", f"{tmp_path}/run/fifo"]
    assert "2 refused" in printed.out
    (tmp_path / "speed" / "a.json").write_text(json.dumps(CONTENTS["alone"]))
    (tmp_path / "speed" / "b.json").write_text(json.dumps(edited(CONTENTS["alone"], "confusion/0/3", more)))
    assert main(["records", "check", str(tmp_path / "speed")]) == 1
    assert "b.json: it counts other labels than " in capsys.readouterr().out
    assert "no records" in printed.err


def test_the_committed_records_are_whole():
    assert main(["records", "check"]) == 0


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """What a run of each task with a teacher leaves behind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("APD_RUNS", str(tmp_path_factory.mktemp("runs")))
        return {each.task: train(each).content for each in (tiny("apd"), small("roi_apd"))}


@pytest.fixture
def content(contents):
    return contents["segmentation"]


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_a_record_comes_back_as_it_was_saved(contents, tmp_path, task):
    path, content = tmp_path / "new" / "folder" / "a.json", contents[task]
    record = Record(content).save(path)
    assert read_record(path).content == record.content == content
    lines = path.read_text().splitlines()
    assert [line.split(":")[0].strip(' "') for line in lines[1:-1]] == list(content), "one entry a line: small diffs"


def test_a_record_says_where_it_came_from_and_how_it_went(content):
    data, device = content["data"], content["device"]
    assert (data["images"], data["split"]) == (3, "val")
    assert data["fingerprint"] != data["training_fingerprint"]
    assert set(content["git"]) == {"commit", "clean"}
    assert torch.__version__.startswith(content["versions"]["torch"])
    assert "not installed" not in content["versions"].values()
    assert (device["type"], device["precision"], device["threads"]) == ("cpu", "fp32", torch.get_num_threads())
    assert content["started"].endswith("+00:00")
    assert 0 < content["seconds_per_iteration"] < content["wall_seconds"] < 600
    assert content["peak_memory_bytes"] > 10**7
    terms = {"task", "auxiliary", "apd.regularisation", "apd.alignment", "apd.observation", "apd.pixel_kd", "loss"}
    assert set(content["curves"]) == {"iteration", "learning_rate"} | terms
    assert not any(part.startswith("/") for part in content["command"].split()), "no absolute path"


def test_scores_are_computed_from_the_matrices_whenever_it_is_read(content):
    record = Record(content)
    assert record.scores.miou == scores(torch.tensor(content["confusion"])).miou
    assert record.teacher_scores.aacc == scores(torch.tensor(content["teacher"]["confusion"])).aacc
    perfect = copy.deepcopy(content)
    del perfect["digest"]
    counts = torch.tensor(perfect["confusion"]).sum(1).diag().tolist()
    perfect["confusion"] = perfect["teacher"]["confusion"] = perfect["teacher"]["agreement"] = counts
    again = Record(perfect)
    assert (again.scores.miou, again.scores.aacc, again.agreement) == (1.0, 1.0, 1.0)
    assert "miou" not in json.dumps(content).replace("expected_miou", "").lower()


def test_scores_of_the_other_task_are_refused_with_the_right_ones_named(contents):
    names = ("scores", "teacher_scores", "agreement")
    for task, instead, wrong in (("detection", "ap", names), ("segmentation", "scores", ("ap",))):
        for name in wrong:
            with pytest.raises(RecordError, match=rf"a record of {task} has no .*: use Record\.{instead}$"):
                getattr(Record(contents[task]), name)


def test_the_records_of_a_folder_come_in_the_order_of_their_names(content, tmp_path):
    paths = [str(tmp_path / name) for name in ("b.json", "a.json", "notes.txt")]
    for path in paths:
        Path(path).write_text(json.dumps(content))
    assert [record.source for record in read_records(tmp_path)] == paths[1::-1]
    with pytest.raises(RecordError, match=r"scenes-tiny: no records; .*apd campaign NAME --records .*scenes-tiny"):
        read_records(tmp_path / "scenes-tiny")


CHANGES = {  # of an entry -> the line that says so
    "confusion/1/2": (77, "confusion: 1 of 100 numbers differ, the first is {} in the record and 77 here"),
    "evaluations/1/confusion/0/0": (77, "evaluations[1].confusion: 1 of 100 numbers differ"),
    "evaluations": (lambda found: [*found, {}], "evaluations[2]: None in the record and {} here"),
    "curves/loss/3": (0.5, "curves.loss: 1 of 6 numbers differ, the first is {}"),
    "curves/loss": (..., "curves.loss: ["),
    "weights_sha256": ("0", "weights_sha256: {} in the record and '0' here"),
}


@pytest.mark.parametrize("place", CHANGES)
def test_what_came_out_otherwise_is_named_once_and_what_no_replay_repeats_is_left_alone(content, place):
    again = copy.deepcopy(content) | {"wall_seconds": 1.0, "started": "", "git": {}, "core_seconds_per_iteration": 2}
    assert list(differences(content, again)) == []
    value, line = CHANGES[place]
    (found,) = differences(content, edited(again, place, value))
    assert re.match(re.escape(line).replace(r"\{\}", ".*"), found)
    old = edited(edited(content, "teacher/weights_sha256", ...), "curves/apd.alignment", ...)  # had no such entries
    assert list(differences(old, content)) == []
