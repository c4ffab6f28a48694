"""The command `apd`: what it prints, what it writes, and what it says to a command line that it cannot understand."""

import ast
import contextlib
import csv
import dataclasses
import json
import math
import os
import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_experiments import exit_code, tiny

from apd.cli import app as cli
from apd.config.datasets import build_split
from apd.config.experiment import Experiment
from apd.config.identity import from_dict, to_dict
from apd.config.inference import InferenceOptions
from apd.cost.measure import LossShape
from apd.evaluation.inference import confusion_of, predict_labels
from apd.evaluation.metrics import scores
from apd.evaluation.predict import predict_image
from apd.study.campaigns import CAMPAIGNS
from apd.study.recipes import all_recipes
from apd.training.record import read_record
from apd.training.run import run_folder, train, trained_network
from apd.training.run_log import ProgressLines

COMMANDS = ("train", "check", "evaluate", "predict", "export", "campaign", "cost", "recipes")


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A folder for runs, and the tiny experiments of these tests in the place of the recipes."""
    monkeypatch.setenv("APD_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr("apd.study.recipes.recipe", lambda _size="tiny", method="apd", **_: tiny(method))
    return tmp_path / "runs"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run; tests must not change it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("APD_RUNS", str(tmp_path_factory.mktemp("runs")))
        train(tiny())
        return run_folder(tiny())


def leave(arguments):
    """The exit code of a command, however it is given."""
    try:
        return cli.main(arguments)
    except SystemExit as left:
        return left.code


def test_without_a_command_the_commands_are_told(capsys):
    assert (leave([]), leave(["--help"]), leave(["-h"])) == (2, 0, 0)
    once = capsys.readouterr().out.split("usage: apd COMMAND")[1]
    assert all(f"  {command} " in once for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_tells_its_options(command, capsys):
    assert leave([command, "--help"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"usage: apd {command}")
    assert captured.err == ""


def test_the_help_of_train_shows_every_field_of_an_experiment_with_its_type_or_choices(capsys):
    assert leave(["train", "--help"]) == 0
    out = capsys.readouterr().out

    def flags(config, prefix=""):
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            name = f"{prefix}{field.name}".replace("_", "-")
            if dataclasses.is_dataclass(value):
                yield from flags(value, f"{name}.")
            elif isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
                for place, entry in enumerate(value):
                    yield from flags(entry, f"{name}.{place}.")
            else:
                yield f"--{name}," if isinstance(value, bool) else f"--{name} "  # a bool has a --no- form beside it

    expected = list(flags(tiny("apd")))
    assert len(expected) > 60
    assert [flag for flag in expected if flag not in out] == []
    assert "--precision {auto,fp32,bf16}" in out
    assert "--training.learning-rate FLOAT" in out
    assert "--training.clip-norm {None}|FLOAT" in out


def test_train_prints_the_scores_and_where_the_record_lies(runs, capsys):
    assert leave(["train", "--method", "student"]) == 0
    captured = capsys.readouterr()
    *progress, summary, path = captured.out.splitlines()
    assert progress[0] == "tiny-student-seed0: step 0 of 6"
    record = read_record(Path(path))
    assert summary.startswith(f"tiny-student-seed0: mIoU {record.scores.miou:.4f}, mAcc {record.scores.macc:.4f}")
    assert Path(path).is_relative_to(runs)
    told = captured.err.splitlines()
    assert all(line.startswith("warning: the student: ") for line in told), "the bar is for terminals"
    assert leave(["train", "--method=student"]) == 0
    assert capsys.readouterr().out.splitlines() == [summary, path], "a finished run is found again"


def test_train_tells_the_teachers_score_and_the_agreement(runs, capsys):
    assert leave(["train"]) == 0
    *_, summary, path = capsys.readouterr().out.splitlines()
    record = read_record(Path(path))
    assert record.experiment.distillers == tiny("apd").distillers
    assert f"teacher mIoU {record.teacher_scores.miou:.4f}, agreement {record.agreement:.4f}" in summary


def test_any_field_can_be_changed_and_the_label_follows_the_seed(runs, capsys):
    changes = ["--seed", "3", "--training.clip-norm", "1", "--data.world=2", "--training.batch_size", "3"]
    assert leave(["train", "--method", "student", *changes]) == 0
    record = read_record(Path(capsys.readouterr().out.splitlines()[-1]))
    start = tiny()
    assert record.experiment == replace(
        start,
        name="tiny-student-seed3",
        seed=3,
        data=replace(start.data, world=2),
        training=replace(start.training, clip_norm=1.0, batch_size=3),
    )


def test_a_label_can_be_given(runs, capsys):
    assert leave(["train", "--method", "student", "--name", "mine"]) == 0
    assert Path(capsys.readouterr().out.splitlines()[-1]).parent.name.startswith("mine-")


def test_evaluate_prints_what_the_record_says_and_scores_other_splits(finished, capsys):
    record = read_record(finished / "record.json")
    assert leave(["evaluate", str(finished)]) == 0
    *classes, total = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in classes] == record.class_names
    for line, iou in zip(classes, record.scores.iou, strict=True):
        assert f"IoU {iou:.4f}" in line
    assert total.startswith(f"mIoU {record.scores.miou:.4f} over {record.scores.classes_counted} classes")
    assert total.endswith("3 images of val")
    assert leave(["evaluate", str(finished), "--split", "train"]) == 0
    assert capsys.readouterr().out.endswith("6 images of train\n")


def test_predict_writes_two_files_for_each_picture_and_prints_them(finished, tmp_path, capsys):
    for name, size in (("a.png", (50, 40)), ("b.jpg", (33, 90))):
        Image.fromarray(np.zeros((*size, 3), dtype=np.uint8)).save(tmp_path / name)
    to = tmp_path / "out"
    pictures = [str(tmp_path / "a.png"), str(tmp_path / "b.jpg")]
    assert leave(["predict", str(finished), *pictures, "--to", str(to)]) == 0
    names = ["a-labels.png", "a-overlay.png", "b-labels.png", "b-overlay.png"]
    assert capsys.readouterr().out.splitlines() == [str(to / name) for name in names]
    assert sorted(path.name for path in to.iterdir()) == names
    with Image.open(to / "b-labels.png") as image:
        assert image.size == (90, 33)
        assert np.asarray(image).max() < 10


def test_campaign_trains_what_lacks_a_record_and_prints_every_score(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(CAMPAIGNS, "two", lambda: (tiny(seed=seed) for seed in range(2)))
    records = str(tmp_path / "records")
    assert leave(["campaign", "two", "--records", records, "--only", "seed1"]) == 0
    assert leave(["campaign", "two", "--records", records]) == 0
    out = capsys.readouterr().out
    assert "two: 2 experiments, 1 have a record" in out
    assert [line.split(":")[0] for line in out.splitlines()[-2:]] == ["student-seed0", "student-seed1"]


def test_cost_tells_both_networks(runs, capsys):
    assert leave(["cost", "--batch", "2", "--device", "cpu"]) == 0
    student, teacher = capsys.readouterr().out.splitlines()
    assert student.startswith("student: test_efficientnet psp, 2x32x48 on cpu: ")
    assert teacher.startswith("teacher: test_efficientnet psp, 2x32x48 on cpu: ")


def test_cost_of_the_loss_has_a_line_for_each_shape_without_and_with_heads(monkeypatch, capsys):
    tiny_shape = {"tiny": LossShape(batch=1, channels=4, grid=3, classes=5, labels=9)}
    monkeypatch.setattr("apd.cost.measure.LOSS_SHAPES", tiny_shape)
    assert leave(["cost", "--loss", "--device", "cpu"]) == 0
    bare, with_heads = capsys.readouterr().out.splitlines()
    assert bare.startswith("tiny, no heads: ")
    assert with_heads.startswith("tiny, heads 4 wide: ")


@pytest.mark.parametrize(("name", "size", "method"), [("small-pixel_kd", "small", "pixel_kd"), ("full", "full", "apd")])
def test_a_recipe_can_be_trained_by_its_name(name, size, method, runs, monkeypatch, capsys):
    asked, of_the_tests = [], "apd.study.recipes.recipe"
    monkeypatch.setattr(of_the_tests, lambda size, method, **_: asked.append((size, method)) or tiny(method))
    assert leave(["train", name, "--dry-run", "--device", "cpu", "--training.warmup", "2"]) == 0
    assert asked == [(size, method)]
    assert f"{size}-{method}-seed0, fingerprint" in capsys.readouterr().out


def test_a_worker_of_a_campaign_runs_its_shard(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(CAMPAIGNS, "two", lambda: (tiny(seed=seed) for seed in range(2)))
    assert leave(["campaign", "two", "--records", str(tmp_path / "records"), "--shard", "2/2", "--workers", "1"]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()[-1:]] == ["student-seed1"]


def test_recipes_are_listed_and_shown_as_they_are_run(capsys):
    assert leave(["recipes"]) == 0
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    recipes = dict(all_recipes())
    assert listed == set(recipes)
    assert leave(["recipes", "small-apd"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == to_dict(recipes["small-apd"])
    assert isinstance(from_dict(shown), Experiment)


@pytest.mark.parametrize("words", [["show", "tiny-apd"], ["tiny"], ["show", "tiny"]])
def test_a_recipe_can_be_shown_in_two_words_and_by_its_size(words, capsys):
    assert leave(["recipes", *words]) == 0
    assert json.loads(capsys.readouterr().out) == to_dict(dict(all_recipes())["tiny-apd"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["trian"], ["there is no command 'trian'", "did you mean 'train'?"]),
        (["recipes", "show"], ["there is no recipe 'show'"]),
        (["recipes", "show", "tiny-"], ["there is no recipe 'tiny-'", "did you mean 'tiny-apd'?"]),
        (["train", "tny-apd"], ["there is no recipe 'tny-apd'", "did you mean 'tiny-apd'?"]),
        (["train", "cityscapes-student_equal_seconds"], ["there is no recipe 'cityscapes-student_equal_seconds'"]),
        (["train", "tiny-apd", "--method=student"], ["--method=student: the recipe tiny-apd says it already"]),
        (["recipes", "tny-apd"], ["there is no recipe 'tny-apd'", "did you mean 'tiny-apd'?"]),
        (["campaign", "scenes"], ["there is no campaign 'scenes'", "did you mean 'scenes-tiny'?"]),
        (["train", "--size", "smal"], ["'smal'", "did you mean 'small'?"]),
        (["train", "--method=adp"], ["'adp'", "did you mean 'apd'?"]),
        (["train", "--data.name", "camvd"], ["'camvd'", "did you mean 'camvid'?"]),
        (["train", "--training.lerning-rate", "1"], ["--training.lerning-rate", "--training.learning-rate FLOAT"]),
        (["train", "--training.learning-rate", "fast"], ["--training.learning-rate", "'fast'"]),
        (["train", "--seed", "1.5"], ["--seed", "'1.5'"]),
        (["train", "--training.batch-size", "1"], ["TrainingConfig.batch_size = 1", "at least 2"]),
        (["train", "--distillers.0.width", "None"], ["APDConfig.regularisation = 1.0", "width is None"]),
        (["train", "--inference.stride", "2"], ["InferenceOptions.stride = 2.0", "windows may not leave gaps"]),
        (["evaluate"], ["Missing", "RUN"]),
        (["export", "here"], ["Missing", "--to"]),
        (["evaluate", "here", "--split", "tset"], ["'tset'", "did you mean 'test'?"]),
        (["predict", "here"], ["at least one picture"]),
        (["cost", "--batch", "0"], ["--batch 0", "at least 1"]),
        (["campaign", "scenes-tiny", "--shard", "3/2"], ["shard = '3/2'", "such as 2/8"]),
        (["campaign", "scenes-tiny", "--workers", "-1"], ["workers = -1: expected a whole number of at least 0"]),
    ],
)
def test_a_command_line_that_cannot_be_understood_is_told_with_what_is_nearest(arguments, told, capsys):
    assert leave(arguments) == 2
    captured = capsys.readouterr()
    text = " ".join(captured.err.replace("│", " ").split())  # tyro draws a box and wraps lines in it
    assert [part for part in told if part not in text] == []
    assert captured.out == ""


def campaign_on_a_bare_machine(runs):
    """As where only torch, torchvision, timm, safetensors, tqdm, numpy and pillow are installed."""
    extras = ("tyro", "matplotlib", "pandas", "seaborn", "papermill", "sklearn", "jupyter_book", "nbformat")
    assert not set(extras) & set(sys.modules)
    sys.modules.update(dict.fromkeys(extras))  # None: importing it fails as if it were not installed
    os.environ["APD_RUNS"] = str(runs)
    import apd.study.campaigns

    apd.study.campaigns.recipe = lambda *_, method="student", **options: tiny(seed=options.get("seed", 0))
    sys.argv = ["campaign", "camvid-small", "--only", "student-seed0", "--records", str(runs / "records")]
    with contextlib.suppress(SystemExit):
        runpy.run_module("apd.study.campaign", run_name="__main__")
    os._exit(cli.main(["train"]))


def test_a_bare_machine_runs_campaigns_and_is_told_what_the_command_line_lacks(tmp_path):
    output = tmp_path / "output"
    assert exit_code(campaign_on_a_bare_machine, tmp_path, output=output) == 1
    (record,) = (tmp_path / "records").iterdir()
    assert read_record(record).experiment == replace(tiny(), name="student-seed0")
    *before, last = output.read_text().splitlines()
    assert before[-1].startswith("camvid-small: 1/1 student-seed0: mIoU ")
    assert last == (
        "apd: the command line needs tyro (in the project's folder: pip install -e '.[cli]'); without it, "
        "`python -m apd.study.campaign NAME` runs campaigns"
    )


def list_recipes_for_a_reader_who_has_left():
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, 1)
    sys.stdout = os.fdopen(1, "w")
    sys.exit(cli.main(["recipes"]))


def test_a_reader_that_leaves_early_is_no_error_to_show(tmp_path):
    assert exit_code(list_recipes_for_a_reader_who_has_left, output=tmp_path / "output") == 1
    assert (tmp_path / "output").read_text() == ""


def test_evaluate_writes_a_table_of_classes_and_a_label_map_of_every_image(finished, tmp_path, capsys):
    table, maps = tmp_path / "classes.csv", tmp_path / "new" / "maps"
    assert leave(["evaluate", str(finished), "--csv", str(table), "--pictures", str(maps)]) == 0
    record = read_record(finished / "record.json")
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == record.class_names
    pixels = np.array(record.content["confusion"]).sum(1)
    assert [int(row["pixels"]) for row in rows] == pixels.tolist()
    for row, iou, accuracy in zip(rows, record.scores.iou.tolist(), record.scores.accuracy.tolist(), strict=True):
        for written, value in ((row["IoU"], iou), (row["accuracy"], accuracy)):
            assert written == ("" if math.isnan(value) else f"{value:.6f}")
    model, data = trained_network(finished), build_split(record.experiment.data, "val")
    assert len(list(maps.iterdir())) == len(data) == 3
    for image, _labels, name in data:
        with Image.open(maps / f"{name}-labels.png") as written:
            assert written.getpalette()[:30] == [channel for colour in data.spec.palette for channel in colour]
            assert np.array_equal(np.asarray(written), predict_labels(model, image[None] / 255)[0])


def test_evaluate_and_predict_take_windows_mirror_images_and_sizes(finished, tmp_path, capsys):
    switches = ["--sliding-window", "0.667", "--flip", "--scales", "1.0", "1.25"]
    looks = InferenceOptions(window=(32, 32), stride=0.667, flip=True, scales=(1.0, 1.25))
    record = read_record(finished / "record.json")
    model, data = trained_network(finished), build_split(record.experiment.data, "val")
    expected = scores(confusion_of(model, data, inference=looks))
    assert leave(["evaluate", str(finished), *switches]) == 0
    assert f"mIoU {expected.miou:.4f} over" in capsys.readouterr().out
    assert f"{expected.miou:.4f}" != f"{record.scores.miou:.4f}"

    paths = [tmp_path / f"{name}.png" for _, _, name in data]
    for path, (image, _, _) in zip(paths, data, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).resize((60, 40)).save(path)
    assert leave(["predict", str(finished), *map(str, paths), "--to", str(tmp_path / "cli"), *switches]) == 0
    for path in paths:
        predict_image(model, path, tmp_path / "looks", data.spec, size=(32, 48), inference=looks)
        predict_image(model, path, tmp_path / "whole", data.spec, size=(32, 48))
    maps = {
        folder: [np.asarray(Image.open(tmp_path / folder / f"{path.stem}-labels.png")) for path in paths]
        for folder in ("cli", "looks", "whole")
    }
    assert np.array_equal(maps["cli"], maps["looks"])
    assert not np.array_equal(maps["cli"], maps["whole"])


def test_without_switches_a_run_is_evaluated_as_its_experiment_says(runs, capsys):
    assert leave(["train", "--method", "student", "--inference.flip", "--inference.window", "32", "32"]) == 0
    record_path = Path(capsys.readouterr().out.splitlines()[-1])
    record = read_record(record_path)
    assert record.experiment.inference == InferenceOptions(window=(32, 32), flip=True)
    assert leave(["evaluate", str(record_path.parent)]) == 0
    assert f"mIoU {record.scores.miou:.4f} over" in capsys.readouterr().out
    whole = record.content["evaluations"][-1]["confusion"]
    assert whole != record.content["confusion"]
    assert leave(["evaluate", str(record_path.parent), "--scales", "1"]) == 0
    assert f"mIoU {scores(torch.tensor(whole)).miou:.4f} over" in capsys.readouterr().out


@pytest.mark.filterwarnings("error")
def test_export_writes_the_student_and_tells_what_was_checked(finished, tmp_path, capsys):
    path = tmp_path / "models" / "student.pt2"
    assert leave(["export", str(finished), "--to", str(path)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.startswith(f"{path}: ")
    assert "height and width any from 32; largest difference" in captured.out
    program, images = torch.export.load(path), torch.rand(1, 3, 45, 37)
    logits = trained_network(finished)(images).logits
    expected = torch.nn.functional.interpolate(logits, (45, 37), mode="bilinear", align_corners=True)
    torch.testing.assert_close(program.module()(images), expected, rtol=1e-4, atol=1e-4)
    assert not [name for name in program.state_dict if "aux" in name]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["evaluate", "RUN", "--sliding-window", "1.5"], 2, ["--sliding-window: ", "= 1.5", "above 0 and at most 1"]),
        (["evaluate", "RUN", "--scales", "1", "0"], 2, ["--scales: ", "at least one number above 0"]),
        (["predict", "RUN", "FILE", "--scales", "0.5"], 2, ["--scales 0.5", "a side of 16 pixels", "32×48"]),
        (["evaluate", "RUN", "--csv", "FOLDER"], 2, ["--csv", "expected a file in a folder that is there"]),
        (["evaluate", "RUN", "--csv", "FOLDER/no/a.csv"], 2, ["--csv", "in a folder that is there"]),
        (["evaluate", "RUN", "--pictures", "FILE"], 2, ["--pictures", "expected a folder, and this is a file"]),
        (["evaluate", "FOLDER"], 2, ["holds no record.json"]),
        (["export", "RUN", "--to", "student.pt"], 2, ["--to student.pt", ".onnx or .pt2"]),
        (["export", "FOLDER", "--to", "student.pt2"], 2, ["holds no record.json"]),
        (["export", "RUN", "--to", "FILE/student.pt2"], 1, ["student.pt2 cannot be written"]),
    ],
)
def test_what_a_finished_run_cannot_be_asked_is_told_before_anything_is_computed(
    arguments, code, told, finished, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("apd.evaluation.inference.confusion_of", lambda *_, **__: pytest.fail("computed"))
    monkeypatch.setattr("apd.evaluation.export._traced", lambda *_: pytest.fail("computed"))
    (tmp_path / "file").touch()
    places = {"RUN": finished, "FOLDER": tmp_path, "FILE": tmp_path / "file"}
    words = [re.sub(r"^(RUN|FOLDER|FILE)", lambda found: str(places[found[0]]), word) for word in arguments]
    assert leave(words) == code
    captured = capsys.readouterr()
    assert [part for part in told if part not in captured.err] == []
    assert captured.out == ""


ADVICE = re.compile(
    r"(?:use|set|with|ask for|give|lower) ([a-z_]+=(?:False|True|None|'[a-z]+')|[a-z]+\.[a-z]+_[a-z]+)", re.I
)


def messages(path):
    """Every text of a module that is not a docstring; what is filled in stands as {}."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        if {id(node)} & (inside | alone) or not isinstance(node, ast.JoinedStr | ast.Constant):
            continue
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts)


