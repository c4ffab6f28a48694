"""Detection by the trainer of the study: the loss, a run from teacher to record, resumption, and its records."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from miniatures import write_coco
from small_detection import DATA, NETWORK, TEACHER, small
from small_experiments import Thrown, equal, outcome, prepared_run, thrown_at

from apd.config.detection_config import InstanceDataConfig
from apd.config.experiment import ExperimentError
from apd.data.image_folder import DataError
from apd.models.detector_hooks import DetectorTap, training_step
from apd.training import trainer as loop
from apd.training.run import run_folder, task_of, train
from apd.training.task import TeacherError

TERMS = {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of the finished runs of an experiment with three distillers and of its teacher."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("APD_RUNS", str(folder))
        train(small("several", ema_decay=0.5))
    return folder


@pytest.fixture
def finished(undisturbed, monkeypatch):
    """The experiment of these runs, whose folder is that of all runs; tests must not change it."""
    monkeypatch.setenv("APD_RUNS", str(undisturbed))
    return small("several", ema_decay=0.5)


def batch_of(run):
    return next(run.task.batches(run.splits.train, start=0, ranks=run.ranks, workers=0, device=run.device))


def test_the_terms_are_torchvisions_losses_and_the_distillers_and_the_loss_their_sum(tmp_path):
    run = prepared_run(small("several"), tmp_path)
    run.student.train()
    batch, twin = batch_of(run), copy.deepcopy(run.student)
    torch.manual_seed(3)
    with DetectorTap(twin) as tap:
        losses, pair = training_step(twin, tap, run.teacher, *batch)
    assert losses.keys() == TERMS
    expected = dict(losses)
    for method, distiller in copy.deepcopy(run.distillers).items():
        found = distiller(pair)
        expected |= {f"{method}.{name}": value for name, value in found.items() if name != "loss"}
        losses[method] = found["loss"]
    torch.manual_seed(3)
    terms = run.step(batch)
    torch.testing.assert_close(terms.pop("loss"), sum(losses.values()).detach())
    assert equal(terms, expected)


@pytest.mark.parametrize("method", ["student", "roi_apd", "dense_apd", "several"])
def test_every_parameter_of_a_step_gets_a_gradient_also_where_an_image_has_no_object(method, tmp_path):
    run = prepared_run(small(method), tmp_path)
    run.student.train()
    batch = batch_of(run)
    empty = {name: value[:0] for name, value in batch.targets[1].items()}
    empty["class_map"] = torch.zeros_like(batch.targets[1]["class_map"])
    for targets in (batch.targets, [batch.targets[0], empty], [empty, empty]):
        terms = run.step(batch._replace(targets=targets))
        assert all(value.isfinite() for value in terms.values())
        trained = [p for module in (run.student, run.distillers) for p in module.parameters() if p.requires_grad]
        assert all(p.grad is not None for p in trained)
    assert terms["loss_mask"] == terms["loss_box_reg"] == 0


def test_frozen_stages_of_a_pre_trained_backbone_are_in_no_group():
    task = task_of(replace(small(), network=replace(NETWORK, backbone="resnet18", weights="imagenet")))
    detector = task.network(task.experiment.network, 3, torch.device("cpu"), 0, weights_follow=True)
    body, rest = task.parameter_groups(detector)
    assert all(p.requires_grad for p in (*body, *rest))
    frozen = [name for name, p in detector.named_parameters() if not p.requires_grad]
    assert frozen
    assert all(name.startswith(("backbone.body.conv1", "backbone.body.layer1")) for name in frozen)
    assert len(body) + len(rest) + len(frozen) == len(list(detector.parameters()))


def test_a_run_is_trained_scored_and_recorded_with_its_teacher(finished):
    record, teacher = train(finished), train(finished.teacher_experiment())
    content = record.content
    assert "confusion" not in content
    assert content["data"]["class_names"] == ["sign", "car", "pedestrian"]
    assert content["device"]["precision"] == "fp32"
    assert content["versions"]["faster-coco-eval"] != "not installed"
    distilled = {"roi_apd.regularisation", "roi_apd.alignment", "roi_apd.observation", "roi_kd.pixel_kd"}
    expected = {*TERMS, *distilled, "review_kd.review_kd", "loss", "iteration", "learning_rate"}
    assert set(content["curves"]) == expected
    assert [(e["step"], set(e)) for e in content["evaluations"]] == [(step, {"step", "split", "ap"}) for step in (2, 4)]
    assert content["teacher"] == {name: teacher.content[name] for name in ("ap", "weights_sha256")}
    assert record.teacher_ap["boxes"].ap == teacher.ap["boxes"].ap


@pytest.mark.parametrize("last", [2, 3])
def test_an_interrupted_run_ends_bit_equal(last, finished, undisturbed, tmp_path, monkeypatch):
    """torchvision draws boxes and anchors from the global generator: it, too, is where it was."""
    expected = outcome(finished)
    monkeypatch.setenv("APD_RUNS", str(tmp_path))
    (teacher,) = undisturbed.glob("scenes-teacher-*")
    (tmp_path / teacher.name).symlink_to(teacher)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(Thrown):
        train(finished, on_step=thrown_at(last))
    torch.manual_seed(12345)
    steps = []
    train(finished, on_step=steps.append)
    assert steps == list(range(last + 1, 5))
    assert outcome(finished) == expected


def test_a_teacher_from_a_file_must_fit_and_reach_its_stated_score(finished, tmp_path, monkeypatch):
    weights = run_folder(finished.teacher_experiment()) / "weights.safetensors"
    expected = train(finished).content["teacher"]
    monkeypatch.setenv("APD_RUNS", str(tmp_path))
    given = replace(small("roi_apd", iterations=1, evaluations=0), teacher=replace(TEACHER, weights_file=str(weights)))
    assert train(given).content["teacher"] == expected
    with pytest.raises(TeacherError, match=r"teacher weights .*; the network is DetectorConfig\(kind='mask_rcnn'"):
        train(replace(given, teacher=replace(given.teacher, network=NETWORK)))
    with pytest.raises(TeacherError, match=r"the teacher's box AP is 0\.\d{4} on val, below teacher.expected_ap = 0.9"):
        train(replace(given, teacher=replace(given.teacher, expected_ap=0.9)))


def test_without_the_library_for_scores_nothing_is_begun(runs, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faster_coco_eval", None)
    with pytest.raises(ExperimentError, match="needs the package faster-coco-eval"):
        train(small())
    assert not list(runs.rglob("*.safetensors"))


@pytest.fixture
def coco(tmp_path, monkeypatch):
    """A folder of COCO's kind with three images to train, of two sizes, and two of val, and its configuration."""
    monkeypatch.setenv("APD_DATA", str(tmp_path))
    write_coco(tmp_path / "coco", counts={"train": 3, "val": 2})
    return InstanceDataConfig(name="coco", folder="coco", val_part="train2017", height=64, width=96, flip=0.0)


