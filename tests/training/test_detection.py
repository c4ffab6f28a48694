"""Detection by the trainer of the study: the loss, a run from teacher to record, resumption, and its records."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from miniatures import write_coco
from small_detection import DATA, NETWORK, TEACHER, prepared, small
from small_experiments import Thrown, outcome, thrown_at, tiny

from apd.config.detection import InstanceDataConfig
from apd.config.experiment import ExperimentError
from apd.data.image_folder import DataError
from apd.evaluation.average_precision import ap_scores, scored, tables_of
from apd.models.detector_hooks import DetectorTap, training_step
from apd.study import campaign
from apd.training import trainer as loop
from apd.training.record import Record, RecordError, read_record
from apd.training.run import run_folder, task_of, train, trained_network
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


# the loss


def batch_of(run):
    return next(run.task.batches(run.splits.train, start=0, ranks=run.ranks, workers=0, device=run.device))


def test_the_terms_are_torchvisions_losses_and_the_distillers_and_the_loss_their_sum(tmp_path):
    run = prepared(small("several"), tmp_path)
    run.student.train()
    batch, twin = batch_of(run), copy.deepcopy(run.student)
    torch.manual_seed(3)
    with DetectorTap(twin) as tap:
        losses, pair = training_step(twin, tap, run.teacher, *batch)
    distilled = {name: distiller(pair) for name, distiller in copy.deepcopy(run.distillers).items()}
    torch.manual_seed(3)
    terms = run.step(batch)
    assert losses.keys() == TERMS
    expected = dict(losses)
    for method, found in distilled.items():
        expected |= {f"{method}.{name}": value for name, value in found.items() if name != "loss"}
    assert all(torch.equal(terms[name], value.detach()) for name, value in expected.items())
    assert terms.keys() == {*expected, "loss"}
    total = sum(losses.values()) + sum(found["loss"] for found in distilled.values())
    torch.testing.assert_close(terms["loss"], total.detach())


@pytest.mark.parametrize("method", ["student", "roi_apd", "dense_apd", "several"])
def test_every_parameter_of_a_step_gets_a_gradient_also_where_an_image_has_no_object(method, tmp_path):
    run = prepared(small(method), tmp_path)
    run.student.train()
    batch = batch_of(run)
    empty = {name: value[:0] for name, value in batch.targets[1].items()}
    empty["class_map"] = torch.zeros_like(batch.targets[1]["class_map"])
    for targets in (batch.targets, [batch.targets[0], empty], [empty, empty]):
        terms = run.step(batch._replace(targets=targets))
        assert all(value.isfinite() for value in terms.values())
        trained = torch.nn.ModuleList([run.student, run.distillers]).named_parameters()
        assert [name for name, p in trained if p.requires_grad and p.grad is None] == []
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


# a run


def test_a_run_is_trained_scored_and_recorded_with_its_teacher(finished):
    record = train(finished)
    content = record.content
    assert "confusion" not in content
    assert content["data"]["class_names"] == ["sign", "car", "pedestrian"]
    assert content["device"]["precision"] == "fp32"
    assert content["versions"]["faster-coco-eval"] != "not installed"
    distilled = {"roi_apd.regularisation", "roi_apd.alignment", "roi_apd.observation", "roi_kd.pixel_kd"}
    expected = {*TERMS, *distilled, "review_kd.review_kd", "loss", "iteration", "learning_rate"}
    assert set(content["curves"]) == expected
    assert [(entry["step"], entry["split"]) for entry in content["evaluations"]] == [(2, "val"), (4, "val")]
    assert [set(entry) for entry in content["evaluations"]] == [{"step", "split", "ap"}] * 2
    teacher = train(finished.teacher_experiment())
    assert content["teacher"] == {name: teacher.content[name] for name in ("ap", "weights_sha256")}
    assert record.teacher_ap["boxes"].ap == teacher.ap["boxes"].ap
    assert teacher.teacher_ap is None


def test_the_network_of_a_run_comes_back_as_it_was_scored(finished):
    record, detector = train(finished), trained_network(finished)
    assert not detector.training
    for kind, table in scored(detector, task_of(finished).split("val")).tables().items():
        ours = tables_of(record.content["ap"])[kind]
        assert torch.equal(ours.instances_K, table.instances_K)
        assert torch.equal(ours.ap_TKA.nan_to_num(-1), table.ap_TKA.nan_to_num(-1))


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


def test_another_draw_of_boxes_would_give_other_weights(finished, tmp_path, monkeypatch):
    """Else the test above would show nothing."""
    expected = outcome(finished.teacher_experiment())["weights"]
    monkeypatch.setenv("APD_RUNS", str(tmp_path))
    monkeypatch.setattr(loop.Trainer, "_resume", lambda run: (torch.manual_seed(99), run.log.start_over(0), 0)[-1])
    train(finished.teacher_experiment())
    assert outcome(finished.teacher_experiment())["weights"] != expected


def test_a_faster_rcnn_is_scored_by_its_boxes(runs):
    experiment = replace(small(evaluations=0, iterations=1), network=replace(NETWORK, kind="faster_rcnn"))
    record = train(experiment)
    assert set(record.ap) == set(record.content["ap"]) == {"boxes"}
    assert "loss_mask" not in record.content["curves"]


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
    with pytest.raises(ExperimentError, match=r"needs the package faster-coco-eval: install it with"):
        train(small())
    assert not list(runs.rglob("*.safetensors"))


def test_a_campaign_runs_experiments_of_both_tasks(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(campaign.CAMPAIGNS, "both", lambda: iter([finished, tiny()]))
    records = campaign.run_campaign("both", folder=tmp_path / "records")
    out = capsys.readouterr().out
    assert f"both: 1/2 boxes-several: box AP {records[0].headline[1]:.4f}, about 0 min left" in out
    assert f"both: 2/2 student-seed0: mIoU {records[1].scores.miou:.4f}, about 0 min left" in out


# data


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
    data = replace(coco, annotations="of-{split}.json", pictures="images-{split}", val_part="val2017")
    task = task_of(small(data=data))
    assert len(task.split("train")) == 3
    with pytest.raises(DataError, match=r"of-val2017\.json is missing: expected coco/of-val2017\.json and coco/"):
        task.split("val")


def test_splits_of_other_classes_are_refused(coco, tmp_path):
    path = tmp_path / "coco" / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    content["categories"][0]["name"] = "rod"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="coco: train2017 has 80 categories and val2017 has 80, not the same ones"):
        task_of(small(data=replace(coco, val_part="val2017"))).splits()


def test_the_splits_of_scenes_are_those_of_the_configuration():
    task = task_of(small(data=replace(DATA, evaluation_split="test", least_pixels=5, world=3, context_shift=0.25)))
    splits = task.splits()
    assert not splits.others
    for split, count, name in zip(splits[:3], (6, 3, 3), ("train", "val", "test"), strict=True):
        assert (len(split), split.scenes.split) == (count, name)
        settings = (split.least_pixels, split.scenes.seed, split.scenes.context_shift, split.scenes.height)
        assert settings == (5, 3, 0.25, 64)


# the record


def test_a_record_comes_back_and_its_scores_are_computed_from_its_tables(finished, tmp_path):
    record = train(finished)
    record.save(tmp_path / "record.json")
    assert read_record(tmp_path / "record.json").content == record.content
    content = copy.deepcopy(record.content)
    for rows in content["ap"]["boxes"]["ap"]:
        rows[:] = [[None if value is None else 0.25 for value in row] for row in rows]
    changed = Record(content)
    assert changed.headline == ("box AP", 0.25)
    assert changed.ap["boxes"].ap50 == 0.25
    for kind, table in tables_of(record.content["ap"]).items():
        assert record.ap[kind].ap == ap_scores(table).ap


def test_scores_of_the_other_task_are_refused_with_the_right_ones_named(finished):
    segmentation = train(tiny())
    assert segmentation.headline == ("mIoU", segmentation.scores.miou)
    of_detection = (("scores", "ap"), ("teacher_scores", "ap"), ("agreement", "ap"))
    of_segmentation = (("ap", "scores"), ("teacher_ap", "scores"))
    for record, names in ((train(finished), of_detection), (segmentation, of_segmentation)):
        for name, instead in names:
            expected = rf"a record of {record.experiment.task} has no .*: use Record\.{instead}$"
            with pytest.raises(RecordError, match=expected):
                getattr(record, name)


SHAPE = "boxes.ap must be 10 x 3 x 4 nested lists of fractions between 0 and 1, or null"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("ap",), ..., "entry 'ap' is missing"),
        (("ap", "masks"), ..., "ap must hold boxes and masks, as the network gives them"),
        (("confusion",), [[1]], "confusion is no entry of a record of detection"),
        (("ap", "boxes", "things"), ..., "ap boxes must hold ap and things"),
        *(
            (("ap", "boxes", "things"), value, "ap boxes.things must be 3 counts >= 0")
            for value in ([1, 2], [1, 2, -1])
        ),
        (("ap", "boxes", "ap", 3), [[0.5] * 4] * 2, f"ap {SHAPE}"),
        *((("ap", "boxes", "ap", 3, 1, 0), value, f"ap {SHAPE}") for value in (1.5, -1, math.nan, True, "0.5")),
        (("ap", "boxes", "ap", 3, 1, 0), None, "ap boxes.ap of class 1, of which there are "),
        (("ap", "masks", "things", 1), 10**6, "ap must count the same things of boxes and of masks"),
        (("teacher", "ap"), ..., "entry 'teacher.ap' is missing"),
        (("evaluations", 1, "ap", "boxes", "ap"), 7, f"evaluations[1].ap {SHAPE}"),
        (("data", "class_names"), [], "data.class_names must be a list of at least one text"),
    ],
)
def test_a_damaged_record_is_refused_with_the_entry(path, value, message, finished):
    owner = content = copy.deepcopy(train(finished).content)
    for key in path[:-1]:
        owner = owner[key]
    if value is ...:
        del owner[path[-1]]
    else:
        owner[path[-1]] = value
    with pytest.raises(RecordError) as caught:
        Record(content, source="some.json")
    assert str(caught.value).startswith(f"some.json: {message}")
