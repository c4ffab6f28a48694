"""`apd train --data.name folder`: the recipe that is chosen for a folder's images, and what is said of it."""

import dataclasses
import math
import re
import shlex

import pytest
from own_folders import SMALL, STEPS, leave, make, trained
from page_blocks import PYTHON, ROOT, SHELL, blocks

from apd.config.identity import fingerprint
from apd.config.inference_options import SMALLEST_SIDE
from apd.study import own_recipe as module
from apd.study.own_recipe import CROP_AREA, IMAGE_AREA, own_recipe
from apd.study.recipes import LEARNING_RATES, recipe
from apd.training.record import read_record

pytestmark = pytest.mark.usefixtures("own_runs")

TV, LITE0 = ("mobilenetv2_100", "torchvision"), ("efficientnet_lite0", "imagenet")
LITE2, RANDOM = ("efficientnet_lite2", "imagenet"), (("mobilenetv2_100", "none"), ("efficientnet_lite2", "none"))
AT_HAND = [((TV, LITE0, LITE2), TV, LITE2), ((LITE0, LITE2), LITE0, LITE2), ((TV,), TV, TV), ((), *RANDOM)]
YARD = [(360, 480), (480, 640), (338, 600), (480, 360)]
CHOSEN = [(YARD, (256, 320), (160, 224), 16, 100), ([(64, 96)] * 30, (64, 96), (64, 96), 8, 300)]
CHOSEN += [([(64, 1280)] * 120, (64, 1280), (32, 832), 16, 600), ([(300, 2)] * 10**6, (288, 32), (288, 32), 16, 10_000)]
OWN = ["--data.name", "folder", "--data.folder", "FOLDER"]


@pytest.mark.parametrize(("known", "student", "teacher"), AT_HAND)
def test_networks_start_from_the_imagenet_weights_that_are_at_hand(known, student, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_at_hand", lambda *asked: asked in known)
    chosen = own_recipe(make(tmp_path / "fields"))
    networks = chosen.experiment.network, chosen.experiment.teacher.network
    assert [(network.backbone, network.weights) for network in networks] == [student, teacher]
    assert ("no ImageNet weights are at hand" in "\n".join(chosen.lines(chosen.experiment))) == (known == ())
    asked_for = own_recipe(tmp_path / "fields", student="efficientnet_lite2", teacher="test_efficientnet").experiment
    assert asked_for.network.weights == ("imagenet" if LITE2 in known else "none")
    assert (asked_for.teacher.network.backbone, asked_for.teacher.network.weights) == ("test_efficientnet", "none")


def test_weights_are_looked_for_where_they_would_be_loaded_from_and_nothing_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.hub.download_url_to_file", lambda *_, **__: pytest.fail("downloaded"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert (module._at_hand(*TV), module._at_hand(*LITE0)) == (False, True), "`make` installs the package"
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "mobilenet_v2-b0353104.pth").touch()
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert (module._at_hand(*TV), module._at_hand(*LITE0)) == (True, False)


@pytest.mark.parametrize(("sizes", "size", "crop", "stride", "steps"), CHOSEN)
def test_sizes_and_steps_follow_from_the_images(sizes, size, crop, stride, steps, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "image_sizes", lambda *_: sizes)
    experiment = own_recipe(make(tmp_path / "fields")).experiment
    data = experiment.data
    assert ((data.height, data.width), (data.crop_height, data.crop_width)) == (size, crop)
    assert experiment.network.output_stride == stride
    assert experiment.training.iterations == experiment.teacher.training.iterations == steps
    for area, most in ((math.prod(size), IMAGE_AREA), (math.prod(crop), CROP_AREA)):
        assert area <= 1.1 * most, "to the next multiple of 32"


def test_large_images_of_their_own_sizes_are_scored_and_trained_on_near_the_size_that_would_be_chosen(tmp_path):
    folder = make(tmp_path / "my fields!", size=[(480, 640), (64, 900)])
    experiment = own_recipe(folder, "pixel_kd", size=(0, 0)).experiment
    data = experiment.data
    assert experiment.name == "my_fields_-pixel_kd-seed0"
    assert (data.height, data.width) == (0, 0)
    assert data.scale_max < 1.75
    assert data.long_side >= SMALLEST_SIDE * 900 / 64, "the thinnest image stays large enough for a network"


def test_scores_are_of_test_where_there_is_one_even_half_and_of_val_elsewhere(tmp_path):
    folder = make(tmp_path / "a")
    assert own_recipe(folder).experiment.data.evaluation_split == "val"
    (folder / "images" / "test").mkdir()
    assert own_recipe(folder).experiment.data.evaluation_split == "test"
    assert trained(folder) == 1, "a split that is half there is no reason to score on another"


