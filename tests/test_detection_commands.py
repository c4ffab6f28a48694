"""The command `apd` on detection: train, evaluate, predict, dry runs, and what is refused with a sentence."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from miniatures import write_coco
from PIL import Image
from pycocotools.coco import COCO as Annotations
from pycocotools.cocoeval import COCOeval
from torch.utils.flop_counter import FlopCounterMode

from apd.cli import app as cli
from apd.config.detection import DetectorConfig, InstanceDataConfig
from apd.config.experiment import Experiment, TeacherConfig, TrainingConfig
from apd.cost import dry_run as module
from apd.cost.count import step_cost, teacher_step_cost
from apd.cost.dry_run import dry_run, measure_steps
from apd.data.coco import coco_spec
from apd.data.instances import InstanceSpec, Noise
from apd.data.rle import encode
from apd.distillers.apd import RoIAPDConfig
from apd.evaluation.average_precision import APTable, Detections, ap_lines, detect
from apd.evaluation.predict import RESULTS, coco_results, colours_of, drawn, image_ids
from apd.study.campaigns import CAMPAIGNS
from apd.training.record import read_record
from apd.training.run import run_folder, task_of, train, trained_network

COCO = InstanceDataConfig(name="coco", folder="coco", train_part="val2017", val_part="val2017", height=64, width=80)
SCENES = InstanceDataConfig(height=64, width=64, train_images=4, evaluation_images=2)
SMALL = DetectorConfig(backbone="mobilenet_v3_small", width=16, box_width=32, smallest_anchor=8, proposals=50, rois=16)
TRAINING = TrainingConfig(iterations=2, batch_size=2, evaluations=1, head_multiplier=1.0)


def boxes(method: str = "student", data: InstanceDataConfig = SCENES, kind: str = "mask_rcnn") -> Experiment:
    """Two steps of the smallest detector."""
    network = replace(SMALL, kind=kind)
    return Experiment(
        name=f"boxes-{method}",
        data=data,
        network=network,
        training=TRAINING,
        teacher=TeacherConfig(network=replace(network, width=24), training=TRAINING) if method != "student" else None,
        distillers=(RoIAPDConfig(width=8),) if method != "student" else (),
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a miniature of COCO and the runs of these tests."""
    folder = tmp_path_factory.mktemp("boxes")
    write_coco(folder / "coco", counts={"train": 4, "val": 3})
    return folder


@pytest.fixture(autouse=True)
def runs(place, monkeypatch):
    """The tiny experiment in the place of the recipes, the miniature in that of the data."""
    monkeypatch.setenv("APD_DATA", str(place))
    monkeypatch.setenv("APD_RUNS", str(place / "runs"))
    monkeypatch.setattr("apd.study.recipes.recipe", lambda _size="tiny", method="roi_apd", **_: boxes(method))
    return place / "runs"


