"""The committed drawings of the book are what `book/figures` draws."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
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


def test_every_drawing_has_a_twin_for_dark_pages_that_differs_in_colours_only(draw):
    from svg import DARK, LIGHT

    made = draw.drawings()
    for name, content in made.items():
        if name.endswith("-light.svg"):
            for light, dark in zip(LIGHT, DARK, strict=True):
                content = content.replace(f'"{light}"', f'"{dark}"')
            assert content.count('"') == made[name.replace("-light", "-dark")].count('"')
            assert len(content) == len(made[name.replace("-light", "-dark")])


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


def test_the_committed_picture_of_scenes_shows_todays_scenes(draw):
    import scenes

    drawn = np.asarray(scenes.draw(), dtype=int)
    with Image.open(STATIC / "scenes-dial.jpg") as picture:
        committed = np.asarray(picture, dtype=int)
    assert committed.shape == drawn.shape
    assert np.abs(committed - drawn).mean() < 3, "run python book/figures/draw.py"
