"""A folder of images and masks with a dataset.yaml: described, laid out in many ways, checked, trained on."""

import os
import re
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_input import refused
from miniatures import MASK, STRIPES, files, write_folder
from own_folders import leave, trained
from PIL import Image

from apd.data.dataset_yaml import folder_spec, locate_folder, open_folder
from apd.data.images import DataError, DataWarning, MissingData
from apd.data.specs import distinct_colours

TWO_SPLITS = files("train", "000", "001", "002", "003"), files("val", "010", "011")


@pytest.fixture
def folder(tmp_path, own_runs):
    """The smallest description, and two splits in their default places."""
    return write_folder(tmp_path / "fields", *TWO_SPLITS)


def test_one_line_is_enough_and_values_ignored_ones_colours_and_a_name_can_be_given(folder, tmp_path):
    spec, train = folder_spec(folder), open_folder(folder, "train")
    assert (spec.name, spec.class_names, spec.palette) == ("fields", ("soil", "crop"), distinct_colours(2))
    assert (spec.ignore_index, spec.void_values, spec.file_values) == (255, (), ())
    assert (len(train), train[0].image_3HW.shape) == (4, (3, 40, 48))
    assert train[0].labels_HW.unique().tolist() == [0, 1, 255]
    assert open_folder(folder, "val", height=32, width=32)[0].labels_HW.shape == (32, 32)
    yaml = "name: my-fields\nvalues: [7, 255]\nignore: [0, 9]\npalette: [[1, 2, 3], [4, 5, 6]]\n"
    folder = write_folder(tmp_path / "other", files("val", "1"), yaml=yaml, values=(7, 255, 9))
    write_folder(folder, files("train", "1"), yaml=yaml, values=(0, 7, 9))
    spec = folder_spec(folder)
    assert (spec.name, spec.palette, spec.file_values) == ("my-fields", ((1, 2, 3), (4, 5, 6)), (7, 255))
    assert torch.equal(open_folder(folder, "val")[0].labels_HW, torch.from_numpy(MASK))
    assert open_folder(folder, "train")[0].labels_HW.unique().tolist() == [0, 255]


@pytest.mark.parametrize("colours", ["{crop: [0, 255, 0], soil: [120, 90, 60]}", "[[120, 90, 60], [0, 255, 0]]"])
def test_colours_of_masks_are_a_table_by_class_or_a_list_in_order_and_another_colour_is_refused(folder, colours):
    painted = np.array([[120, 90, 60], [0, 255, 0], [0, 0, 0]], dtype=np.uint8)[STRIPES]
    for path in (folder / "masks" / "train").iterdir():
        Image.fromarray(painted).save(path)

    def opened(*change):
        yaml = f"colours: {colours.replace(*change)}\nignore: [[0, 0, 0]]"
        return open_folder(write_folder(folder, yaml=yaml), "train")

    data = opened("", "")
    assert torch.equal(data[0].labels_HW, torch.from_numpy(MASK))
    assert folder_spec(folder).palette == ((120, 90, 60), (0, 255, 0))
    colours = colours.replace("0, 255, 0", "9, 9, 9").replace("120, 90, 60", "0, 255, 0")
    assert opened("9, 9, 9", "120, 90, 60").fingerprint() != data.fingerprint(), "the same files mean something else"
    refused(lambda: opened("9, 9, 9", "120, 95, 60"), DataError, names=("000.png holds the colour [120, 90, 60]",))


def test_splits_can_lie_anywhere_and_be_lists_of_names(folder, tmp_path):
    where = write_folder(tmp_path / "elsewhere", files("all", "000", "001", "002", "003"))
    train = f"{{images: {where}/images/all, masks: ../elsewhere/masks/all, list: train.txt}}"
    val = "{images: ../elsewhere/images/all, masks: ../elsewhere/masks/all, list: val.txt}"
    test = "{images: images/val, masks: masks/val}"
    write_folder(folder, yaml=f"splits:\n  train: {train}\n  val: {val}\n  test: {test}\n")
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
    refused(lambda: locate_folder("no"), MissingData, names=("no dataset.yaml in", "/no and", "/no; give the folder"))