@pytest.fixture(scope="module")
def finished(place):
    """The folder of a finished run on the miniature; tests must not change it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("APD_DATA", str(place))
        patch.setenv("APD_RUNS", str(place / "runs"))
        train(boxes(data=COCO), device="cpu", progress=False)
        return run_folder(boxes(data=COCO))


def leave(arguments):
    try:
        return cli.main(list(map(str, arguments)))
    except SystemExit as left:
        return left.code


def told_by(experiment, **options):
    lines = []
    return dry_run(experiment, device="cpu", tell=lines.append, **options), "\n".join(lines)


# ---------------------------------------------------------------- train


def test_train_starts_from_apds_form_for_the_task_and_tells_both_networks_ap(capsys):
    assert leave(["train", "--size", "scenes_detection", "--training.warmup", "1"]) == 0
    *_, summary, path = capsys.readouterr().out.splitlines()
    record = read_record(path)
    assert record.experiment.distillers == (RoIAPDConfig(width=8),)
    assert record.experiment.training.warmup == 1
    assert summary == (
        f"scenes_detection-roi_apd-seed0: box AP {record.ap['boxes'].ap:.4f} (AP50 {record.ap['boxes'].ap50:.4f}), "
        f"mask AP {record.ap['masks'].ap:.4f} (AP50 {record.ap['masks'].ap50:.4f}) on val; teacher "
        f"box AP {record.teacher_ap['boxes'].ap:.4f} (AP50 {record.teacher_ap['boxes'].ap50:.4f}), "
        f"mask AP {record.teacher_ap['masks'].ap:.4f} (AP50 {record.teacher_ap['masks'].ap50:.4f})"
    )


def test_a_score_on_the_pictures_that_were_trained_on_is_told_as_one(finished, capsys):
    known = "val, which are the pictures that were trained on"
    assert cli.summary(read_record(finished / "record.json")).endswith(f" on {known}")
    assert leave(["evaluate", finished]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"3 images of {known}"


def test_a_campaign_of_detection_tells_ap_of_every_run(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(CAMPAIGNS, "one", lambda: iter([boxes(data=COCO)]))
    assert leave(["campaign", "one", "--records", tmp_path / "records"]) == 0
    (record,) = map(read_record, (tmp_path / "records").iterdir())
    told = f"boxes-student: box AP {record.ap['boxes'].ap:.4f} (AP50 {record.ap['boxes'].ap50:.4f}), mask AP "
    assert capsys.readouterr().out.splitlines()[-1].startswith(told)


# ---------------------------------------------------------------- evaluate


def test_evaluate_prints_and_writes_what_the_record_says_of_every_class(finished, tmp_path, capsys):
    pictures = tmp_path / "seen"
    assert leave(["evaluate", finished, "--pictures", pictures]) == 0
    record = read_record(finished / "record.json")
    *classes, total_boxes, total_masks, images = capsys.readouterr().out.splitlines()
    assert images.startswith("3 images of val")
    assert total_boxes.startswith(f"box AP {record.ap['boxes'].ap:.4f}, AP50 {record.ap['boxes'].ap50:.4f}")
    assert total_masks.startswith(f"mask AP {record.ap['masks'].ap:.4f}, AP50 {record.ap['masks'].ap50:.4f}")
    things = record.content["ap"]["boxes"]["things"]
    occurring = [name for name, count in zip(record.class_names, things, strict=True) if count]
    assert len(classes) == len(occurring)
    assert all(line.startswith(name) for line, name in zip(classes, occurring, strict=True))
    names = sorted(path.name for path in (place_of(finished) / "val2017").iterdir())
    assert sorted(path.name for path in pictures.iterdir()) == [f"{name[:-4]}-found.png" for name in names]


@pytest.fixture
def sure(finished, monkeypatch):
    """The run's detector, whose two steps have made it sure of nothing, tells what it holds for possible."""
    detector = trained_network(finished)
    detector.roi_heads.score_thresh = 0.0
    monkeypatch.setattr("apd.cli.detecting.trained_network", lambda *_, **__: detector)
    return detector


def place_of(finished):
    return finished.parent.parent / "coco"


def test_the_lines_of_the_classes_tell_ap_and_ap50_of_those_that_occur():
    ap_TKA = torch.zeros(10, 2, 4, dtype=torch.float64)
    ap_TKA[:, 0, 0] = torch.linspace(0.9, 0.0, 10)
    ap_TKA[:, :, 1:] = 0.7  # areas are no part of the table
    ap_TKA[:, 1] = torch.nan
    assert list(ap_lines({"boxes": APTable(ap_TKA, torch.tensor([5, 0]))}, ["a", "c"])) == [
        "a              box AP 0.4500  AP50 0.9000     5 instances",
        "box AP 0.4500, AP50 0.9000, AP75 0.4000, small 0.7000, medium 0.7000, large 0.7000 over 1 classes",
    ]


# ---------------------------------------------------------------- predict


def test_predict_draws_each_picture_and_writes_cocos_results(finished, sure, tmp_path, capsys):
    pictures = sorted((place_of(finished) / "val2017").iterdir())[:2]
    assert leave(["predict", finished, *pictures, "--to", tmp_path / "seen", "--least-score", "0"]) == 0
    wanted = [tmp_path / "seen" / name for name in (*(f"{path.stem}-found.png" for path in pictures), RESULTS)]
    assert capsys.readouterr().out.splitlines() == list(map(str, wanted))
    entries = json.loads(wanted[-1].read_text())
    spec = coco_spec("coco", "val2017")
    for path, drawing in zip(pictures, wanted, strict=False):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        (found,) = detect(sure, [torch.tensor(pixels).permute(2, 0, 1) / 255])
        own = [entry for entry in entries if entry["file_name"] == path.name]
        assert len(own) == len(found.scores_N) > 0
        assert {entry["image_id"] for entry in own} == {int(path.stem)}
        assert sorted(e["category_id"] for e in own) == sorted(spec.category_ids[k] for k in found.labels_N.tolist())
        assert [entry["score"] for entry in own] == sorted((entry["score"] for entry in own), reverse=True)
        with Image.open(drawing) as image:
            assert image.size == pixels.shape[1::-1]
            assert not np.array_equal(np.asarray(image), pixels)


