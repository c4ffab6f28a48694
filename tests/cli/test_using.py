"""Commands on finished runs: evaluate, predict, export, replay; and training and dry runs of detection."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from miniatures import write_coco
from own_folders import leave
from pandas import read_csv
from PIL import Image
from small_detection import NETWORK, small
from small_experiments import dry_run_report, tiny
from torch.utils.flop_counter import FlopCounterMode

from apd.cli.training import summary
from apd.config.datasets import build_split
from apd.config.detection_config import InstanceDataConfig
from apd.config.inference_options import InferenceOptions
from apd.cost.count import step_cost
from apd.data.coco import coco_names
from apd.data.instances import InstanceSpec, Noise, encode
from apd.distillers.apd import RoIAPDConfig
from apd.evaluation.average_precision import Detections, detect
from apd.evaluation.inference import confusion_of, predict_labels, scores
from apd.evaluation.predict import RESULTS, TABLE, colours_of, drawn
from apd.training.distributed import ALONE
from apd.training.record import Record, read_record
from apd.training.run import run_folder, task_of, train, trained_network
from apd.training.run_log import StoppedError
from apd.training.schema import with_digest
from apd.training.trainer import TrainStep

CPU = torch.device("cpu")
COCO = InstanceDataConfig(name="coco", folder="coco", train_part="val2017", val_part="val2017", height=64, width=80)
BOXES = {"iterations": 2, "evaluations": 1}
STUDENT, ROI_APD = (small(method, data=COCO, **BOXES) for method in ("student", "roi_apd"))
EXPERIMENTS = {"segmentation": tiny("apd", iterations=2, evaluations=1), "detection": small("roi_apd", iterations=2)}


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    """A folder with a miniature of COCO and the runs of these tests on it."""
    folder = tmp_path_factory.mktemp("boxes")
    write_coco(folder / "coco", counts={"train": 4, "val": 3})
    return folder


@pytest.fixture
def place(miniature, monkeypatch):
    """That folder, and the smallest detector in the place of the recipes."""
    monkeypatch.setenv("APD_DATA", str(miniature))
    monkeypatch.setenv("APD_RUNS", str(miniature / "runs"))
    monkeypatch.setattr("apd.study.recipes.recipe", lambda _size="tiny", method="roi_apd", **_: small(method, **BOXES))
    return miniature


@pytest.fixture
def detector(place):
    """The folder of a finished run on the miniature; tests must not change it."""
    train(STUDENT, device="cpu", progress=False)
    return run_folder(STUDENT)


def test_evaluate_prints_and_writes_what_the_record_says_and_scores_other_splits(finished, tmp_path, capsys):
    table, maps, record = tmp_path / "classes.csv", tmp_path / "new" / "maps", read_record(finished / "record.json")
    assert leave("evaluate", finished, "--csv", table, "--pictures", maps) == 0
    *classes, total = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in classes] == record.class_names
    assert all(f"IoU {iou:.4f}" in line for line, iou in zip(classes, record.scores.iou, strict=True))
    assert total.startswith(f"mIoU {record.scores.miou:.4f} over {record.scores.classes_counted} classes")
    assert total.endswith("3 images of val")
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
    for file in ("record.json", "weights.safetensors"):
        assert leave("evaluate", finished / file, "--split", "train") == 0
        assert capsys.readouterr().out.endswith("6 images of train\n")


def test_evaluate_and_predict_take_windows_mirror_images_and_sizes(finished, tmp_path, capsys):
    switches = ["--sliding-window", "0.667", "--flip", "--scales", "1.0", "1.25"]
    options = InferenceOptions(window=(32, 32), stride=0.667, flip=True, scales=(1.0, 1.25))
    model, data = trained_network(finished), build_split(read_record(finished / "record.json").experiment.data, "val")
    expected, whole = scores(confusion_of(model, data, inference=options)), scores(confusion_of(model, data))
    assert leave("evaluate", str(finished), *switches) == 0
    assert f"mIoU {expected.miou:.4f} over" in capsys.readouterr().out
    assert f"{expected.miou:.4f}" != f"{whole.miou:.4f}"

    paths = [tmp_path / f"{name}.png" for _, _, name in data]
    for path, (image, _, _) in zip(paths, data, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    assert leave("predict", str(finished), *map(str, paths), "--to", str(tmp_path / "cli"), *switches) == 0
    for path, (image, _, _) in zip(paths, data, strict=True):
        with Image.open(tmp_path / "cli" / f"{path.stem}-labels.png") as written:
            assert np.array_equal(written, predict_labels(model, image[None] / 255, inference=options)[0])


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["evaluate", "RUN", "--sliding-window", "1.5"], 2, ["--sliding-window: ", "= 1.5", "above 0 and at most 1"]),
        (["evaluate", "RUN", "--scales", "1", "0"], 2, ["--scales 1.0 0.0: ", "1 to 64 numbers, each from"]),
        (["evaluate", "RUN", "--scales", "0.5"], 2, ["--scales 0.5: ", "a side of 16 pixels", "32×48", "use larger"]),
        (["predict", "RUN", "FILE", "--least-score", "0.4"], 2, ["--least-score 0.4: ", "for a run of detection"]),
        (["evaluate", "RUN", "--csv", "FOLDER"], 2, ["--csv", "expected a file in a folder that is there"]),
        (["evaluate", "RUN", "--pictures", "FILE"], 2, ["--pictures", "expected a folder, and this is a file"]),
        (["evaluate", "FOLDER"], 2, ["holds no record.json"]),
        (["export", "RUN", "--to", "student.pt"], 2, ["--to student.pt", ".onnx or .pt2"]),
        (["export", "RUN", "--to", "FILE/student.pt2"], 1, ["student.pt2 cannot be written"]),
        (["export", "RUN", "--to", "FILE/net/"], 1, ["Not a directory"]),
        (["evaluate", "DETECTOR", "--flip"], 2, ["for segmentation", "a detector sees the whole image once"]),
        (["evaluate", "DETECTOR", "--split", "test"], 2, ["--split test", "train (val2017) and val (val2017) only"]),
        (["evaluate", "DETECTOR", "--split", "night"], 2, ["--split night: only labelmefacade has it", "are coco"]),
        (["predict", "DETECTOR", "a.png", "--least-score", "2"], 2, ["--least-score 2.0", "from 0 to 1"]),
        (["export", "DETECTOR", "--to", "a.onnx"], 2, ["this run's is a detector", "trained_network(RUN)"]),
        (["cost", "--size", "tiny_coco"], 2, ["apd train --size tiny_coco --dry-run"]),
        (["train", "--method", "roi_adp"], 2, ["did you mean 'roi_apd'?"]),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_computed(
    arguments, code, expected, finished, detector, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("apd.evaluation.inference.confusion_of", lambda *_, **__: pytest.fail("computed"))
    monkeypatch.setattr("apd.evaluation.export._traced", lambda *_: pytest.fail("computed"))
    (tmp_path / "file").touch()
    places = {"RUN": finished, "DETECTOR": detector, "FOLDER": tmp_path, "FILE": tmp_path / "file"}
    assert leave(*(re.sub("^[A-Z]+", lambda found: str(places[found[0]]), one) for one in arguments)) == code
    captured = capsys.readouterr()
    assert [part for part in expected if part not in captured.err] == []
    assert captured.out == ""


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
    code = leave("replay", str(path), "--device", "cpu")
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
        row = max(content["confusion"], key=sum)
        row[(called := row.index(max(row)))] -= 1
        row[called - 1] += 1
        expected = "confusion: 2 of 100 numbers differ, the first is "
    else:
        content["ap"]["boxes"]["ap"][0][0][0] = 0.5
        expected = "ap.boxes.ap: 1 of 120 numbers differ, the first is 0.5 in the record and "
    (tmp_path / "changed.json").write_text(json.dumps(with_digest(content)))
    code, lines = replayed(tmp_path / "changed.json", capsys)
    assert code == 1
    assert f"note: versions.torch: 1.0 in the record and {torch.__version__} here" in lines
    assert f"note: git.commit: {'0' * 40} in the record and " in "\n".join(lines)
    assert "note: git.clean: the record's code had changes that were not committed" in lines
    assert lines[-2].startswith(expected)
    assert lines[-1].startswith("differences: 1, at most 20 of them above; ")


def test_a_replay_that_is_stopped_does_not_promise_to_go_on(record, monkeypatch, capsys):
    monkeypatch.setattr("apd.training.run.train", lambda *_, **__: (_ for _ in ()).throw(StoppedError("goes on")))
    assert leave("replay", str(record), "--device", "cpu") == 130
    assert capsys.readouterr().err.startswith("apd: stopped: a replay begins anew")


def test_train_starts_from_apds_form_for_the_task_and_prints_both_networks_ap(place, capsys):
    assert leave("train", "--size", "scenes_detection", "--training.warmup", "1") == 0
    *_, printed, path = capsys.readouterr().out.splitlines()
    record = read_record(path)
    assert record.experiment.distillers == (RoIAPDConfig(width=8),)
    assert record.experiment.training.warmup == 1
    scored = "box AP {0.ap:.4f} (AP50 {0.ap50:.4f}), mask AP {1.ap:.4f} (AP50 {1.ap50:.4f})".format
    student, teacher = (scored(ap["boxes"], ap["masks"]) for ap in (record.ap, record.teacher_ap))
    assert printed == f"scenes_detection-roi_apd-seed0: {student} on val; teacher {teacher}"


def test_evaluate_prints_and_writes_what_the_record_says_of_every_class(detector, place, tmp_path, capsys):
    assert leave("evaluate", detector, "--pictures", tmp_path / "seen") == 0
    record = read_record(detector / "record.json")
    *classes, total_boxes, total_masks, split = capsys.readouterr().out.splitlines()
    assert split == "3 images of val, which are the images that were trained on"
    assert summary(record).endswith(" on val, which are the images that were trained on")
    for line, kind in ((total_boxes, "boxes"), (total_masks, "masks")):
        ap = record.ap[kind]
        assert line.startswith(f"{kind.removesuffix('es').removesuffix('s')} AP {ap.ap:.4f}, AP50 {ap.ap50:.4f}")
    counts = record.content["ap"]["boxes"]["things"]
    occurring = [name for name, count in zip(record.class_names, counts, strict=True) if count]
    assert [line[: len(name)] for line, name in zip(classes, occurring, strict=True)] == occurring
    names = sorted(path.stem for path in (place / "coco" / "val2017").iterdir())
    assert sorted(path.name for path in (tmp_path / "seen").iterdir()) == [f"{name}-found.png" for name in names]


def test_predict_draws_each_image_and_writes_cocos_results(detector, place, tmp_path, monkeypatch, capsys):
    network = trained_network(detector)
    network.roi_heads.score_thresh = 0.0  # its two steps have made it sure of nothing
    monkeypatch.setattr("apd.cli.using.trained_network", lambda *_, **__: network)
    images = sorted((place / "coco" / "val2017").iterdir())[:2]
    assert leave("predict", detector, *images, "--to", tmp_path / "seen", "--least-score", "0") == 0
    wanted = [tmp_path / "seen" / name for name in (*(f"{path.stem}-found.png" for path in images), TABLE, RESULTS)]
    assert capsys.readouterr().out.splitlines() == list(map(str, wanted))
    table = read_csv(wanted[-2])
    assert table["class"].isin(read_record(detector / "record.json").class_names).all()
    entries, spec = json.loads(wanted[-1].read_text()), coco_names("coco", "val2017")[0]
    for path, drawing in zip(images, wanted, strict=False):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        (found,) = detect(network, [torch.tensor(pixels).permute(2, 0, 1) / 255])
        own = [entry for entry in entries if entry["file_name"] == path.name]
        assert len(own) == len(found.scores_N) > 0
        assert {entry["image_id"] for entry in own} == {int(path.stem)}
        rows = table[table["file"] == str(path)]
        np.testing.assert_allclose(sorted(rows["score"]), sorted(entry["score"] for entry in own), atol=1e-5)
        assert sorted(e["category_id"] for e in own) == sorted(spec.category_ids[k] for k in found.labels_N.tolist())
        assert [entry["score"] for entry in own] == sorted((entry["score"] for entry in own), reverse=True)
        with Image.open(drawing) as image:
            assert image.size == pixels.shape[1::-1]
            assert not np.array_equal(np.asarray(image), pixels)


def test_a_detectors_run_predicts_the_same_where_its_data_are_missing(detector, place, tmp_path, monkeypatch, capsys):
    image = next((place / "coco" / "val2017").iterdir())
    assert leave("predict", detector, image, "--to", tmp_path / "with") == 0
    monkeypatch.setenv("APD_DATA", str(tmp_path))
    assert leave("predict", detector, image, "--to", tmp_path / "without") == 0
    assert capsys.readouterr().err.startswith("note: the run's data are missing, so classes have colours by default (")
    for path in (tmp_path / "with").iterdir():
        assert (tmp_path / "without" / path.name).read_bytes() == path.read_bytes()


def test_drawn_are_masks_boxes_and_names_of_what_is_sure_enough():
    spec, blank = InstanceSpec("pets", ("cat", "dog")), np.full((80, 120, 3), 255, dtype=np.uint8)
    masks = np.zeros((2, 80, 120), dtype=bool)
    masks[0, 40:60, 20:50], masks[1, 65:75, 90:110] = True, True
    corners = torch.tensor([[20.0, 40.0, 50.0, 60.0], [90.0, 65.0, 110.0, 75.0]])
    found = Detections(corners, torch.tensor([0.9, 0.3]), torch.tensor([0, 1]), encode(masks))
    cat, dog = (np.array(colour) for colour in colours_of(spec))
    none, sure, all_of_it = (np.asarray(drawn(blank, found, spec, least)) for least in (0.95, 0.5, 0.1))
    assert np.array_equal(none, blank)
    assert (sure[40, 20:50] == cat).all(), "the frame"
    assert np.abs(sure[58, 48] - (0.55 * 255 + 0.45 * cat)).max() <= 1, "the mask"
    assert (sure[41:52, 51:60] != 255).any(), "the name in the box and beyond"
    assert (sure[62:, 82:] == 255).all()
    assert (all_of_it[65, 90:110] == dog).all()


def test_a_dry_run_of_detection_reports_data_networks_memory_and_time_and_writes_nothing(place):
    experiment = replace(ROI_APD, seed=7)
    missing, text = dry_run_report(experiment, steps=1)
    assert missing == []
    for line in (
        "data: coco, 3 images to train, 3 of val; at most 20 of each were read and are in order",
        "student: mask_rcnn mobilenet_v3_small, 16 channels, boxes' vectors of 32",
        "iterations: 2 of 2 images, 1.3 times each training image",
        "measured on the data: 1 steps of 2 images",
    ):
        assert line in text
    assert not run_folder(experiment).exists()


def test_what_is_counted_without_computing_is_near_what_a_step_computes(place):
    """The same, but for boxes: counted are as many as may be, drawn are as many as there are."""
    # the counter overrates the backward pass of grouped convolutions, which a MobileNet has
    experiment = replace(ROI_APD, network=replace(NETWORK, backbone="resnet18"))
    cost, task = step_cost(experiment, 80), task_of(experiment)
    student = task.network(experiment.network, 80, CPU, 0)
    step = TrainStep(task, student.train(), task.network(experiment.teacher.network, 80, CPU, 1).eval())
    data = Noise(coco_names("coco", "val2017")[0], (64, 80))
    batch = next(task.batches(data, start=0, ranks=ALONE, workers=0, device=CPU))
    with FlopCounterMode(display=False) as counter:
        step(batch)
    counted = counter.get_total_flops() / 2 / 2  # two operations a product, two images
    assert 0.8 < counted / cost.macs_per_image < 1.05
    assert cost.student.parameters == sum(p.numel() for p in student.parameters())


def test_a_run_whose_data_have_other_categories_today_writes_no_results(detector, tmp_path, monkeypatch, capsys):
    root = write_coco(tmp_path / "coco", counts={"val": 1})
    file = root / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    content |= {"categories": content["categories"][::-1][:2], "annotations": []}
    file.write_text(json.dumps(content))
    monkeypatch.setenv("APD_DATA", str(tmp_path))
    assert leave("predict", detector, next((root / "val2017").iterdir()), "--to", tmp_path / "seen") == 1
    assert "than this run was trained on (class_names of the split val: 'person' then," in capsys.readouterr().err
    assert not (tmp_path / "seen").exists()
