"""Before anything is trained labels are counted and sizes compared: what cannot be learned or scored is named."""

import re
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from own_folders import leave, make, trained
from PIL import Image

from apd.config import inference_options
from apd.config.experiment import DataConfig, Experiment, ExperimentError
from apd.config.inference_options import WHOLE_IMAGE, InferenceOptions, least_side, require_sides, shown_size
from apd.data.census import Census, census_of
from apd.data.dataset_yaml import open_folder
from apd.data.images import DataError, LongSide
from apd.data.instances import InstanceSpec
from apd.evaluation.inference import too_weak
from apd.models import segmenter
from apd.training.record import Record, read_record
from apd.training.run import runs_folder

pytestmark = pytest.mark.usefixtures("own_runs")
OWN_SIZE = ["--data.height", "0", "--data.width", "0"]
OWN, FIXED = dict(height=0, width=0), dict(height=64, width=96)


def test_counts_are_those_of_the_labels_however_read_and_shares_those_of_the_pixels_that_count(tmp_path):
    folder = make(tmp_path / "fields", labels=(0, 1, 255), size=[(64, 96), (33, 40)])
    kept = open_folder(folder, "train", cache=True)
    census = census_of({"train": kept, "val": LongSide(open_folder(folder, "val", cache=False), 64)})
    expected = np.bincount(np.concatenate([sample.labels_HW.numpy().ravel() for sample in kept]), minlength=256)
    assert census.counts["train"].tolist() == [expected[0], expected[1], expected[255]]
    assert census.counts["val"].sum() == sum(sample.labels_HW.numel() for sample in open_folder(folder, "val"))
    assert census.images == {"train": 4, "val": 2}
    assert census.warnings("here") == []
    spec = InstanceSpec("pets", ("cat", "dog", "newt", "bird"))
    counts = {"train": np.array([2500, 7499, 1, 0, 10_000]), "val": np.array([1, 0, 0, 0, 0])}
    head, *rows = (" ".join(line.split()) for line in Census(spec, {"train": 7, "val": 1}, counts).table())
    assert head == "class train val (share of the labelled objects; ignored: of all)"
    shares = ["cat 25.00 % 100.00 %", "dog 74.99 % none", "newt 0.01 % none", "bird none none", "ignored 50.00 % none"]
    assert rows == [*shares, "images 7 1"]


THREE = dict(yaml="classes: [soil, crop, weed]\n")
REFUSED = {
    "all ignored": (dict(labels=(255,)), "", "train has no labelled pixel: all masks are ignored (value 255)"),
    "val void": (dict(yaml="classes: [soil, crop]\nignore: [9]\n"), "val 9", "val has no labelled .*(value 9 or 255"),
    "one class": (dict(labels=(0,)), "", "the masks of train hold one class only, soil; class crop occurs in none"),
    "one of many": (dict(labels=(1,)) | THREE, "", "crop; the classes soil, weed occur in none of them, so there is"),
    "0 and 255": (dict(labels=(0, 255)), "", "255 is ignored; if it means crop .* `values: [0, 255]`"),
    "255 and 1": (dict(labels=(255, 1)), "", "255 is ignored; if it means soil .* `values: [255, 1]`"),
}
WARNED = {
    "nowhere": (THREE, "", "class weed occurs nowhere in train or val"),
    "nowhere and 255": (THREE | dict(labels=(0, 1, 255)), "", "weed occurs nowhere .* it means weed .* [0, 1, 255]`"),
    "not learned": (THREE, "val 2", "class weed occurs in val but in nothing of train"),
    "not scored": ({}, "val 1", "class soil occurs in train but not in val: its scores say nothing of it"),
}


def made(case, tmp_path):
    """The folder of a case, in which all masks of a split may have got one value, and its message as a pattern."""
    changes, afterwards, message = case
    folder = make(tmp_path / "fields", **changes)
    if afterwards:
        split, value = afterwards.split()
        for path in (folder / "masks" / split).iterdir():
            Image.new("L", Image.open(path).size, int(value)).save(path)
    return folder, re.sub(r"([\[\]()])", r"\\\1", message)


