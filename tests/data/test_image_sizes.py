"""The smallest side that a network takes is checked at the door, by one rule, wherever images come in."""

import re

import numpy as np
import pytest
from own_folders import leave, make, trained
from PIL import Image

from apd.config import inference_options
from apd.config.experiment import DataConfig, Experiment, ExperimentError
from apd.config.inference_options import WHOLE_IMAGE, InferenceOptions, least_side, require_sides, shown_size
from apd.data.images import DataError
from apd.models import segmenter
from apd.training.run import runs_folder

pytestmark = pytest.mark.usefixtures("own_runs")
OWN_SIZE = ["--data.height", "0", "--data.width", "0"]
OWN, FIXED = dict(height=0, width=0), dict(height=64, width=96)


@pytest.mark.parametrize(
    ("data", "inference", "size", "shown", "least"),
    [
        (OWN, WHOLE_IMAGE, (31, 200), (31, 200), 31),
        (FIXED, WHOLE_IMAGE, (31, 200), (64, 96), 64),
        (OWN | dict(long_side=256), WHOLE_IMAGE, (64, 640), (26, 256), 26),
        (FIXED | dict(long_side=48), WHOLE_IMAGE, (1, 1), (32, 48), 32),
        (OWN, InferenceOptions(scales=(0.25, 1.0)), (64, 640), (64, 640), 16),
        (OWN, InferenceOptions(window=(48, 48), scales=(0.25,)), (20, 24), (20, 24), 48),
    ],
)
def test_what_a_network_sees_follows_from_size_longest_side_scales_and_window(data, inference, size, shown, least):
    assert inference_options.SMALLEST_SIDE == segmenter.SMALLEST_SIDE == 32
    config, sizes = DataConfig(name="camvid", **data), [("a", (640, 640)), ("b", size)]
    assert shown_size(config, *size) == shown
    assert least_side(config, inference, *size) == least
    if least >= 32:
        require_sides(config, inference, sizes)
        return
    with pytest.raises(DataError, match=rf"^b has {size[0]}×{size[1]} pixels .* a side of {least} pixels"):
        require_sides(config, inference, sizes)


DOORS = {
    "small images": (dict(size=(20, 24)), [], r"val000.png has 20×24 pixels .* enlarge it or leave it out"),
    "scales": (dict(size=(64, 640)), ["--inference.scales", "0.25", "1"], r"a side of 16 .*larger --scales"),
    "long side": (dict(size=(64, 640)), ["--data.long-side", "256"], r"a side of 26 .*larger --data.long-side"),
    "window": ({}, ["--inference.window", "16", "64"], r"a side of 16 .*a window of at least 32x32"),
    "of test": (dict(size=[(64, 96), (64, 96), (20, 96)], test=3), [], r"test002.png has 20×96"),
}


@pytest.mark.parametrize("door", DOORS)
def test_an_image_that_is_too_small_is_named_before_training_and_by_a_dry_run(door, tmp_path, capsys):
    changes, options, message = DOORS[door]
    folder = make(tmp_path / "icons", **changes)
    assert trained(folder, *OWN_SIZE, *options) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not list(runs_folder().glob("*/log.jsonl")), "nothing was trained"
    assert trained(folder, *OWN_SIZE, *options, "--dry-run") == 1
    assert re.search(message, capsys.readouterr().out)


def test_of_one_size_for_all_the_experiment_itself_is_refused():
    narrow = DataConfig(name="camvid", height=64, width=640, long_side=256)
    for data, scale, field in (
        (narrow, 1.0, "DataConfig.long_side"),
        (DataConfig(**FIXED), 0.4, "Experiment.inference"),
    ):
        with pytest.raises(ExperimentError, match=f"{field} = .* got 26"):
            Experiment(data=data, inference=InferenceOptions(scales=(scale,)))


def test_small_training_images_are_no_fault_and_predict_and_evaluate_refuse_before_writing(tmp_path, capsys):
    folder = make(tmp_path / "fine", size=(20, 24))
    for path in folder.glob("*/val/*.png"):
        Image.open(path).resize((96, 64), Image.Resampling.NEAREST).save(path)
    assert trained(folder, *OWN_SIZE) == 0
    run = capsys.readouterr().out.splitlines()[-1]
    for name, size in (("wide", (64, 96)), ("thin", (31, 200))):
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(tmp_path / f"{name}.png")
    images = [tmp_path / "wide.png", tmp_path / "thin.png"]
    assert leave("predict", run, *images, "--to", tmp_path / "seen") == 1
    assert re.search(r"thin.png has 31×200 pixels .* a side of 31", capsys.readouterr().err)
    assert not (tmp_path / "seen").exists()
    assert leave("evaluate", run, "--scales", "0.25") == 1
    assert re.search(r"val000.png has 64×96 pixels .* larger --scales", capsys.readouterr().err)
    assert leave("predict", run, tmp_path / "wide.png", "--to", tmp_path / "seen") == 0
    assert leave("predict", run, tmp_path / "wide.png", "--scales", "0.25", "--to", tmp_path / "seen") == 1
