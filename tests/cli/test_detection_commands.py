"""The command `apd` on detection: train, evaluate, predict, dry runs, and what is refused with a sentence."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from miniatures import write_coco
from PIL import Image
from pycocotools.coco import COCO as Annotations
from pycocotools.cocoeval import COCOeval
from small_detection import DATA, NETWORK, small
from torch.utils.flop_counter import FlopCounterMode

from apd.cli.app import main
from apd.cli.training import summary
from apd.config.detection_config import InstanceDataConfig
from apd.cost.count import step_cost
from apd.cost.dry_run import dry_run
from apd.data.coco import coco_spec, encode
from apd.data.instances import InstanceSpec, Noise
from apd.distillers.apd import RoIAPDConfig
from apd.evaluation.average_precision import Detections, detect
from apd.evaluation.predict import RESULTS, coco_results, colours_of, drawn
from apd.training.distributed import ALONE
from apd.training.record import read_record
from apd.training.run import run_folder, task_of, train, trained_network
from apd.training.trainer import TrainStep

CPU = torch.device("cpu")
COCO = InstanceDataConfig(name="coco", folder="coco", train_part="val2017", val_part="val2017", height=64, width=80)


def boxes(method="student", data=DATA):
    """Two steps of the smallest detector."""
    return small(method, data=data, iterations=2, evaluations=1)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a miniature of COCO and the runs of these tests."""
    folder = tmp_path_factory.mktemp("boxes")
    write_coco(folder / "coco", counts={"train": 4, "val": 3})
    return folder


@pytest.fixture(autouse=True)
def _places(place, monkeypatch):
    """The tiny experiment in the place of the recipes, the miniature in that of the data."""
    monkeypatch.setenv("APD_DATA", str(place))
    monkeypatch.setenv("APD_RUNS", str(place / "runs"))
    monkeypatch.setattr("apd.study.recipes.recipe", lambda _size="tiny", method="roi_apd", **_: boxes(method))


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
        return main(list(map(str, arguments)))
    except SystemExit as left:
        return left.code


def report_of(experiment, **options):
    lines = []
    return dry_run(experiment, device="cpu", tell=lines.append, **options), "\n".join(lines)


def test_train_starts_from_apds_form_for_the_task_and_prints_both_networks_ap(capsys):
    assert leave(["train", "--size", "scenes_detection", "--training.warmup", "1"]) == 0
    *_, printed, path = capsys.readouterr().out.splitlines()
    record = read_record(path)
    assert record.experiment.distillers == (RoIAPDConfig(width=8),)
    assert record.experiment.training.warmup == 1
    student, teacher = (
        "box AP {0.ap:.4f} (AP50 {0.ap50:.4f}), mask AP {1.ap:.4f} (AP50 {1.ap50:.4f})".format(ap["boxes"], ap["masks"])
        for ap in (record.ap, record.teacher_ap)
    )
    assert printed == f"scenes_detection-roi_apd-seed0: {student} on val; teacher {teacher}"


def test_evaluate_prints_and_writes_what_the_record_says_of_every_class(finished, place, tmp_path, capsys):
    assert leave(["evaluate", finished, "--pictures", tmp_path / "seen"]) == 0
    record = read_record(finished / "record.json")
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


def test_predict_draws_each_image_and_writes_cocos_results(finished, place, tmp_path, monkeypatch, capsys):
    detector = trained_network(finished)
    detector.roi_heads.score_thresh = 0.0  # its two steps have made it sure of nothing
    monkeypatch.setattr("apd.cli.using.trained_network", lambda *_, **__: detector)
    images = sorted((place / "coco" / "val2017").iterdir())[:2]
    assert leave(["predict", finished, *images, "--to", tmp_path / "seen", "--least-score", "0"]) == 0
    wanted = [tmp_path / "seen" / name for name in (*(f"{path.stem}-found.png" for path in images), RESULTS)]
    assert capsys.readouterr().out.splitlines() == list(map(str, wanted))
    entries, spec = json.loads(wanted[-1].read_text()), coco_spec("coco", "val2017")
    for path, drawing in zip(images, wanted, strict=False):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        (found,) = detect(detector, [torch.tensor(pixels).permute(2, 0, 1) / 255])
        own = [entry for entry in entries if entry["file_name"] == path.name]
        assert len(own) == len(found.scores_N) > 0
        assert {entry["image_id"] for entry in own} == {int(path.stem)}
        assert sorted(e["category_id"] for e in own) == sorted(spec.category_ids[k] for k in found.labels_N.tolist())
        assert [entry["score"] for entry in own] == sorted((entry["score"] for entry in own), reverse=True)
        with Image.open(drawing) as image:
            assert image.size == pixels.shape[1::-1]
            assert not np.array_equal(np.asarray(image), pixels)