@pytest.mark.parametrize("part", ["data", "models", "config", "evaluation", "training", "cost", "study", "cli"])
def test_advice_that_names_a_field_names_the_option_too(part):
    files = (Path(cli.__file__).parents[1] / part).rglob("*.py")
    advising = [text for path in files for text in messages(path) if ADVICE.search(text)]
    assert [text for text in advising if "--" not in text] == []
    assert advising or part not in ("data", "models")


def test_advice_without_an_option_is_found(tmp_path):
    (tmp_path / "a.py").write_text('"""use masks=False"""\nraise ValueError(f"{1}: read with masks=False")\n')
    assert [text for text in messages(tmp_path / "a.py") if ADVICE.search(text)] == ["{}: read with masks=False"]


@pytest.mark.parametrize("file", ["", "record.json", "weights.safetensors", "log.jsonl"])
def test_a_run_is_named_by_its_folder_or_by_a_file_in_it(file, finished, tmp_path, capsys):
    run = finished / file
    assert leave(["evaluate", str(run), "--csv", str(tmp_path / "classes.csv")]) == 0
    assert "mIoU" in capsys.readouterr().out
    Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(tmp_path / "street.png")
    assert leave(["predict", str(run), str(tmp_path / "street.png"), "--to", str(tmp_path / "seen")]) == 0
    assert leave(["export", str(run), "--to", str(tmp_path / "student.pt2")]) == 0
    by_text, by_path = trained_network(str(run)), trained_network(run)
    assert [*by_text.state_dict()] == [*by_path.state_dict()]


