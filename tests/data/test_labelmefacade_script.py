"""LabelMeFacade's script: the rule of its splits, the published files to the byte, and their conversion."""

import subprocess

import numpy as np
import pytest
from miniatures import data_script
from PIL import Image

from apd.data.converted import LABELMEFACADE, listed_splits

script = data_script("labelmefacade")
SPLITS = listed_splits()
OF_STEM = {stem: split for split, stems in SPLITS.items() for stem in stems}


def test_the_lists_are_those_of_the_rule_and_hold_every_image_once():
    assert script.splits_of(sorted(OF_STEM)) == OF_STEM
    assert sum(map(len, SPLITS.values())) == len(OF_STEM) == script.COUNT
    assert {split: len(stems) for split, stems in SPLITS.items()} == dict(LABELMEFACADE.splits)
    assert tuple(SPLITS) == script.SPLITS
    assert tuple(script.COLOURS) == LABELMEFACADE.class_names


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A published tree of two pairs for the script, whose converted labels are not known beforehand."""
    root = tmp_path / "published"
    labels_HW = np.kron(np.arange(16, dtype=np.uint8).reshape(2, 8) % 9, np.ones((330, 110), dtype=np.uint8))
    colours = np.array([*script.COLOURS.values(), (0, 0, 0)], dtype=np.uint8)
    for number, turned_HW in enumerate((labels_HW, labels_HW[:, ::-1].T)):
        for folder in ("images", "labels"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(colours[turned_HW])
        image.save(root / "images" / f"street__{number}.jpg")
        image.convert("RGBA").save(root / "labels" / f"street__{number}.png")
    monkeypatch.setattr(script, "PUBLISHED_TREES", {f: script.git_tree(root / f) for f in ("images", "labels")})
    monkeypatch.setattr(script, "COUNT", 2)
    expected = np.where(labels_HW == 8, 255, labels_HW)
    return root, expected[np.arange(320) * 660 // 320 + 1][:, np.arange(427) * 880 // 427 + 1]


def test_the_script_converts_colours_to_labels_at_a_short_side_of_320(published, tmp_path, monkeypatch, capsys):
    root, expected_HW = published
    monkeypatch.setattr(script, "labels_sha256", lambda _: script.LABELS_SHA256)
    for command in (["convert", str(root), str(tmp_path)], ["check", str(tmp_path)]):
        assert script.main(command) == 0, capsys.readouterr().err
    labels_HW = np.asarray(Image.open(tmp_path / "LabelMeFacade" / "labels" / "street__0.png"))
    assert labels_HW.shape == (320, 427)
    assert (labels_HW == expected_HW).mean() > 0.99, "nearest, up to the edges of blocks"
    assert set(np.unique(labels_HW)) == {*range(8), 255}
    with Image.open(tmp_path / "LabelMeFacade" / "images" / "street__1.jpg") as image:
        assert (image.mode, image.size) == ("RGB", (320, 427))


def test_the_script_refuses_other_files_than_the_published_ones(published, tmp_path, monkeypatch, capsys):
    (root, _), damaged = published, published[0] / "images" / "street__0.jpg"

    def refused(folder, message):
        assert script.main(["convert", str(folder), str(tmp_path)]) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "LabelMeFacade").exists()

    damaged.write_bytes((root / "images" / "street__1.jpg").read_bytes())
    refused(root, f"{root / 'images'} is not the published folder")
    refused(tmp_path / "nowhere", "expected the published repository")
    monkeypatch.setitem(script.PUBLISHED_TREES, "images", script.git_tree(root / "images"))
    refused(root, "street__0.png is 880×660, its image 660×880")
    colours_HW3 = np.zeros((2, 3, 3), dtype=np.uint8)
    assert (script.labels_of_colours(colours_HW3, tmp_path) == 255).all()
    colours_HW3[1, 2] = (128, 0, 1)
    with pytest.raises(script.FetchError, match=r"mask.png holds the colour \[128, 0, 1\] \(1 such pixels\)"):
        script.labels_of_colours(colours_HW3, tmp_path / "mask.png")


def test_the_name_of_a_tree_is_gits(tmp_path):
    for name in ("b", "B.txt", "a~"):
        (tmp_path / name).write_text(name)
    for command in ("init -q --object-format=sha1", "add .", "write-tree"):
        done = subprocess.run(["git", *command.split()], cwd=tmp_path, check=True, capture_output=True, text=True)
    (tmp_path / ".git").rename(tmp_path.parent / f"{tmp_path.name}-git")
    assert script.git_tree(tmp_path) == done.stdout.strip()
