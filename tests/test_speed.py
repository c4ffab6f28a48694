"""The chapter on cost says what the file of measurements says, and a measured run has everything the chapter reads."""

import json
import sys

import pytest
import torch

from apd.evaluate.loss_cost import LossShape
from apd.plots import speed
from tests import measure_speed

SMALL = {"camvid": LossShape(batch=1, channels=4, grid=3, classes=5, labels=9)}


@pytest.fixture(scope="module")
def measurement(tmp_path_factory):
    """A real measurement, of the smallest maps."""
    folder = tmp_path_factory.mktemp("speed")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure_speed, "LOSS_SHAPES", SMALL)
        patch.setattr(sys, "argv", ["measure_speed", "--repeats", "2", "--to", str(folder)])
        measure_speed.main()
    torch.set_num_threads(threads)
    (found,) = speed.read_measurements(folder)
    return found


def test_every_loss_is_measured_and_apd_in_half_precision_too(measurement):
    names = set(speed.rows_of(measurement, "camvid"))
    assert {"APD", "APD, class by class", "APD, no heads", "pixel KD", "CIRKD", "MGD"} <= names
    assert {name for name in names if name.startswith("APD")} == set(speed.rows_of(measurement, "camvid", "bf16"))
    assert measurement["git"].keys() == {"commit", "clean"}


def test_the_sentence_compares_the_measured_medians_and_peaks(measurement):
    changed = json.loads(json.dumps(measurement))
    for row in changed["rows"]:
        slow = row["loss"].endswith(speed.CLASS_BY_CLASS)
        row["milliseconds"], row["peak_bytes"] = ([40, 50, 60], 400) if slow else ([4, 5, 6], 100)
    told = str(speed.against_the_reference([changed]))
    assert told.count("**10.0 times** as fast as class by class, at **25 %** of its memory") == 2


def test_figure_and_table_show_each_loss_with_its_median(measurement):
    row = speed.rows_of(measurement, "camvid")["CWD"]
    median = speed.three_digits(row["milliseconds"][1])
    assert f"CWD {median}" in speed.milliseconds_by_loss(measurement, "camvid").description
    assert median in speed.speed_table(measurement, "camvid").description


def test_numbers_have_three_digits_and_no_exponent():
    assert [speed.three_digits(value) for value in (1234.5, 100.0, 64.52, 0.66312)] == ["1234", "100", "64.5", "0.663"]


def test_without_measurements_it_is_said_how_to_make_them(tmp_path):
    assert speed.read_measurements(tmp_path) == []
    assert "python -m tests.measure_speed" in str(speed.against_the_reference([]))