def test_the_command_of_the_data_page_trains_on_the_folder_that_the_page_draws(tmp_path, monkeypatch, capsys):
    page, names = ROOT / "book" / "data.md", {}
    drawn = next(code for _, code in blocks(page, PYTHON) if "dataset.yaml" in code)
    exec(compile(drawn, str(page), "exec"), names)
    monkeypatch.setenv("HOME", str(names["root"].parent))
    lines = [line for _, code in blocks(page, SHELL) for line in code.splitlines()]
    (training,) = (line for line in lines if "--data.name folder" in line and "--size" not in line)
    checking = next(line for line in lines if line.startswith("apd check"))
    for name in ("FEWEST_STEPS", "STEPS"):  # the rest is verbatim
        monkeypatch.setattr(module, name, 1)
    monkeypatch.setattr(module, "_at_hand", lambda *_: False)  # random weights do for a step
    assert leave(*shlex.split(training)[1:]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("~/fields: 4 images to train of 64x96 pixels (height x width); a recipe was chosen")
    assert "  scores   on val (there is no split test)" in out
    assert read_record(out[-1]).content["data"]["split"] == "val"
    assert leave(*shlex.split(checking)[1:]) == 0
    assert re.search(r"^crop +\d+\.\d\d % +\d+\.\d\d %$", capsys.readouterr().out, re.MULTILINE)


def test_any_option_wins_over_the_choice_and_is_named(tmp_path, capsys):
    folder = make(tmp_path / "fields", test=1)
    size = ["--data.height=32", "--data.width", "48", "--network.output-stride", "16", "--data.jitter", "0"]
    more = ["--data.evaluation-split", "val", "--training.learning-rate", "0.1", "--seed", "3"]
    assert trained(folder, *size, *more) == 0
    out = capsys.readouterr().out
    experiment = read_record(out.splitlines()[-1]).experiment
    data = experiment.data
    assert (experiment.name, data.height, data.width, data.jitter) == ("fields-apd-seed3", 32, 48, 0)
    assert (data.crop_height, data.crop_width) == (32, 48), "chosen for the size asked for"
    assert (experiment.training.learning_rate, experiment.network.output_stride) == (0.1, 16)
    for said in ("images   32x48 (as asked)", "2 of 8 images (as asked), after 2 of the teacher", "on val (as asked)"):
        assert said in out


def test_one_folder_is_one_run_however_it_is_spelled(tmp_path, monkeypatch, capsys):
    make(tmp_path / "fields")
    monkeypatch.chdir(tmp_path)
    spelled = ("fields", "fields/", "./fields")
    assert len({fingerprint(own_recipe(folder).experiment) for folder in spelled}) == 1
    for folder in spelled:
        assert leave("train", "--data.name=folder", f"--data.folder={folder}", *SMALL, *STEPS, "--device=cpu") == 0
    assert len({line for line in capsys.readouterr().out.splitlines() if line.endswith("record.json")}) == 1


def test_the_student_alone_trains_no_teacher_unless_options_ask_for_one(tmp_path, capsys):
    folder = make(tmp_path / "fields")
    alone = ["--method", "student", *SMALL, *STEPS[:2]]
    assert leave("train", "--data.name=folder", f"--data.folder={folder}", *alone) == 0
    out = capsys.readouterr().out
    assert "teacher" not in out
    assert read_record(out.splitlines()[-1]).experiment.teacher is None
    own = [own_recipe(folder, method).experiment for method in ("student", "apd")]
    rates = LEARNING_RATES["labelmefacade"]
    assert [e.training.learning_rate for e in own] == [rates[method] for method in ("student", "apd")]
    assert own[1].teacher.training.learning_rate == rates["student"]
    assert trained(folder, "--method", "student") == 0
    assert "; teacher mIoU" in capsys.readouterr().out


@pytest.mark.parametrize("builder", ["", "--network.builder", "--teacher.network.builder"])
def test_cells_lie_at_aligned_corners_unless_a_network_is_of_another_library(builder, tmp_path, monkeypatch):
    seen, folder, nets = [], make(tmp_path / "fields"), tmp_path / "nets.py"
    nets.write_text("def net(num_classes): ...")
    monkeypatch.setattr("apd.training.run.train", lambda experiment, **_: seen.append(experiment) or pytest.skip())
    with pytest.raises(pytest.skip.Exception):
        leave("train", *OWN[:3], str(folder), *([builder, f"{nets}:net"] if builder else []))
    (apd,), networks = seen[0].distillers, (seen[0].network, seen[0].teacher.network)
    assert apd.align_corners == (not builder)
    assert [network.fit_sides for network in networks] == [not network.builder for network in networks]


@pytest.mark.parametrize("asked", [["--size=tiny"], ["tiny-apd"]])
def test_a_size_that_is_asked_for_is_the_recipe_as_ever(asked, tmp_path, monkeypatch):
    seen, folder = [], str(make(tmp_path / "fields"))
    monkeypatch.setattr("apd.training.run.train", lambda experiment, **_: seen.append(experiment) or pytest.skip())
    with pytest.raises(pytest.skip.Exception):
        leave("train", *asked, "--data.name", "folder", "--data.folder", folder)
    as_ever = recipe("tiny", "apd")
    data = dataclasses.replace(as_ever.data, name="folder", folder=folder)
    assert seen == [dataclasses.replace(as_ever, data=data)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.folder", "FOLDER"], "--data.folder .*: --data.name is scenes, so give --data.name folder with it"),
        (["--data.name", "folder"], "DataConfig.folder = '': expected the path of a folder"),
        ([*OWN, "--data.height", "0"], "width"),
        ([*OWN, "--data.height", "20", "--data.width", "24"], "height = 20"),
        (["--data.name", "folder", "--data.folder", "nowhere"], "there is no dataset.yaml in"),
        ([*OWN, "--method", "roi_apd"], "method = 'roi_apd': expected one"),
        ([*OWN, "--method", "student_equal_seconds"], "method = 'student_equal_seconds': expected one of student, pix"),
    ],
)
def test_options_that_cannot_be_meant_are_refused_before_anything_is_built(arguments, message, tmp_path, capsys):
    folder = make(tmp_path / "fields")
    assert leave("train", *(str(folder) if word == "FOLDER" else word for word in arguments)) in (1, 2)
    assert re.search(message, re.sub(r"[│\s]+", " ", capsys.readouterr().err))