@pytest.mark.parametrize("fault", [*REFUSED, *WARNED])
def test_labels_that_cannot_be_learned_are_refused_and_a_class_that_is_missing_somewhere_is_a_warning(fault, tmp_path):
    folder, message = made((REFUSED | WARNED)[fault], tmp_path)
    splits = {split: open_folder(folder, split) for split in ("train", "val")}
    if fault in REFUSED:
        with pytest.raises(DataError, match=message):
            census_of(splits).warnings("here")
    else:
        assert sum(bool(re.match(f"here: .*{message}", line)) for line in census_of(splits).warnings("here")) == 1


def test_a_warning_and_the_table_come_once_before_the_teacher(tmp_path, capsys):
    folder, message = made(WARNED["not learned"], tmp_path)
    assert trained(folder) == 0
    captured = capsys.readouterr()
    assert len(re.findall(f"warning: .*{message}", captured.err)) == 1, "once, not for the teacher again"
    assert captured.out.index("class  ") < captured.out.index(f"{folder.name}-teacher: step 0"), "the table comes first"
    assert trained(folder, "--seed", "1", "--dry-run") == 0
    assert re.search(message, capsys.readouterr().out)


def test_colours_that_all_count_nowhere_are_refused_and_no_value_is_advised(tmp_path):
    yaml = "classes: [soil, crop]\ncolours: [[0, 0, 0], [9, 9, 9]]\nignore: [[7, 7, 7]]\n"
    folder = make(tmp_path / "fields", yaml=yaml)
    for width, message in (
        (0, r"train has no labelled pixel: all masks are ignored \(colours of `ignore`"),
        (48, r"one class only, crop; class soil .* nothing to learn; check the masks"),
    ):
        mask = Image.new("RGB", (96, 64), (7, 7, 7))
        mask.paste((9, 9, 9), (0, 0, width, 64))
        for path in folder.glob("masks/*/*"):
            mask.save(path)
        with pytest.raises(DataError, match=message):
            census_of({"train": open_folder(folder, "train")}).warnings("here")


def test_check_counts_every_split_of_a_folder_and_named_sets_which_no_start_counts(tmp_path, monkeypatch, capsys):
    assert leave("check", make(tmp_path / "fields", test=1)) == 0
    assert capsys.readouterr().out.split()[:4] == ["class", "train", "val", "test"]
    assert leave("check", "scenes") == 0
    assert re.search(r"images +200 +100 +100", capsys.readouterr().out)
    folder, message = made(REFUSED["0 and 255"], tmp_path)
    for name, answer in (("camvit", "did you mean 'camvid'"), ("camvid", "APD_DATA is not set"), (folder, message)):
        assert leave("check", name) == 1
        assert re.search(answer, capsys.readouterr().err)
    fixed = make(folder, labels=(0, 255), yaml="classes: [soil, crop]\nvalues: [0, 255]\n")
    assert census_of({"train": open_folder(fixed, "train")}).counts["train"].min() == 0, "nothing is ignored"
    monkeypatch.setattr("apd.training.segmentation.census_of", lambda *_: pytest.fail("counted"))
    assert leave("train", "--dry-run", "--training.batch-size", "2") == 0
    assert "`apd check scenes` counts those of every image" in capsys.readouterr().out


def test_predictions_of_one_class_and_scores_of_a_constant_answer_are_said_in_words(tmp_path, capsys, monkeypatch):
    for matrix, message in (
        ([[6, 0], [2, 0]], "every pixel is called soil"),
        ([[0, 6], [0, 2]], "every pixel is called crop"),
        ([[3, 3], [2, 0]], "an mIoU of 0.1875 is no better than that of always answering soil, 0.3750"),
    ):
        assert too_weak(torch.tensor(matrix), ["soil", "crop"]).startswith(message)
    assert too_weak(torch.tensor([[6, 0], [1, 1]]), ["soil", "crop"]) == ""
    assert too_weak(torch.tensor([[0, 0], [0, 0]]), ["soil", "crop"]) == ""
    folder = make(tmp_path / "fields")
    assert trained(folder) == 0
    path = Path(capsys.readouterr().out.splitlines()[-1])
    content = {name: value for name, value in read_record(path).content.items() if name != "digest"}
    useless = [[sum(row), 0] for row in content["confusion"]]
    Record(content | {"confusion": useless}).save(path)
    assert trained(folder) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].startswith("warning: the student: every pixel is called soil")
    assert captured.out.splitlines()[-1] == str(path)
    monkeypatch.setattr("apd.evaluation.inference.confusion_of", lambda *_, **__: torch.tensor(useless))
    assert leave("evaluate", str(path)) == 0
    assert f"warning: {too_weak(torch.tensor(useless), ['soil', 'crop'])}" in capsys.readouterr().err


