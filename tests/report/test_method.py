"""Images of the method: errors, colours and shares are those of the labels, and cosines those of the matrices."""

import re
import xml.etree.ElementTree as ElementTree

import torch

from apd.data.scenes import Scenes
from apd.data.specs import SCENES
from apd.report.figures import method

DATA = Scenes(1, height=48, width=64, context_shift=0.5, seed=0, split="val")


def test_errors_are_red_where_wrong_grey_where_right_white_where_ignored():
    pixels_HW3 = method.error_pixels(torch.tensor([[0, 0, 0]]), torch.tensor([[0, 1, 255]]), 255)
    assert pixels_HW3[0].tolist() == [list(method.RIGHT), list(method.WRONG), [255, 255, 255]]


def test_images_are_chosen_by_their_rank():
    assert method.at_quantiles(torch.tensor([0.5, -0.2, 0.1, 0.3, 0.0]), (0.0, 0.5, 1.0)) == [1, 2, 0]


def test_predictions_have_the_share_of_valid_pixels_that_is_right():
    labels_HW = DATA[0].labels_HW
    half = labels_HW.clone()
    half[:, ::2] = (half[:, ::2] + 1) % 10
    both = {"all": labels_HW, "half": half, "none": (labels_HW + 1) % 10}
    valid_HW = labels_HW != 255
    share = 100 * float(((half == labels_HW) & valid_HW).sum() / valid_HW.sum())
    said = method.show_predictions(DATA[0], both, SCENES).description
    for name, expected in (("all", "100"), ("half", f"{share:.0f}"), ("none", "0")):
        assert f"{name} ({expected} % of pixels right)" in said


def test_observation_maps_show_present_classes_only():
    present = torch.zeros(10, dtype=torch.bool)
    present[[0, 3]] = True
    shown = method.observation_maps(torch.zeros(10, 3, 4), torch.zeros(10, 3, 4), present, SCENES)
    assert shown.html.count("<img") == 4
    assert "images: sky; road" in shown.description


def test_cosines_that_are_not_there_stay_empty_and_out_of_the_mean():
    square_KK = torch.full((10, 10), torch.nan)
    square_KK[:3, :3] = 0.25
    said = method.cosine_matrices({"some": square_KK, "none": square_KK * torch.nan}, SCENES.class_names)
    assert "some: +0.25; none: +nan" in said.description


def test_few_cosines_hold_their_numbers_and_many_a_colour_bar():
    drawn = method.cosine_matrices({"one": torch.tensor([[1.0, -0.25], [-0.001, torch.nan]])}, ["a", "b"])
    shown = [text.text for text in ElementTree.fromstring(drawn.html).iter() if text.tag.endswith("text")]
    assert [text for text in shown if re.search(r"\d", text)] == ["1.00", "−0.25", "0.00"]
    large = method.cosine_matrices({"one": torch.eye(10)}, SCENES.class_names).html
    assert "cosine" in large
    assert "0.00<" not in large
