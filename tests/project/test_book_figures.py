"""The committed drawings of the book are what `book/figures` draws."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
FOLDER, STATIC = ROOT / "book" / "figures", ROOT / "book" / "_static"


@pytest.fixture
def draw(monkeypatch) -> ModuleType:
    """The script; its short module names are forgotten afterwards."""
    monkeypatch.syspath_prepend(FOLDER)
    for path in FOLDER.glob("*.py"):
        monkeypatch.delitem(sys.modules, path.stem, raising=False)
    import draw

    yield draw
    for path in FOLDER.glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_the_committed_drawings_are_up_to_date(draw):
    for name, content in draw.drawings().items():
        assert (STATIC / name).read_text(encoding="utf-8") == content, f"run python book/figures/draw.py ({name})"


def test_the_made_up_pixels_show_what_their_caption_says(draw):
    import perspectives

    from apd import class_prototypes, observe

    features, labels = perspectives.made_up_pixels()
    wrong = {}
    for scope in ("batch", "image"):
        answers = observe(features, *class_prototypes(features, labels, 2, scope=scope)).argmax(1)
        wrong[scope] = int((answers != labels).sum())
    assert wrong["image"] == 0
    assert wrong["batch"] > labels.numel() / 5


@pytest.mark.parametrize(("module", "file"), [("scenes", "scenes-dial.jpg"), ("augmentation", "augmentation.jpg")])
def test_the_committed_images_show_what_is_drawn_today(draw, module, file):
    drawn = np.asarray(import_module(module).draw(), dtype=int)
    with Image.open(STATIC / file) as stored:
        committed = np.asarray(stored, dtype=int)
    assert committed.shape == drawn.shape
    assert np.abs(committed - drawn).mean() < 3, "run python book/figures/draw.py"