def test_cocos_own_code_reads_the_results_and_finds_the_truth_in_them(finished, tmp_path):
    """The truth itself, written as findings, has an AP of 1."""
    task = task_of(boxes(data=COCO))
    dataset, spec = task.split("val"), coco_spec("coco", "val2017")
    truth = Annotations(str(place_of(finished) / "annotations" / "instances_val2017.json"))
    entries = []
    for image_id, sample in zip(sorted(truth.imgs), (dataset[i] for i in range(len(dataset))), strict=True):
        assert int(sample.name) == image_id
        found = Detections(
            sample.boxes_N4, torch.ones(len(sample.labels_N)), sample.labels_N, encode(sample.masks_NHW.numpy())
        )
        entries += coco_results(found, image_id, spec)
    (tmp_path / "results.json").write_text(json.dumps(entries))
    for kind in ("bbox", "segm"):
        judged = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), kind)
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
        assert judged.stats[0] == pytest.approx(1.0)


def test_pictures_that_are_not_named_by_numbers_are_counted():
    assert image_ids([Path("a.png"), Path("7.png")]) == [1, 2]
    assert image_ids([Path("07.png"), Path("9.png")]) == [7, 9]
    assert image_ids([Path("07.png"), Path("7.png")]) == [1, 2], "two pictures would have one number"


def test_drawn_are_masks_boxes_and_names_of_what_is_sure_enough():
    spec, blank = InstanceSpec("pets", ("cat", "dog")), np.full((80, 120, 3), 255, dtype=np.uint8)
    masks = np.zeros((2, 80, 120), dtype=bool)
    masks[0, 40:60, 20:50], masks[1, 65:75, 90:110] = True, True
    found = Detections(
        torch.tensor([[20.0, 40.0, 50.0, 60.0], [90.0, 65.0, 110.0, 75.0]]),
        torch.tensor([0.9, 0.3]),
        torch.tensor([0, 1]),
        encode(masks),
    )
    cat, dog = (np.array(colour) for colour in colours_of(spec))
    sure, all_of_it = (np.asarray(drawn(blank, found, spec, least)) for least in (0.5, 0.1))
    assert (sure[40, 20:50] == cat).all(), "the frame"
    assert np.abs(sure[58, 48] - (0.55 * 255 + 0.45 * cat)).max() <= 1, "the mask"
    assert (sure[41:52, 51:60] != 255).any(), "the name in the box and beyond"
    assert (sure[62:, 82:] == 255).all()
    assert (all_of_it[65, 90:110] == dog).all()
    assert np.array_equal(np.asarray(drawn(blank, found, spec, 0.95)), blank)
    without = found._replace(masks=None)
    assert (np.asarray(drawn(blank, without, spec))[55:58, 25:45] == 255).all()


# ---------------------------------------------------------------- dry runs


def test_a_dry_run_of_detection_tells_data_networks_memory_and_time_and_writes_nothing(place):
    experiment = replace(boxes("roi_apd", data=COCO), name="dry", seed=7)
    missing, text = told_by(experiment, steps=1)
    assert missing == []
    assert "data: coco, 3 images to train, 3 of val; at most 20 of each were read and are in order" in text
    assert "student: mask_rcnn mobilenet_v3_small, 16 channels, boxes' vectors of 32" in text
    assert "trained first unless its run is finished" in text
    assert "iterations: 2 of 2 images, 1.3 times each training image" in text
    assert "measured on the data: 1 steps of 2 images" in text
    assert "in an image, " in text
    assert "2 images, of 80" in text
    for quantity in ("M parameters", "GMAC at 64x80", "memory, estimated", "in each of 2 processes", "time, in"):
        assert quantity in text
    assert "the teacher's training before it" in text
    assert not run_folder(experiment).exists()


def test_a_dry_run_without_the_data_or_the_weights_names_both_and_measures_on_noise(tmp_path, monkeypatch):
    def offline(weights, what):
        raise RuntimeError(f"{what}: no network")

    monkeypatch.setenv("APD_DATA", str(tmp_path))
    monkeypatch.setattr("apd.models.detector.fetch_weights", offline)
    start = boxes("roi_apd", data=COCO)
    missing, text = told_by(replace(start, network=replace(start.network, weights="imagenet")), steps=1)
    assert len(missing) == 2
    assert "instances_val2017.json is missing" in missing[0]
    assert missing[1].startswith("student: ")
    assert "no network" in missing[1]
    assert "measured on noise: 1 steps of 2 images" in text
    assert "classes in sight" not in text


def test_the_command_runs_dry(capsys):
    assert leave(["train", "--size", "tiny_coco", "--method", "student", "--dry-run", "--device", "cpu"]) == 0
    assert "time, in one process" in capsys.readouterr().out


