"""Where the files of a folder of one's own may lie: nested folders, patterns of names, lists, and what is left out."""

import os
import unicodedata

import pytest
import torch
from miniatures import MASK, files, write_folder

from apd.data.dataset_yaml import open_folder
from apd.data.images import DataError, DataWarning

# what dataset.yaml says beside the classes, the files, and the names of the samples
ACCENT = unicodedata.normalize("NFD", "é")
LAYOUTS = {
    "nested": ("", files("train", "a/b/001", "a/2"), "2 001"),
    "nested, stems repeat": ("", files("train", "a/1", "b/1"), "a/1 b/1"),
    "beside": ('masks: "{stem}_mask.png"', "images/train/1.jpg images/train/1_mask.png", "1"),
    "beside, a suffix of its own": (
        "splits: {train: {images: labelled, masks: 'labelled/{stem}.png'}}",
        "labelled/1raw.jpg labelled/1raw.png",
        "1raw",
    ),
    "a prefix": ("masks: 'seg_{stem}'", "images/train/a/1.jpg masks/train/a/seg_1.tif", "1"),
    "with the split": ('masks: "labels/{split}/{stem}_seg.png"', "images/train/1.jpg labels/train/1_seg.png", "1"),
    "both with a suffix": (
        "images: '{stem}_leftImg8bit.png'\nmasks: '{stem}_mask_labelIds.png'",
        "images/train/aachen/a_0_leftImg8bit.png masks/train/aachen/a_0_mask_labelIds.png",
        "a_0_leftImg8bit",
    ),
    "masks inside": ("splits: {train: {images: data, masks: data/masks}}", "data/1.jpg data/masks/1.png", "1"),
    "images inside": ("splits: {train: {images: label/raw, masks: label}}", "label/raw/1.jpg label/1.png", "1"),
    "composed and decomposed accents": ("", f"images/train/tür/{ACCENT}.jpg masks/train/tür/é.png", ACCENT),
    "suffixes": ("", "images/train/1.tif masks/train/1.bmp images/train/2.PNG masks/train/2.png", "1 2"),
    "hidden and system files": (
        "",
        "images/train/1.jpg masks/train/1.png images/train/.DS_Store images/train/Thumbs.db masks/train/desktop.ini "
        "masks/train/._1.png images/train/.cache/2.jpg images/train/@eaDir/3.jpg",
        "1",
    ),
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


def test_a_folder_that_links_to_itself_or_elsewhere_is_read_once(tmp_path):
    root = write_folder(tmp_path / "fields", files("train", "1"), "more/2.jpg more_masks/2.png")
    for kind, more in (("images", "more"), ("masks", "more_masks")):
        (root / kind / "train" / "up").symlink_to(root / kind / "train")
        (root / kind / "train" / "far").symlink_to(root / more)
    assert [sample.name for sample in open_folder(root, "train")] == ["1", "2"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("images/train/a.heic images/train/b.HEIC masks/train/c.gif", r"3 files .*a.heic: .heic \(2\), .gif \(1\)"),
        ("images/train/deep/er/notes.txt", r"1 file is left out, such as .*deep/er/notes.txt: .txt \(1\)"),
        ("masks/train/README", r"README: no suffix \(1\)"),
    ],
)
def test_files_that_are_left_out_are_counted_and_named(tmp_path, more, message):
    with pytest.warns(DataWarning, match=message):
        open_folder(write_folder(tmp_path / "fields", files("train", "1"), more), "train")


WRONG = [
    ("", "images/train/a/1.jpg images/train/a/1.png masks/train/a/1.png", "holds both a/1.jpg and a/1.png, which"),
    ("", "images/train/a/1.jpg masks/train/b/1.png", r"images/train/a/1.jpg has no partner in .*masks/train \(1 such"),
    ("", "images/train/1.heic masks/train/1.png", r"no partner .*1 file is left out, .*1.heic"),
    ("", "images/train/1.heic masks/train/1.heic", r"images/train holds no image; expected \.png, .*2 files"),
    ("images: data\nmasks: data", "data/1.png", r"data is given for images and for masks; .*\{stem\}_mask.png"),
    ("masks: '*_mask.png'", "", r"masks = '\*_mask.png'; expected a path, .* \{stem\} may stand"),
    ("masks: '{name}_mask.png'", "", r"masks = '\{name\}_mask.png'; expected a path"),
    ("images: '{stem}/image.png'", "", r"images = '\{stem\}/image.png'; expected a path"),
]


@pytest.mark.parametrize(("yaml", "paths", "message"), WRONG)
def test_a_layout_that_does_not_pair_is_refused_by_name(tmp_path, yaml, paths, message):
    with pytest.raises(DataError, match=message):
        open_folder(write_folder(tmp_path / "fields", paths, yaml=yaml), "train")


def test_a_name_that_is_not_utf8_is_refused_before_any_training(tmp_path):
    root = write_folder(tmp_path / "fields", "images/train/1.jpg", "masks/train/1.png")
    os.rename(root / "images/train/1.jpg", os.fsencode(root / "images/train/t") + b"\xfcr.jpg")
    with pytest.raises(DataError, match=r"t\\udcfcr.jpg': the name is not UTF-8; rename the file"):
        open_folder(root, "train")


LISTED = "splits: {train: {list: train.txt}}"


LINES = ("a/1", "a/1"), ("images/train/b/1.jpg", "b/1"), ("./a/1.png", "a/1"), ("C:\\data\\b\\1.jpg", "b/1")


@pytest.mark.parametrize(("line", "name"), [*LINES, (unicodedata.normalize("NFD", "é.v2"), "é.v2")])
def test_a_line_of_a_list_may_be_a_path_with_or_without_suffix(tmp_path, line, name):
    root = write_folder(tmp_path / "fields", files("train", "a/1", "b/1", "é.v2"), yaml=LISTED)
    (root / "train.txt").write_bytes(f"{line}\r\n\r\n".encode("utf-16"))
    data = open_folder(root, "train")
    assert [image.relative_to(root / "images/train").with_suffix("").as_posix() for image, _ in data.pairs] == [name]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n", "the list .*train.txt is empty"),
        ("1\nt\u00fcr\n".encode("latin-1"), "train.txt is not UTF-8, line 2"),
        (b"1\n\n2.heic", r"train.txt line 3: there is no image '2.heic' in .*1 file is left out, such as .*2.heic"),
        (b"a/2\n", "line 1: there is no image 'a/2'"),
        (b"1\nimages/train/1.jpg\n", "line 2 names 'images/train/1.jpg' a second time"),
    ],
)  # fmt: skip
def test_a_list_that_cannot_be_meant_is_refused_with_its_line(tmp_path, content, message):
    root = write_folder(tmp_path / "fields", files("train", "1"), "images/train/2.heic", yaml=LISTED)
    (root / "train.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_folder(root, "train")