# what dataset.yaml says beside the classes, the files, and the names of the samples
ACCENT = unicodedata.normalize("NFD", "é")
SYSTEM = (".DS_Store", "Thumbs.db", "desktop.ini", "._1.png", ".cache/2.jpg", "@eaDir/3.jpg")
HIDDEN = [f"{kind}/train/{name}" for kind in ("images", "masks") for name in SYSTEM]
LAYOUTS = {
    "nested": ("", files("train", "a/b/001", "a/2"), "2 001"),
    "nested, stems repeat": ("", files("train", "a/1", "b/1"), "a/1 b/1"),
    "beside": ('masks: "{stem}_mask.png"', "images/train/1.jpg images/train/1_mask.png", "1"),
    "by suffix": ("splits: {train: {images: seg, masks: 'seg/{stem}.png'}}", "seg/1raw.jpg seg/1raw.png", "1raw"),
    "a prefix": ("masks: 'seg_{stem}'", "images/train/a/1.jpg masks/train/a/seg_1.tif", "1"),
    "with the split": ('masks: "labels/{split}/{stem}_seg.png"', "images/train/1.jpg labels/train/1_seg.png", "1"),
    "both": ("images: '{stem}_a.png'\nmasks: '{stem}_b.png'", "images/train/x/1_a.png masks/train/x/1_b.png", "1_a"),
    "masks inside": ("splits: {train: {images: data, masks: data/masks}}", "data/1.jpg data/masks/1.png", "1"),
    "images inside": ("splits: {train: {images: label/raw, masks: label}}", "label/raw/1.jpg label/1.png", "1"),
    "composed and decomposed accents": ("", f"images/train/tür/{ACCENT}.jpg masks/train/tür/é.png", ACCENT),
    "suffixes": ("", "images/train/1.tif masks/train/1.bmp images/train/2.PNG masks/train/2.png", "1 2"),
    "hidden and system files": ("", " ".join([files("train", "1"), *HIDDEN]), "1"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_gives_pairs_and_nothing_is_left_out(tmp_path, layout):
    yaml, paths, names = LAYOUTS[layout]
    data = open_folder(write_folder(tmp_path / "fields", paths, yaml=yaml), "train")
    assert sorted(sample.name for sample in data) == sorted(names.split())
    for sample in data:
        assert torch.equal(sample.labels_HW, torch.from_numpy(MASK))
        assert len(sample.image_3HW.unique()) > 100


def test_a_folder_that_links_to_itself_or_elsewhere_is_read_once_and_files_that_are_left_out_are_named(tmp_path):
    root = write_folder(tmp_path / "fields", files("train", "1"), "more/2.jpg more_masks/2.png")
    for kind, more in (("images", "more"), ("masks", "more_masks")):
        (root / kind / "train" / "up").symlink_to(root / kind / "train")
        (root / kind / "train" / "far").symlink_to(root / more)
    assert [sample.name for sample in open_folder(root, "train")] == ["1", "2"]
    for name, more, message in (
        ("a", "images/train/a.heic images/train/b.HEIC masks/train/c.gif", r"3 files .*a.heic: .heic \(2\), .gif \(1"),
        ("b", "images/train/deep/er/notes.txt", r"1 file is left out, such as .*deep/er/notes.txt: .txt \(1\)"),
        ("c", "masks/train/README", r"README: no suffix \(1\)"),
    ):
        with pytest.warns(DataWarning, match=message):
            open_folder(write_folder(tmp_path / name, files("train", "1"), more), "train")


MEANT = {"names": "classes", "nc": "classes", "Names": "classes", "colormap": "colours", "ignore_index": "ignore"}
# what dataset.yaml says, the files where they are not the usual ones, and the message
REFUSED = [
    ("# classes:", "", r"names no classes; expected an entry such as classes: \[soil, crop\]"),
    ("- classes: x", "", r"holds \[\{'classes': 'x'\}\]; expected entries, such as classes: \[soil, crop\]"),
    ("classes: soil", "", "classes = 'soil'; expected a list of two names"),
    ("classes: [no, yes]", "", r"classes = \[False, True\]; expected a list of two names or more, quoted where"),
    ("ignore: 9", "", "ignore = 9; expected a list of whole numbers"),
    ("ignore: [1]", "", r"void_values \[1\] are labels of classes"),
    ("palette: [[1, 2, 3]]", "", "palette has 1 colours for 2 classes"),
    ("splits: {valid: {}}", "", r"unknown entry splits.valid; did you mean 'val'\?"),
    ("splits: {train: 3}", "", "splits.train = 3; expected entries images, masks or list"),
    ("splits: {val: {}}", "", r"dataset.yaml has no splits.train; it has val"),
    ("splits: {train: {}, val: {images: images/train, masks: masks/train}}", "", r"000.jpg is in .*train and val \(4"),
    ("splits: {train: {list: a.txt}, val: {}}", "", "the list .*a.txt is missing"),
    ("colours: {soil: [1, 1, 1], crop: [2, 2, 2], tree: [3, 3, 3]}", "", "colours: tree is no class; .*to ignore"),
    ("colours: ['#ffffff', '#000000']", "", r"colours = .*; expected a list of \[red, green, blue\], or a table of"),
    ("colours: [[0, 0, 0], [1, 1, 1]]\nvalues: [0, 255]\n", "", "file_values and file_colours are both given"),
    ("colours: [[0, 0, 0], [1, 1, 1]]\nignore: [[1, 1, 1]]", "", r"void_colours \[\(1, 1, 1\)\] are those of class"),
    ("colours: [[0, 0, 0], [1, 1, 1]]\nignore: [9]", "", r"void_values \(9,\) beside file_colours; give void_colours"),
    ("ignore: [[1, 1, 1]]", "", r"void_colours \[\(1, 1, 1\)\] are given without file_colours"),
    *((f"{entry}: 3", "", f"unknown entry {entry}; did you mean '{name}'") for entry, name in MEANT.items()),
    *((f"{entry}: 3", "", f"unknown entry {entry}; did you mean '{entry}s'") for entry in ("mask", "image")),
    ("train: 3", "", "unknown entry train; did you mean 'splits'"),
    ("", "images/train/.DS_Store masks/train/.DS_Store", "images/train holds no image"),
    ("", f"{files('train', '1')} images/val/1.jpg", "data folder .*masks/val is missing"),
    ("", "images/train/a/1.jpg images/train/a/1.png masks/train/a/1.png", "holds both a/1.jpg and a/1.png, which"),
    ("", "images/train/a/1.jpg masks/train/b/1.png", r"images/train/a/1.jpg has no partner in .*masks/train \(1 such"),
    ("", "images/train/1.heic masks/train/1.png", r"no partner .*1 file is left out, .*1.heic"),
    ("", "images/train/1.heic masks/train/1.heic", r"images/train holds no image; expected \.png, .*2 files"),
    ("images: data\nmasks: data", "data/1.png", r"data is given for images and for masks; .*\{stem\}_mask.png"),
    ("masks: '*_mask.png'", "", r"masks = '\*_mask.png'; expected a path, .* \{stem\} may stand"),
    ("masks: '{name}_mask.png'", "", r"masks = '\{name\}_mask.png'; expected a path"),
    ("images: '{stem}/image.png'", "", r"images = '\{stem\}/image.png'; expected a path"),
]


@pytest.mark.parametrize(("yaml", "paths", "message"), REFUSED)
def test_a_description_or_a_layout_that_cannot_be_meant_is_refused_by_name(tmp_path, yaml, paths, message):
    root = write_folder(tmp_path / "fields", *([paths] if paths else TWO_SPLITS), yaml=yaml)
    with pytest.raises(DataError, match=message):
        [open_folder(root, split) for split in ("train", "val")]


def test_a_line_of_a_list_may_be_a_path_with_or_without_suffix_and_one_that_cannot_be_meant_is_refused(tmp_path):
    root, decomposed = tmp_path, unicodedata.normalize("NFD", "é.v2")
    stems = files("train", "1", "a/1", "b/1", "é.v2")
    write_folder(root, stems, "images/train/2.heic", yaml="splits: {train: {list: a.txt}}")
    lines = {"a/1": "a/1", "images/train/b/1.jpg": "b/1", "./a/1.png": "a/1", "C:\\data\\b\\1.jpg": "b/1"}
    for line, name in (lines | {decomposed: "é.v2"}).items():
        (root / "a.txt").write_bytes(f"{line}\r\n\r\n".encode("utf-16"))
        ((image, _),) = open_folder(root, "train").pairs
        assert image == root / f"images/train/{name}.jpg"
    for content, message in (
        (b"1\n\n2.heic", r"a.txt line 3: there is no image '2.heic' in .*1 file is left out, such as .*2.heic"),
        (b"a/2\n", "line 1: there is no image 'a/2'"),
        (b"1.2\n", "line 1: there is no image '1.2'"),
        (b"1\nimages/train/1.jpg\n", "line 2 names 'images/train/1.jpg' a second time"),
    ):
        (root / "a.txt").write_bytes(content)
        with pytest.raises(DataError, match=message):
            open_folder(root, "train")
    os.rename(root / "images/train/1.jpg", os.fsencode(root / "images/train/t") + b"\xfcr.jpg")
    refused(lambda: open_folder(root, "train"), DataError, names=(r"t\udcfcr.jpg'", "name is not UTF-8; rename"))


def test_it_is_trained_on_evaluated_and_predicted_by_command_also_where_stems_repeat(folder, tmp_path, capsys):
    stems = ("a/1", "b/1", "a-b/1")
    shutil.rmtree(folder)
    write_folder(folder, files("train", *stems), files("val", *stems), "masks/train/notes.txt")
    own_size = "--data.height 0 --data.width 0 --data.crop-height 32 --data.crop-width 32"
    assert trained(folder, "--method", "student", *own_size.split()) == 0
    output = capsys.readouterr()
    assert re.search(r"mIoU 0\.\d+, .* on val; teacher", output.out)
    notes = [line for line in output.err.splitlines() if line.startswith("apd: note: ")]
    assert ["left out, such as" in note for note in notes] == [True]
    (run,) = (path.parent for path in (tmp_path / "runs").glob("fields-student-*/record.json"))
    images = [str(folder / "images/val" / f"{stem}.jpg") for stem in stems]
    for command, kinds in (
        (["evaluate", run, "--pictures"], ["labels"]),
        (["predict", run, *images, "--to"], ["labels", "overlay"]),
    ):
        to = tmp_path / command[0]
        assert leave(*command, to) == 0
        written = {path.relative_to(to).as_posix() for path in to.rglob("*.png")}
        assert written == {f"{stem}-{kind}.png" for stem in stems for kind in kinds}
    with Image.open(tmp_path / "predict/a/1-labels.png") as labels:
        assert labels.size == (48, 40)  # shown at its own size, as in training
