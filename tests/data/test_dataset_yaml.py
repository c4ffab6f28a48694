"""A folder of images and masks with a dataset.yaml: described, laid out in many ways, checked, trained on."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from miniatures import MASK, STRIPES, files, write_folder
from PIL import Image

from apd.cli.app import main
from apd.config.datasets import build_splits
from apd.config.experiment import DataConfig
from apd.data.dataset_yaml import folder_spec, locate_folder, open_folder
from apd.data.images import DataError, MissingData
from apd.data.specs import distinct_colours

LIST = "colours: [[120, 90, 60], [0, 255, 0]]"
COLOURS = np.array([[120, 90, 60], [0, 255, 0], [0, 0, 0]], dtype=np.uint8)


@pytest.fixture
def folder(tmp_path, own_runs):
    """The smallest description, and two splits in their default places."""
    return write_folder(tmp_path / "fields", files("train", "000", "001", "002", "003"), files("val", "010", "011"))


def describe(folder, text):
    write_folder(folder, yaml=text)


def test_one_line_is_enough(folder):
    spec, train = folder_spec(folder), open_folder(folder, "train")
    assert (spec.name, spec.class_names, spec.palette) == ("fields", ("soil", "crop"), distinct_colours(2))
    assert (spec.ignore_index, spec.void_values, spec.file_values) == (255, (), ())
    assert [sample.name for sample in open_folder(folder, "val")] == ["010", "011"]
    assert (len(train), train[0].image_3HW.shape) == (4, (3, 40, 48))
    assert train[0].labels_HW.unique().tolist() == [0, 1, 255]
    assert open_folder(folder, "val", height=32, width=32)[0].labels_HW.shape == (32, 32)


def test_values_ignored_ones_colours_and_a_name_can_be_given(tmp_path):
    yaml = "name: my-fields\nvalues: [7, 255]\nignore: [0, 9]\npalette: [[1, 2, 3], [4, 5, 6]]\n"
    folder = write_folder(tmp_path / "fields", files("val", "1"), yaml=yaml, values=(7, 255, 9))
    write_folder(folder, files("train", "1"), yaml=yaml, values=(0, 7, 9))
    spec = folder_spec(folder)
    assert (spec.name, spec.palette, spec.file_values) == ("my-fields", ((1, 2, 3), (4, 5, 6)), (7, 255))
    assert torch.equal(open_folder(folder, "val")[0].labels_HW, torch.from_numpy(MASK))
    assert open_folder(folder, "train")[0].labels_HW.unique().tolist() == [0, 255]


def test_splits_can_lie_anywhere_and_be_lists_of_names(folder, tmp_path):
    where = write_folder(tmp_path / "elsewhere", files("all", "000", "001", "002", "003"))
    train = f"{{images: {where}/images/all, masks: ../elsewhere/masks/all, list: train.txt}}"
    val = "{images: ../elsewhere/images/all, masks: ../elsewhere/masks/all, list: val.txt}"
    describe(folder, f"splits:\n  train: {train}\n  val: {val}\n  test: {{images: images/val, masks: masks/val}}\n")
    (folder / "train.txt").write_text("003\n001.jpg\n\n")
    (folder / "val.txt").write_text("000.png\n")
    names = {split: [sample.name for sample in open_folder(folder, split)] for split in ("train", "val", "test")}
    assert names == {"train": ["003", "001"], "val": ["000"], "test": ["010", "011"]}


def test_a_relative_path_is_looked_for_below_apd_data_and_then_in_the_working_directory(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    other = Path(shutil.copytree(folder, tmp_path / "data" / "fields"))
    for set_, found in (("", Path("fields")), (tmp_path / "data", other), (tmp_path / "nowhere", Path("fields"))):
        monkeypatch.setenv("APD_DATA", str(set_))
        assert locate_folder("fields") == found
        assert locate_folder(folder) == folder
    with pytest.raises(MissingData, match=r"no dataset.yaml in .*/no and .*/no; give the folder"):
        locate_folder("no")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nclasses: [a, b]\nname: y", "is not valid YAML: name is there twice"),
        ("# classes:", r"names no classes; expected an entry such as classes: \[soil, crop\]"),
        ("- classes: x", r"holds \[\{'classes': 'x'\}\]; expected entries, such as classes: \[soil, crop\]"),
        ("classes: soil", "classes = 'soil'; expected a list of names"),
        ("classes: [no, yes]", r"classes = \[False, True\]; expected a list of names, in quotes where they are"),
        ("ignore: 9", "ignore = 9; expected a list of whole numbers"),
        ("ignore: [1]", r"void_values \[1\] are labels of classes"),
        ("values: [3]", r"file_values \(3,\); expected 2 different values"),
        ("palette: [[1, 2, 3]]", "palette has 1 colours for 2 classes"),
        ("palette: [[1, 2, 3], [1, 2, 256]]", "three values from 0 to 255"),
        ("splits: {valid: {}}", r"unknown entry splits.valid; did you mean 'val'\?"),
        ("splits: {train: 3}", "splits.train = 3; expected entries images, masks or list"),
        ("splits: {val: {}}", r"dataset.yaml has no splits.train; it has val"),
    ],
)
def test_a_description_that_cannot_be_meant_is_refused(folder, text, message):
    describe(folder, text)
    with pytest.raises(DataError, match=message):
        open_folder(folder, "train")


FAULTS = {
    "no folder": (lambda f: shutil.rmtree(f / "masks"), r"data folder .*masks/val is missing"),
    "empty": (lambda f: [path.unlink() for path in f.glob("*/train/*")], "images/train holds no image"),
    "not apart": (
        lambda f: describe(f, "splits: {train: {}, val: {images: images/train, masks: masks/train}}"),
        r"000.jpg is in the splits train and val \(4 such images\); keep them apart",
    ),
    "no list": (lambda f: describe(f, "splits: {train: {list: a.txt}, val: {}}"), "the list .*a.txt is missing"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_first_file_that_is_wrong_is_named_before_any_training(folder, fault):
    change, message = FAULTS[fault]
    change(folder)
    with pytest.raises(DataError, match=message):
        build_splits(DataConfig(name="folder", folder=str(folder), height=0, width=0))


def coloured(folder, yaml):
    """The folder with masks of colours, the last of them of no class."""
    describe(folder, yaml)
    for path in (folder / "masks" / "train").iterdir():
        Image.fromarray(COLOURS[STRIPES]).save(path)
    return folder


@pytest.mark.parametrize("yaml", ["colours: {crop: [0, 255, 0], soil: [120, 90, 60]}", LIST])
def test_colours_of_masks_are_a_table_by_class_or_a_list_in_order(folder, yaml):
    ignored = "\nignore: [[0, 0, 0]]"
    data = open_folder(coloured(folder, yaml + ignored), "train")
    assert torch.equal(data[0].labels_HW, torch.from_numpy(MASK))
    assert folder_spec(folder).palette == ((120, 90, 60), (0, 255, 0))
    swapped = yaml.replace("0, 255, 0", "9, 9, 9").replace("120, 90, 60", "0, 255, 0").replace("9, 9, 9", "120, 90, 60")
    describe(folder, swapped + ignored)
    assert open_folder(folder, "train").fingerprint() != data.fingerprint(), "the same files mean something else"


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("colours: [[120, 90, 60], [0, 250, 0]]\nignore: [[0, 0, 0]]", r"000.png holds the colour \[0, 255, 0\] "),
        ("colours: {soil: [1, 1, 1], crop: [2, 2, 2], tree: [3, 3, 3]}", "colours: tree is no class; .*to ignore"),
        ("colours: ['#ffffff', '#000000']", r"colours = .*; expected a list of \[red, green, blue\], or a table of"),
        ("colours: [[0, 0, 0], [1, 1, 1]]\nvalues: [0, 255]\n", "file_values and file_colours are both given"),
        ("colours: [[0, 0, 0], [1, 1, 1]]\nignore: [[1, 1, 1]]", r"void_colours \[\(1, 1, 1\)\] are those of classes"),
        ("ignore: [[1, 1, 1]]", r"void_colours \[\(1, 1, 1\)\] are given without file_colours"),
    ],
)  # fmt: skip
def test_colours_that_cannot_be_meant_are_refused(folder, yaml, message):
    with pytest.raises(DataError, match=message):
        open_folder(coloured(folder, yaml), "train")


def test_an_entry_as_other_tools_call_it_is_answered_with_its_name_here(folder):
    meant = {"names": "classes", "nc": "classes", "Names": "classes", "colormap": "colours", "ignore_index": "ignore"}
    for entry, name in (meant | {"train": "splits", "mask": "masks", "image": "images"}).items():
        describe(folder, f"{entry}: 3")
        with pytest.raises(DataError, match=f"unknown entry {entry}; did you mean '{name}'"):
            folder_spec(folder)


def test_it_is_trained_on_evaluated_and_predicted_by_command_also_where_stems_repeat(folder, tmp_path, capsys):
    stems = ("a/1", "b/1", "a-b/1")
    shutil.rmtree(folder)
    write_folder(folder, files("train", *stems), files("val", *stems), "masks/train/notes.txt")
    command = f"train --method student --data.name folder --data.folder {folder} --network.backbone test_efficientnet "
    command += (
        "--network.head-width 8 --network.output-stride 16 --training.iterations 1 --data.height 0 --data.width 0 "
    )
    command += "--teacher.training.iterations 1 --data.crop-height 32 --data.crop-width 32"
    assert main(command.split()) == 0
    output = capsys.readouterr()
    assert re.search(r"mIoU 0\.\d+, .* on val; teacher", output.out)
    notes = [line for line in output.err.splitlines() if line.startswith("apd: note: ")]
    assert ["left out, such as" in note for note in notes] == [True]
    (run,) = (path.parent for path in (tmp_path / "runs").glob("fields-student-*/record.json"))

    def written(folder):
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}

    assert main(["evaluate", str(run), "--pictures", str(tmp_path / "maps")]) == 0
    assert written(tmp_path / "maps") == {f"{stem}-labels.png" for stem in stems}
    images = [str(folder / "images/val" / f"{stem}.jpg") for stem in stems]
    assert main(["predict", str(run), *images, "--to", str(tmp_path / "seen")]) == 0
    assert written(tmp_path / "seen") == {f"{stem}-{kind}.png" for stem in stems for kind in ("labels", "overlay")}
    with Image.open(tmp_path / "seen/a/1-labels.png") as labels:
        assert labels.size == (48, 40)  # shown at its own size, as in training
    write_folder(folder, files("train", "20"))
    capsys.readouterr()
    assert main(command.split()) != 0
    assert "was made from other images or labels than" in capsys.readouterr().err