def test_what_a_network_sees_follows_from_size_longest_side_scales_and_window():
    assert inference_options.SMALLEST_SIDE == segmenter.SMALLEST_SIDE == 32
    for data, inference, size, shown, least in (
        (OWN, WHOLE_IMAGE, (31, 200), (31, 200), 31),
        (FIXED, WHOLE_IMAGE, (31, 200), (64, 96), 64),
        (OWN | dict(long_side=256), WHOLE_IMAGE, (64, 640), (26, 256), 26),
        (FIXED | dict(long_side=48), WHOLE_IMAGE, (1, 1), (32, 48), 32),
        (OWN, InferenceOptions(scales=(0.25, 1.0)), (64, 640), (64, 640), 16),
        (OWN, InferenceOptions(window=(48, 48), scales=(0.25,)), (20, 24), (20, 24), 48),
    ):
        config = DataConfig(name="camvid", **data)
        assert (shown_size(config, *size), least_side(config, inference, *size)) == (shown, least)
        with nullcontext() if least >= 32 else pytest.raises(DataError, match=rf"^b has .* a side of {least} pixels"):
            require_sides(config, inference, [("a", (640, 640)), ("b", size)])


DOORS = {
    "labels": (dict(labels=(0, 255)), [], r"255 is ignored; if it means crop .* `values: \[0, 255\]`"),
    "small images": (dict(size=(20, 24)), [], r"val000.png has 20×24 pixels .* enlarge it or leave it out"),
    "scales": (dict(size=(64, 640)), ["--inference.scales", "0.25", "1"], r"a side of 16 .*larger --scales"),
    "long side": (dict(size=(64, 640)), ["--data.long-side", "256"], r"a side of 26 .*larger --data.long-side"),
    "window": ({}, ["--inference.window", "16", "64"], r"a side of 16 .*a window of at least 32x32"),
    "of test": (dict(size=[(64, 96), (64, 96), (20, 96)], test=3), [], r"test002.png has 20×96"),
}


@pytest.mark.parametrize("door", DOORS)
def test_bad_labels_and_too_small_images_are_named_before_training_and_by_a_dry_run(door, tmp_path, capsys):
    changes, options, message = DOORS[door]
    folder = make(tmp_path / "icons", **changes)
    assert trained(folder, *OWN_SIZE, *options) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not list(runs_folder().glob("*/log.jsonl")), "nothing was trained"
    assert trained(folder, *OWN_SIZE, *options, "--dry-run") == 1
    assert re.search(message, capsys.readouterr().out)


def test_small_training_images_are_no_fault_and_others_are_refused_before_anything_is_written(tmp_path, capsys):
    narrow, fixed = DataConfig(name="camvid", height=64, width=640, long_side=256), DataConfig(**FIXED)
    for data, scale, field in ((narrow, 1.0, "DataConfig.long_side"), (fixed, 0.4, "Experiment.inference")):
        with pytest.raises(ExperimentError, match=f"{field} = .* got 26"):
            Experiment(data=data, inference=InferenceOptions(scales=(scale,)))
    folder = make(tmp_path / "fine", size=(20, 24))
    for path in folder.glob("*/val/*.png"):
        Image.open(path).resize((96, 64), Image.Resampling.NEAREST).save(path)
    assert trained(folder, *OWN_SIZE) == 0
    run = capsys.readouterr().out.splitlines()[-1]
    wide, thin = tmp_path / "wide.png", tmp_path / "thin.png"
    Image.new("RGB", (96, 64)).save(wide)
    Image.new("RGB", (200, 31)).save(thin)
    assert leave("predict", run, wide, thin, "--to", tmp_path / "seen") == 1
    assert re.search(r"thin.png has 31×200 pixels .* a side of 31", capsys.readouterr().err)
    assert leave("evaluate", run, "--scales", "0.25") == 1
    assert re.search(r"val000.png has 64×96 pixels .* larger --scales", capsys.readouterr().err)
