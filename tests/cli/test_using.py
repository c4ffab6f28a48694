"""The commands for what is finished: evaluate, predict and export a run of segmentation, replay any record."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from pandas import read_csv
from PIL import Image
from small_detection import small
from small_experiments import tiny
from torch.nn.functional import interpolate

from apd.cli.app import main
from apd.config.datasets import build_split
from apd.config.inference_options import InferenceOptions
from apd.evaluation.inference import confusion_of, predict_labels, scores
from apd.evaluation.predict import predict_image
from apd.training.record import Record, read_record
from apd.training.run import run_folder, train, trained_network
from apd.training.run_log import StoppedError


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run; tests must not change it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("APD_RUNS", str(tmp_path_factory.mktemp("runs")))
        train(tiny())
        return run_folder(tiny())


@pytest.mark.parametrize("file", ["", "record.json", "weights.safetensors"])
def test_evaluate_prints_what_the_record_says_and_scores_other_splits(file, finished, capsys):
    record, run = read_record(finished / "record.json"), str(finished / file)
    assert main(["evaluate", run]) == 0
    *classes, total = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in classes] == record.class_names
    assert all(f"IoU {iou:.4f}" in line for line, iou in zip(classes, record.scores.iou, strict=True))
    assert total.startswith(f"mIoU {record.scores.miou:.4f} over {record.scores.classes_counted} classes")
    assert total.endswith("3 images of val")
    assert main(["evaluate", run, "--split", "train"]) == 0
    assert capsys.readouterr().out.endswith("6 images of train\n")


def test_evaluate_writes_a_table_of_classes_and_a_label_map_of_every_image(finished, tmp_path):
    table, maps = tmp_path / "classes.csv", tmp_path / "new" / "maps"
    assert main(["evaluate", str(finished), "--csv", str(table), "--pictures", str(maps)]) == 0
    record = read_record(finished / "record.json")
    rows = read_csv(table)
    assert rows["class"].tolist() == record.class_names
    assert rows["pixels"].tolist() == np.array(record.content["confusion"]).sum(1).tolist()
    for column, values in (("IoU", record.scores.iou), ("accuracy", record.scores.accuracy)):
        np.testing.assert_allclose(rows[column], values, atol=1e-6)
    model, data = trained_network(finished), build_split(record.experiment.data, "val")
    assert len(list(maps.iterdir())) == len(data) == 3
    for image, _labels, name in data:
        with Image.open(maps / f"{name}-labels.png") as written:
            assert written.getpalette()[:30] == [channel for colour in data.spec.palette for channel in colour]
            assert np.array_equal(np.asarray(written), predict_labels(model, image[None] / 255)[0])


def test_evaluate_and_predict_take_windows_mirror_images_and_sizes(finished, tmp_path, capsys):
    switches = ["--sliding-window", "0.667", "--flip", "--scales", "1.0", "1.25"]
    options = InferenceOptions(window=(32, 32), stride=0.667, flip=True, scales=(1.0, 1.25))
    model, data = trained_network(finished), build_split(read_record(finished / "record.json").experiment.data, "val")
    expected, whole = scores(confusion_of(model, data, inference=options)), scores(confusion_of(model, data))
    assert main(["evaluate", str(finished), *switches]) == 0
    assert f"mIoU {expected.miou:.4f} over" in capsys.readouterr().out
    assert f"{expected.miou:.4f}" != f"{whole.miou:.4f}"

    paths = [tmp_path / f"{name}.png" for _, _, name in data]
    for path, (image, _, _) in zip(paths, data, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).resize((60, 40)).save(path)
    assert main(["predict", str(finished), *map(str, paths), "--to", str(tmp_path / "cli"), *switches]) == 0
    files = [str(tmp_path / "cli" / f"{path.stem}-{kind}.png") for path in paths for kind in ("labels", "overlay")]
    assert capsys.readouterr().out.splitlines() == files
    for path in paths:
        predict_image(model, path, tmp_path / "options", data.spec, size=(32, 48), inference=options)
        ours, theirs = (Image.open(tmp_path / folder / f"{path.stem}-labels.png") for folder in ("cli", "options"))
        assert np.array_equal(ours, theirs)


def test_without_switches_a_run_is_evaluated_as_its_experiment_says(tiny_recipes, capsys):
    assert main(["train", "--method", "student", "--inference.flip", "--inference.window", "32", "32"]) == 0
    path = Path(capsys.readouterr().out.splitlines()[-1])
    record = read_record(path)
    assert record.experiment.inference == InferenceOptions(window=(32, 32), flip=True)
    assert main(["evaluate", str(path.parent)]) == 0
    assert f"mIoU {record.scores.miou:.4f} over" in capsys.readouterr().out
    whole = record.content["evaluations"][-1]["confusion"]
    assert whole != record.content["confusion"]
    assert main(["evaluate", str(path.parent), "--scales", "1"]) == 0
    assert f"mIoU {scores(torch.tensor(whole)).miou:.4f} over" in capsys.readouterr().out


@pytest.mark.filterwarnings("error")
def test_export_writes_the_student_and_tells_what_was_checked(finished, tmp_path, capsys):
    path = tmp_path / "models" / "student.pt2"
    assert main(["export", str(finished), "--to", str(path)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.startswith(f"{path}: ")
    assert "height and width any from 32; largest difference" in captured.out
    program, images = torch.export.load(path), torch.rand(1, 3, 45, 37)
    expected = interpolate(trained_network(finished)(images).logits, (45, 37), mode="bilinear", align_corners=True)
    torch.testing.assert_close(program.module()(images), expected, rtol=1e-4, atol=1e-4)
    assert not [name for name in program.state_dict if "aux" in name]


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["predict", "RUN", "FILE"], 1, ["file: cannot be read as an image"]),
        (["evaluate", "RUN", "--sliding-window", "1.5"], 2, ["--sliding-window: ", "= 1.5", "above 0 and at most 1"]),
        (["evaluate", "RUN", "--scales", "1", "0"], 2, ["--scales: ", "at least one number above 0"]),
        (["evaluate", "RUN", "--scales", "0.5"], 2, ["--scales 0.5: ", "a side of 16 pixels", "32×48", "use larger"]),
        (["predict", "RUN", "FILE", "--least-score", "0.5"], 2, ["--least-score 0.5: this run is of segmentation"]),
        (["evaluate", "RUN", "--csv", "FOLDER"], 2, ["--csv", "expected a file in a folder that is there"]),
        (["evaluate", "RUN", "--pictures", "FILE"], 2, ["--pictures", "expected a folder, and this is a file"]),
        (["evaluate", "FOLDER"], 2, ["holds no record.json"]),
        (["export", "RUN", "--to", "student.pt"], 2, ["--to student.pt", ".onnx or .pt2"]),
        (["export", "RUN", "--to", "FILE/student.pt2"], 1, ["student.pt2 cannot be written"]),
    ],
)
def test_what_a_finished_run_cannot_be_asked_is_refused_before_anything_is_computed(
    arguments, code, expected, finished, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("apd.evaluation.inference.confusion_of", lambda *_, **__: pytest.fail("computed"))
    monkeypatch.setattr("apd.evaluation.export._traced", lambda *_: pytest.fail("computed"))
    (tmp_path / "file").touch()
    places = {"RUN": finished, "FOLDER": tmp_path, "FILE": tmp_path / "file"}
    assert main([re.sub(r"^(RUN|FOLDER|FILE)", lambda found: str(places[found[0]]), one) for one in arguments]) == code
    captured = capsys.readouterr()
    assert [part for part in expected if part not in captured.err] == []
    assert captured.out == ""


EXPERIMENTS = {"segmentation": tiny("apd", iterations=2, evaluations=1), "detection": small("roi_apd", iterations=2)}


@pytest.fixture(scope="module", params=EXPERIMENTS)
def record(request, tmp_path_factory):
    """The file of a record outside the folder of runs, where its teacher's run is."""
    experiment, folder = EXPERIMENTS[request.param], tmp_path_factory.mktemp("replayed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("APD_RUNS", str(folder / "runs"))
        train(experiment).save(folder / "record.json")
        for path in run_folder(experiment).glob("*.*"):
            path.unlink()
        yield folder / "record.json"


def replayed(path, capsys):
    code = main(["replay", str(path), "--device", "cpu"])
    return code, capsys.readouterr().out.splitlines()


def test_a_record_of_this_machine_comes_out_equal_and_leaves_no_run(record, capsys):
    runs = sorted((record.parent / "runs").rglob("record.json"))
    code, lines = replayed(record, capsys)
    score, value = Record(json.loads(record.read_text())).headline
    assert code == 0
    weights = "weights, scores, curves, teacher and data are the record's, bit by bit"
    assert lines[-1] == f"equal: {score} {value:.4f}; {weights}"
    assert not [line for line in lines if "in the record" in line]
    assert "note: the teacher is not trained again: its finished run lies in " in "\n".join(lines)
    assert sorted((record.parent / "runs").rglob("record.json")) == runs, "the teacher's only, which was found"


def test_another_count_commit_and_version_are_named_and_end_with_1(record, tmp_path, capsys):
    content = json.loads(record.read_text())
    content["git"], content["versions"]["torch"] = {"commit": "0" * 40, "clean": False}, "1.0"
    if "confusion" in content:
        content["confusion"][0][0] += 1
        expected = "confusion: 1 of 100 numbers differ, the first is "
    else:
        content["ap"]["boxes"]["ap"][0][0][0] = 0.5
        expected = "ap.boxes.ap: 1 of 120 numbers differ, the first is 0.5 in the record and "
    (tmp_path / "changed.json").write_text(json.dumps(content))
    code, lines = replayed(tmp_path / "changed.json", capsys)
    assert code == 1
    assert f"note: versions.torch: 1.0 in the record and {torch.__version__} here" in lines
    assert f"note: git.commit: {'0' * 40} in the record and " in "\n".join(lines)
    assert "note: git.clean: the record's code had changes that were not committed" in lines
    assert lines[-2].startswith(expected)
    assert lines[-1].startswith("differences: 1, at most 20 of them above; ")


def test_a_replay_that_is_stopped_does_not_promise_to_go_on(record, monkeypatch, capsys):
    monkeypatch.setattr("apd.training.run.train", lambda *_, **__: (_ for _ in ()).throw(StoppedError("goes on")))
    assert main(["replay", str(record), "--device", "cpu"]) == 130
    assert capsys.readouterr().err.startswith("apd: stopped: a replay begins anew")