def test_cocos_own_code_reads_the_results_and_gives_the_ground_truth_an_ap_of_1(place, tmp_path):
    dataset, spec = task_of(boxes(data=COCO)).split("val"), coco_spec("coco", "val2017")
    truth = Annotations(str(place / "coco" / "annotations" / "instances_val2017.json"))
    entries = []
    for image_id, sample in zip(sorted(truth.imgs), (dataset[i] for i in range(len(dataset))), strict=True):
        assert int(sample.name) == image_id
        masks = encode(sample.masks_NHW.numpy())
        found = Detections(sample.boxes_N4, torch.ones(len(sample.labels_N)), sample.labels_N, masks)
        entries += coco_results(found, image_id, spec)
    (tmp_path / "results.json").write_text(json.dumps(entries))
    for kind in ("bbox", "segm"):
        judged = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), kind)
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
        assert judged.stats[0] == pytest.approx(1.0)


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


def test_a_dry_run_of_detection_reports_data_networks_memory_and_time_and_writes_nothing():
    experiment = replace(boxes("roi_apd", data=COCO), seed=7)
    missing, text = report_of(experiment, steps=1)
    assert missing == []
    for line in (
        "data: coco, 3 images to train, 3 of val; at most 20 of each were read and are in order",
        "student: mask_rcnn mobilenet_v3_small, 16 channels, boxes' vectors of 32",
        "iterations: 2 of 2 images, 1.3 times each training image",
        "measured on the data: 1 steps of 2 images",
    ):
        assert line in text
    assert not run_folder(experiment).exists()


def test_what_is_counted_without_computing_is_near_what_a_step_computes():
    """The same, but for boxes: counted are as many as may be, drawn are as many as there are."""
    # the counter overrates the backward pass of grouped convolutions, which a MobileNet has
    experiment = replace(boxes("roi_apd", data=COCO), network=replace(NETWORK, backbone="resnet18"))
    cost, task = step_cost(experiment, 80), task_of(experiment)
    student = task.network(experiment.network, 80, CPU, 0)
    step = TrainStep(task, student.train(), task.network(experiment.teacher.network, 80, CPU, 1).eval())
    data = Noise(coco_spec("coco", "val2017"), (64, 80))
    batch = next(task.batches(data, start=0, ranks=ALONE, workers=0, device=CPU))
    with FlopCounterMode(display=False) as counter:
        step(batch)
    counted = counter.get_total_flops() / 2 / 2  # two operations a product, two images
    assert 0.8 < counted / cost.macs_per_image < 1.05
    assert cost.student.parameters == sum(p.numel() for p in student.parameters())


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["evaluate", "RUN", "--flip"], 2, ["for segmentation", "a detector sees the whole image once"]),
        (["evaluate", "RUN", "--split", "test"], 2, ["--split test", "train (val2017) and val (val2017) only"]),
        (["predict", "RUN", "a.png", "--scales", "0.5"], 2, ["--scales are for segmentation"]),
        (["predict", "RUN", "a.png", "--least-score", "2"], 2, ["--least-score 2.0", "from 0 to 1"]),
        (["predict", "RUN", "none.png"], 1, ["none.png: there is no such file"]),
        (["export", "RUN", "--to", "a.onnx"], 2, ["this run's is a detector", "trained_network(RUN)"]),
        (["cost", "--size", "tiny_coco"], 2, ["apd train --size tiny_coco --dry-run"]),
        (["train", "--method", "roi_adp"], 2, ["did you mean 'roi_apd'?"]),
    ],
)
def test_what_cannot_be_asked_of_a_detector_is_refused_in_a_sentence(arguments, code, expected, finished, capsys):
    assert leave([finished if one == "RUN" else one for one in arguments]) == code
    captured = capsys.readouterr()
    assert [part for part in expected if part not in captured.err] == []
    assert captured.out == ""


def test_a_run_whose_data_have_other_categories_today_writes_no_results(finished, tmp_path, monkeypatch, capsys):
    root = write_coco(tmp_path / "coco", counts={"val": 1})
    file = root / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    content |= {"categories": content["categories"][::-1][:2], "annotations": []}
    file.write_text(json.dumps(content))
    monkeypatch.setenv("APD_DATA", str(tmp_path))
    image = next((root / "val2017").iterdir())
    assert leave(["predict", finished, image, "--to", tmp_path / "seen"]) == 1
    assert "than this run was trained on (class_names of the split val: 'person' then," in capsys.readouterr().err
    assert not (tmp_path / "seen").exists()
