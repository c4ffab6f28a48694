"""Label maps and overlays of single images, as files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_experiments import NETWORK

from apd.data.image_folder import DataError
from apd.data.specs import SCENES
from apd.evaluation.inference import predict_labels
from apd.evaluation.predict import image_ids, overlay, predict_image
from apd.training.segmentation import build_network


def network():
    return build_network(NETWORK, 10, torch.device("cpu"), seed=0).eval()


def saved(path):
    """An image whose left half is black and right half is white."""
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[:, 30:] = 255
    Image.fromarray(pixels).save(path)
    return path


def test_an_image_gives_a_label_map_of_its_own_size_with_the_class_colours_and_an_overlay(tmp_path):
    path, model = saved(tmp_path / "street.jpg"), network()
    labels, over = predict_image(model, path, tmp_path / "new" / "folder", SCENES, size=(32, 48))
    assert [labels.name, over.name] == ["street-labels.png", "street-overlay.png"]
    with Image.open(labels) as image:
        assert (image.mode, image.size) == ("P", (60, 40))
        palette, label_map = np.array(image.getpalette()[:30]).reshape(10, 3), np.asarray(image)
    assert np.array_equal(palette, np.array(SCENES.palette))
    pixels = np.asarray(Image.open(path))
    images = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
    small = torch.nn.functional.interpolate(images, (32, 48), mode="bilinear", antialias=True).clamp(0, 1)
    assert np.array_equal(label_map, predict_labels(model, small, (40, 60))[0])
    assert np.array_equal(np.asarray(Image.open(over)), overlay(pixels, label_map, SCENES))
    with pytest.raises(DataError, match=r"street\.jpg: cannot write predictions"):
        predict_image(model, path, path, SCENES, size=(32, 48))


def test_an_overlay_mixes_image_and_colours_and_keeps_ignored_pixels():
    image = np.full((1, 3, 3), 100, dtype=np.uint8)
    mixed = overlay(image, np.array([[0, 9, 255]], dtype=np.uint8), SCENES, opacity=0.5)
    expected = [[round(50 + channel / 2) for channel in SCENES.palette[k]] for k in (0, 9)]
    assert np.abs(mixed[0, :2].astype(int) - expected).max() <= 1
    assert mixed[0, 2].tolist() == [100, 100, 100]


def test_images_are_numbered_by_their_names_where_all_are_different_numbers():
    for stems, numbers in ((("000139", "285"), [139, 285]), (("1", "01"), [1, 2]), (("7", "street"), [1, 2])):
        assert image_ids([Path(f"{stem}.jpg") for stem in stems]) == numbers
