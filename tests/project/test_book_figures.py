"""The committed drawings of the book are what `book/figures` draws."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from apd.data.scenes import Scenes
from apd.data.specs import IMAGE_PADDING

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


def test_the_image_of_augmentation_shows_one_step_more_in_each_column_as_its_caption_says(draw):
    import augmentation

    whole, scaled, turned, blurred, flipped, other = augmentation.columns()
    street = Scenes(9, height=180, width=240, context_shift=0.0, seed=0, split="train")[8]
    assert torch.equal(whole.image_3HW, street.image_3HW)
    shown = [len(set(sample.labels_HW.unique().tolist())) for sample in (whole, scaled, turned)]
    assert min(shown) > 5, "none of them is empty"
    assert not torch.equal(scaled.labels_HW, whole.labels_HW)
    assert not torch.equal(turned.labels_HW, scaled.labels_HW)
    assert torch.equal(blurred.labels_HW, turned.labels_HW)
    edges = [sample.image_3HW.float().diff(dim=2).square().mean() for sample in (turned, blurred)]
    assert edges[1] < 0.6 * edges[0]
    assert torch.equal(flipped.image_3HW, blurred.image_3HW.flip(2))
    assert (other.labels_HW == 255).float().mean() > 0.4
    assert (other.image_3HW[:, 0, 0] == torch.tensor(IMAGE_PADDING)).all()