def test_noise_of_things_is_one_picture_that_can_be_trained_on():
    noise = Noise(InstanceSpec("pets", ("cat", "dog")), (64, 96))
    sample = noise[0]
    assert len(noise) == 1
    assert torch.equal(sample.image_3HW, noise[0].image_3HW)
    assert sample.masks_NHW.shape == (8, 64, 96)
    assert sample.masks_NHW.sum((1, 2)).tolist() == sample.areas_N.tolist()
    widths = sample.boxes_N4[:, 2:] - sample.boxes_N4[:, :2]
    assert torch.equal(widths.prod(1), sample.areas_N)
    assert int(sample.labels_N.max()) < 2
    assert Noise(noise.spec, (64, 96), masks=False)[0].masks_NHW is None
    experiment = boxes()
    student = task_of(experiment).network(experiment.network, 2, torch.device("cpu"), 0)
    assert measure_steps(experiment, student, None, noise, 1, 2).steps == 1


# ---------------------------------------------------------------- what a step takes


def test_what_is_counted_without_computing_is_near_what_a_step_computes():
    """The same, but for boxes: counted are as many as may be, drawn are as many as there are."""
    start = boxes("roi_apd", data=COCO)
    # the counter overrates the backward pass of grouped convolutions, which a MobileNet has
    experiment = replace(start, network=replace(SMALL, backbone="resnet18"))
    cost = step_cost(experiment, 80)
    task, device = task_of(experiment), torch.device("cpu")
    student = task.network(experiment.network, 80, device, 0)
    teacher = task.network(experiment.teacher.network, 80, device, 1).eval().requires_grad_(False)
    update = module.TrainStep(task, student.train(), teacher)
    data = Noise(coco_spec("coco", "val2017"), (64, 80))
    batch = next(task.batches(data, start=0, ranks=module.ALONE, workers=0, device=torch.device("cpu")))
    with FlopCounterMode(display=False) as counter:
        update(batch)
    counted = counter.get_total_flops() / 2 / 2  # two operations a product, two pictures
    assert 0.8 < counted / cost.macs_per_image < 1.05
    assert cost.student.parameters == sum(p.numel() for p in student.parameters())


def test_a_step_with_a_teacher_adds_its_pyramid_and_box_head_and_the_distillers(place):
    alone, taught = (step_cost(boxes(method), 3) for method in ("student", "roi_apd"))
    assert alone.teacher is None
    assert alone.student == taught.student
    assert 0 < taught.macs_per_image - alone.macs_per_image < taught.teacher.macs
    assert teacher_step_cost(boxes("roi_apd"), 3).student == taught.teacher
    assert taught.fixed_bytes > alone.fixed_bytes + 4 * taught.teacher.parameters
    without_masks = step_cost(boxes(kind="faster_rcnn"), 3)
    assert without_masks.macs_per_image < alone.macs_per_image
    assert without_masks.student.parameters < alone.student.parameters
    assert alone.memory_bytes(3) - alone.memory_bytes(2) == alone.bytes_per_image > 0


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["evaluate", "RUN", "--csv", "a.csv"], 2, ["--csv is for segmentation"]),
        (["evaluate", "RUN", "--flip"], 2, ["for segmentation", "a detector looks once at the whole picture"]),
        (["evaluate", "RUN", "--split", "test"], 2, ["--split test", "train (val2017) and val (val2017) only"]),
        (["predict", "RUN", "a.png", "--scales", "0.5"], 2, ["--scales are for segmentation"]),
        (["predict", "RUN", "a.png", "--least-score", "2"], 2, ["--least-score 2.0", "from 0 to 1"]),
        (["predict", "RUN", "none.png"], 1, ["none.png: there is no such file"]),
        (["export", "RUN", "--to", "a.onnx"], 2, ["this run's is a detector", "trained_network(RUN)"]),
        (["cost", "--size", "tiny_coco"], 2, ["apd train --size tiny_coco --dry-run"]),
        (["train", "--method", "roi_adp"], 2, ["did you mean 'roi_apd'?"]),
    ],
)
def test_what_cannot_be_asked_of_a_detector_is_told_in_a_sentence(arguments, code, told, finished, capsys):
    assert leave([finished if word == "RUN" else word for word in arguments]) == code
    captured = capsys.readouterr()
    assert [part for part in told if part not in captured.err] == []
    assert captured.out == ""


def test_a_run_whose_data_have_other_categories_today_writes_no_results(finished, tmp_path, monkeypatch, capsys):
    root = write_coco(tmp_path / "coco", counts={"val": 1})
    file = root / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    content["categories"] = content["categories"][::-1][:2]
    content["annotations"] = []
    file.write_text(json.dumps(content))
    monkeypatch.setenv("APD_DATA", str(tmp_path))
    picture = next((root / "val2017").iterdir())
    assert leave(["predict", finished, picture, "--to", tmp_path / "seen"]) == 1
    assert "other categories than this run was trained on: 2 beside 80" in capsys.readouterr().err
    assert not (tmp_path / "seen").exists()
