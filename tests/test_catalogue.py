"""The specs of the data sets, and whether their colours can be told apart."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from apd.data.specs import CAMVID, CLASS_COLOURS, IGNORE_COLOUR, SCENES

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
DEFICIENCIES = {
    "none": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
# Classes that touch in nearly every street.
NEIGHBOURS = [
    ("road", "pavement"),
    ("road", "car"),
    ("road", "pedestrian"),
    ("car", "pedestrian"),
    ("building", "fence"),
    ("building", "tree"),
    ("building", "pavement"),
    ("building", "pedestrian"),
    ("building", "sky"),
    ("tree", "sky"),
    ("tree", "fence"),
    ("tree", "sign"),
    ("tree", "pole"),
    ("pole", "sky"),
    ("pole", "building"),
    ("pole", "sign"),
    ("pavement", "fence"),
    ("pavement", "pedestrian"),
    ("pedestrian", "bicyclist"),
]


def cie_lab(rgb: tuple[int, int, int], deficiency: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of an sRGB colour as a person with the deficiency sees it."""
    encoded = np.array(rgb) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    seen = np.clip(deficiency @ linear, 0, 1)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    xyz = to_xyz @ seen / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def distance(first: str, second: str, deficiency: str) -> float:
    a, b = (cie_lab(CLASS_COLOURS[name], DEFICIENCIES[deficiency]) for name in (first, second))
    return float(np.linalg.norm(a - b))


def test_the_distance_used_here_is_the_usual_one():
    np.testing.assert_allclose(cie_lab((255, 0, 0), np.eye(3)), [53.24, 80.09, 67.20], atol=0.02)
    np.testing.assert_allclose(cie_lab((255, 255, 255), np.eye(3)), [100, 0, 0], atol=0.02)


@pytest.mark.parametrize(
    ("deficiency", "least"), [("none", 30), ("protanopia", 22), ("deuteranopia", 22), ("tritanopia", 17.5)]
)
def test_any_two_classes_have_colours_that_can_be_told_apart(deficiency, least):
    closest = min((distance(a, b, deficiency), a, b) for a, b in combinations(CLASS_COLOURS, 2))
    assert closest[0] >= least, closest


@pytest.mark.parametrize("deficiency", ["none", "protanopia", "deuteranopia"])
def test_classes_that_touch_in_a_street_are_further_apart(deficiency):
    closest = min((distance(a, b, deficiency), a, b) for a, b in NEIGHBOURS)
    assert closest[0] >= 27, closest


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_no_class_looks_like_an_ignored_pixel(deficiency):
    white = cie_lab(IGNORE_COLOUR, DEFICIENCIES[deficiency])
    for name, rgb in CLASS_COLOURS.items():
        gap = np.linalg.norm(cie_lab(rgb, DEFICIENCIES[deficiency]) - white)
        assert gap > 14, (name, gap)


def test_a_class_has_one_colour_in_both_data_sets():
    assert CAMVID.class_names[:10] == SCENES.class_names
    assert CAMVID.palette[:10] == SCENES.palette
    assert CAMVID.class_names[10] == "bicyclist"
    for spec in (SCENES, CAMVID):
        assert spec.palette == tuple(CLASS_COLOURS[name] for name in spec.class_names)
        assert len(set(spec.palette)) == spec.num_classes


def test_camvid_reads_label_11_as_ignored_and_knows_its_split():
    assert CAMVID.num_classes == 11
    assert CAMVID.void_values == (11,)
    assert CAMVID.ignore_index == 255
    assert dict(CAMVID.splits) == {"train": 367, "val": 101, "test": 233}


def test_index_finds_a_class_and_names_the_known_ones_when_it_cannot():
    assert [SCENES.index(name) for name in SCENES.class_names] == list(range(10))
    with pytest.raises(ValueError, match=r"scenes has no class 'bicycle'; it has sky, .*pedestrian"):
        SCENES.index("bicycle")


def test_colourise_shows_each_label_in_its_colour_and_ignored_pixels_in_white():
    labels_HW = np.array([[0, 3, 255], [9, 9, 0]], dtype=np.uint8)
    picture_HW3 = SCENES.colourise(labels_HW)
    assert picture_HW3.dtype == np.uint8
    for row, column in np.ndindex(2, 3):
        label = labels_HW[row, column]
        expected = IGNORE_COLOUR if label == 255 else SCENES.palette[label]
        assert tuple(picture_HW3[row, column]) == expected


@pytest.mark.parametrize("label", [10, 254, -1])
def test_colourise_refuses_labels_that_are_no_class(label):
    with pytest.raises(ValueError, match=rf"holds \[{label}\]; scenes has labels 0..9 and 255"):
        SCENES.colourise(np.array([[0, label]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": (), "palette": ()}, "class_names is empty"),
        ({"class_names": ("sky", "sky"), "palette": ((0, 0, 0), (1, 1, 1)), "thing_names": ()}, "names a class twice"),
        ({"palette": SCENES.palette[:-1]}, "9 colours for 10 classes"),
        ({"palette": (*SCENES.palette[:-1], (0, 0, 256))}, "from 0 to 255"),
        ({"ignore_index": 9}, "ignore_index=9; expected 10..255"),
        ({"ignore_index": 256}, "ignore_index=256; expected 10..255"),
        ({"void_values": (3, 11)}, r"void_values \[3\]"),
        ({"thing_names": ("car", "cat")}, r"thing_names \['cat'\]"),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SCENES, **change)