def test_a_log_in_a_file_tells_steps_loss_time_and_scores_on_the_way(runs, monkeypatch, capsys):
    monkeypatch.setattr("apd.training.run_log.LINE_SECONDS", 0.0)
    assert leave(["train"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (path,) = runs.glob("tiny-apd-*/record.json")
    record = read_record(path)
    for name, steps in (("scenes-teacher", 4), ("tiny-apd-seed0", 6)):
        mine = [line for line in lines if line.startswith(f"{name}: step")]
        pattern = r"step (\d+) of (\d+), loss \d+\.\d{4}, \S+ s a step, about \d+ s left"
        told = [re.search(pattern, line) for line in mine]
        assert [int(match[1]) for match in told if match] == [*range(2, steps + 1)]
        assert {int(match[2]) for match in told if match} == {steps}
    scored = [line for line in lines if line.startswith("tiny-apd-seed0: step") and line.endswith(" on val")]
    values = [scores(torch.tensor(one["confusion"])).miou for one in record.content["evaluations"]]
    assert scored == [
        f"tiny-apd-seed0: step {step} of 6, mIoU {value:.4f} on val" for step, value in zip((3, 6), values, strict=True)
    ]


def test_progress_lines_come_in_a_bounded_number(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr("apd.training.run_log.time.monotonic", lambda: clock[0])
    lines = ProgressLines("run", 100, 10_000)
    for step in range(101, 10_001):
        clock[0] += 0.125
        lines.step_done(step, 0.5)
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "run: step 100 of 10000"
    assert told[1] == "run: step 340 of 10000, loss 0.5000, 0.12 s a step, about 20 min left"
    assert len(told) == 1 + 9900 * 0.125 // 30
