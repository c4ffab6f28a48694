"""Checkpoint and record hold what the data of a run are and mean, and whoever uses these compares it."""

import json
import shutil
from dataclasses import replace

import pytest
from bad_input import refused
from own_folders import leave, make
from small_detection import small
from small_experiments import DATA, stopped, tiny

from apd.data.images import DataError
from apd.data.scenes import Scenes
from apd.training.checkpoint import CheckpointError
from apd.training.run import run_folder, train

MEANT = {  # of dataset.yaml -> what of the split train is named
    "classes: [crop, soil]": "class_names of the split train: 'soil' then, 'crop' now",
    "classes: [soil, crop]\nvalues: [1, 0]": "file_values of the split train: [] then, [1, 0] now",
    "classes: [soil, crop]\nignore: [9]": "void_values of the split train: [] then, [9] now",
    "classes: [soil, crop]\ncolours: [[0, 0, 0], [1, 1, 1]]": "file_colours of the split train: [] then, [[0, 0, 0],",
}


@pytest.mark.parametrize("changed", [*MEANT, "train", "val", "test"])
def test_a_run_goes_on_and_is_used_with_what_it_was_begun_with_alone(changed, runs, tmp_path, monkeypatch, capsys):
    folder, words = tmp_path / "fields", MEANT.get(changed, f"fingerprint of the split {changed}: ")
    data = replace(DATA, name="folder", folder=str(folder), evaluation_split="test")
    experiment = replace(tiny(), data=data)

    def prepare(*, change):
        make(folder, test=2)
        if change and changed in MEANT:
            (folder / "dataset.yaml").write_text(changed)
        elif change:
            shutil.copy(folder / f"images/{changed}/{changed}000.png", folder / f"images/{changed}/{changed}001.png")

    def refuse(begun):
        prepare(change=True)
        refused(lambda: train(experiment), CheckpointError, names=(begun, words))
        prepare(change=False)

    prepare(change=False)
    stopped(experiment, 3)
    refuse("begun with other data")
    assert list(train(experiment).identities) == ["train", "val", "test"]
    refuse("other images or labels")
    file, image = run_folder(experiment) / "record.json", folder / "images/val/val000.png"
    for older in (False, True):
        if older:  # a record of before there were identities
            content = json.loads(file.read_text()) | {"digest": ""}
            del content["data"]["identities"], content["digest"]
            file.write_text(json.dumps(content))
            prepare(change=False)
            assert train(experiment).content == content
        prepare(change=True)
        other = changed in MEANT and (not older or "class_names" in words)
        for command in (("evaluate", file, "--split", "train"), ("predict", file, image, "--to", tmp_path)):
            assert leave(*command) == int(other)
            said = capsys.readouterr().err
            assert words.split(": ")[1] in said if other else ("of an older kind" in said) == older
            assert "of train are not those" in said or changed != "train" or command[0] != "evaluate"
    shutil.move(image, seen := tmp_path / "seen.png")
    shutil.rmtree(folder)
    assert leave("predict", file, seen, "--to", tmp_path) == 0, "a network is used where its data are not"


def test_a_split_without_a_label_that_counts_is_refused_before_a_teacher_is_trained(runs, monkeypatch):
    objects = small("roi_apd")
    objects, drawn = replace(objects, data=replace(objects.data, least_pixels=10**6)), Scenes.__getitem__
    refused(lambda: train(objects), DataError, names=("scenes: the split train has no annotation",))
    monkeypatch.setattr(Scenes, "__getitem__", lambda *at: [sample := drawn(*at), sample.labels_HW.fill_(255)][0])
    refused(lambda: train(tiny("apd")), DataError, names=("scenes: the split train has no labelled pixel",))
    assert not list(runs.rglob("log.jsonl"))
