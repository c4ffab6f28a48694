"""The specs of the data sets, and whether their colours can be distinguished."""

import os
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from bad_input import refused
from torchvision.datasets import Cityscapes

from apd.data.converted import LABELMEFACADE
from apd.data.specs import ADE20K, CAMVID, CITYSCAPES, CLASS_COLOURS, IGNORE_COLOUR, SCENES, distinct_colours
from apd.data.specs import COCO_STUFF as COCO
from apd.data.specs import PASCAL_CONTEXT_59 as CONTEXT
from apd.data.specs import PASCAL_CONTEXT_60 as WITH_BACKGROUND

SAMPLES = Path(os.environ.get("APD_DATA", "nowhere")) / "ade20k_sample"
DEFICIENCIES = {
    "none": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def cie_lab(rgb, deficiency):
    """CIE L*a*b* (D65) of an sRGB colour as a person with the deficiency sees it."""
    encoded = np.array(rgb) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(DEFICIENCIES[deficiency]) @ linear, 0, 1)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    xyz = to_xyz @ seen / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize(("deficiency", "least"), [*zip(DEFICIENCIES, (30, 22, 22, 17.5), strict=True)])
def test_any_two_classes_have_colours_far_apart_and_none_looks_ignored(deficiency, least):
    np.testing.assert_allclose(cie_lab((255, 0, 0), "none"), [53.24, 80.09, 67.20], atol=0.02)  # the usual measure
    lab = {name: cie_lab(rgb, deficiency) for name, rgb in CLASS_COLOURS.items()}
    assert min(np.linalg.norm(lab[a] - lab[b]) for a, b in combinations(lab, 2)) >= least
    assert min(np.linalg.norm(colour - cie_lab(IGNORE_COLOUR, deficiency)) for colour in lab.values()) > 14


def test_a_class_has_one_colour_in_all_data_sets_in_which_it_is_shown_and_ignored_pixels_are_white():
    assert CAMVID.class_names == (*SCENES.class_names, "bicyclist")
    assert set(LABELMEFACADE.class_names) & set(CAMVID.class_names) == {"building", "car", "pavement", "road", "sky"}
    for spec in (SCENES, CAMVID, LABELMEFACADE):
        assert len(set(spec.palette)) == spec.num_classes
        for name, colour in zip(spec.class_names, spec.palette, strict=True):
            assert CLASS_COLOURS.get(name, colour) == colour
            assert spec.palette[spec.index(name)] == colour
    refused(lambda: SCENES.index("bicycle"), ValueError, names=("no class 'bicycle'; it has sky, ", "pedestrian"))
    labels_HW = np.array([[0, 3, 255], [9, 9, 0]], dtype=np.uint8)
    for place, colour in zip(np.ndindex(2, 3), SCENES.colourise(labels_HW).reshape(-1, 3).tolist(), strict=True):
        assert tuple(colour) == dict(enumerate(SCENES.palette)).get(labels_HW[place], IGNORE_COLOUR)
    for label in (10, 254, -1):
        message = (f"holds [{label}]; scenes has labels 0..9 and 255",)
        refused(partial(SCENES.colourise, np.array([[0, label]])), ValueError, names=message)


def test_a_spec_that_contradicts_itself_is_refused():
    for change, message in (
        ({"class_names": (), "palette": ()}, "class_names is empty"),
        ({"class_names": ("sky", "sky"), "palette": ((0, 0, 0), (1, 1, 1)), "thing_names": ()}, "names a class twice"),
        ({"thing_names": ("car", "cat")}, "thing_names ['cat']"),
        ({"file_values": tuple(range(20, 30)), "void_values": (25,)}, "void_values [25] are labels"),
    ):
        refused(partial(replace, SCENES, **change), ValueError, names=(message,))


def test_cityscapes_has_torchvisions_table_pascal_context_a_background_before_and_coco_80_things_before_its_stuff():
    counted = sorted((c for c in Cityscapes.classes if 0 <= c.train_id < 255), key=lambda c: c.train_id)
    assert CITYSCAPES.class_names == tuple(label.name for label in counted)
    assert CITYSCAPES.palette == tuple(label.color for label in counted)
    assert CITYSCAPES.thing_names == tuple(label.name for label in counted if label.has_instances)
    assert WITH_BACKGROUND.class_names == ("background", *sorted(CONTEXT.class_names))
    assert {"aeroplane", "tvmonitor", "bedclothes", "wood"} < set(CONTEXT.class_names)
    assert COCO.class_names[:80] == COCO.thing_names
    assert (COCO.index("person"), COCO.index("toothbrush"), COCO.index("wood")) == (0, 79, 170)
    assert not {"street sign", "hat", "plate", "mirror", "window", "desk", "door"} & set(COCO.class_names)


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="APD_DATA holds no ade20k_sample/")
def test_the_names_of_ade20k_are_those_of_its_own_table():
    rows = (SAMPLES / "objectInfo150.csv").read_text().splitlines()[1:]
    # there both a blank and the comma between names have become a semicolon
    assert len(rows) == ADE20K.num_classes
    for row, name in zip(rows, ADE20K.class_names, strict=True):
        assert f"{row.split(',')[5]};".startswith(f"{name.replace(' ', ';')};")


def test_distinct_colours_are_each_as_far_as_possible_from_white_and_from_all_before():
    steps = np.linspace(0, 255, 16).round()
    candidates_N3 = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    lab_N3 = np.array([cie_lab(rgb, "none") for rgb in candidates_N3])
    nearest_N = np.linalg.norm(lab_N3 - cie_lab(IGNORE_COLOUR, "none"), axis=1)
    for colour in distinct_colours(255):
        chosen = int(nearest_N.argmax())
        assert tuple(candidates_N3[chosen]) == colour
        nearest_N = np.minimum(nearest_N, np.linalg.norm(lab_N3 - lab_N3[chosen], axis=1))
    for count in (0, 256):
        refused(partial(distinct_colours, count), ValueError, names=(f"count={count}; expected 1 to 255",))