def test_a_data_set_that_is_trained_and_scored_on_is_read_once(coco, runs, tmp_path):
    record = train(small(data=coco, iterations=2, evaluations=1))
    content = json.loads((tmp_path / "coco" / "annotations" / "instances_train2017.json").read_text())
    assert record.class_names == [category["name"] for category in content["categories"]]
    assert (record.content["data"]["name"], record.content["data"]["images"]) == ("coco", 3)
    single = [thing["category_id"] for thing in content["annotations"] if not thing["iscrowd"]]
    expected = [single.count(category["id"]) for category in content["categories"]]
    assert record.content["ap"]["boxes"]["things"] == expected
    splits = task_of(record.experiment).splits()
    assert splits.train is splits.val is splits.evaluation


def test_annotations_and_images_may_lie_elsewhere(coco, tmp_path):
    (tmp_path / "coco" / "annotations" / "instances_train2017.json").rename(tmp_path / "coco" / "of-train2017.json")
    (tmp_path / "coco" / "train2017").rename(tmp_path / "coco" / "images-train2017")
    data = replace(coco, annotations="of-{split}.json", pictures="images-{split}")
    assert len(task_of(small(data=data)).split("train")) == 3


def test_splits_of_other_classes_are_refused(coco, tmp_path):
    path = tmp_path / "coco" / "annotations" / "instances_val2017.json"
    path.write_text(path.read_text().replace('"name": "person"', '"name": "rod"'))
    with pytest.raises(DataError, match="coco: train2017 has 80 categories and val2017 has 80, not the same ones"):
        task_of(small(data=replace(coco, val_part="val2017"))).splits()


def test_the_splits_of_scenes_are_those_of_the_configuration():
    data = replace(DATA, evaluation_split="test", least_pixels=5, world=3, context_shift=0.25)
    splits = task_of(small(data=data)).splits()
    for split, count, name in zip(splits, (6, 3, 3), ("train", "val", "test"), strict=False):
        settings = (len(split), split.least_pixels, split.split, split.seed, split.context_shift, split.height)
        assert settings == (count, 5, name, 3, 0.25, 64)
