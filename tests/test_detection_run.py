"""Detection by the trainer of the study: the objective, a run from teacher to record, resumption, the campaign."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from miniatures import COCO_CONTENT as CONTENT
from miniatures import write_shapes
from safetensors.torch import load_file
from small_detection import DATA, NETWORK, TEACHER, prepared, small
from small_experiments import outcome, tiny

from apd.cli import app as cli
from apd.config.detection import InstanceDataConfig
from apd.config.experiment import ExperimentError
from apd.data.image_folder import DataError
from apd.evaluation.average_precision import ap_scores, scored, tables_of
from apd.models.detector_hooks import DetectorTap, training_step
from apd.report.perspectives import trained_distiller
from apd.study import campaign
from apd.training import trainer as loop
from apd.training.checkpoint import CheckpointError
from apd.training.record import Record, RecordError, read_record
from apd.training.run import run_folder, task_of, train, trained_network
from apd.training.run_log import NonFiniteLossError
from apd.training.teacher import TeacherError

TERMS = {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("APD_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


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


# the objective


def batch_of(run):
    return next(run.task.batches(run.splits.train, start=0, ranks=run.ranks, workers=0, device=run.device))


def without_things(batch):
    """The batch with nothing to be found in its second picture."""
    empty = {name: value[:0] for name, value in batch.targets[1].items() if name != "class_map"}
    empty["class_map"] = torch.zeros_like(batch.targets[1]["class_map"])
    return batch._replace(targets=[batch.targets[0], empty])


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
    for name, value in losses.items():
        assert torch.equal(terms[name], value.detach()), name
    for method, found in distilled.items():
        for name in found.keys() - {"loss"}:
            assert torch.equal(terms[f"{method}.{name}"], found[name].detach()), name
    expected = sum(losses.values()) + sum(found["loss"] for found in distilled.values())
    torch.testing.assert_close(terms["loss"], expected.detach())
    assert len(terms) == 1 + len(TERMS) + sum(len(found) - 1 for found in distilled.values())


@pytest.mark.parametrize("method", ["student", "roi_apd", "dense_apd", "several"])
def test_every_parameter_of_a_step_gets_a_gradient_also_where_a_picture_has_no_thing(method, tmp_path):
    run = prepared(small(method), tmp_path)
    run.student.train()
    batch = batch_of(run)
    for given in (batch, without_things(batch), without_things(batch)._replace(images=batch.images[1:] * 2)):
        targets = given.targets if given.images[0] is batch.images[0] else [given.targets[1]] * 2
        terms = run.step(given._replace(targets=targets))
        assert all(value.isfinite() for value in terms.values())
        trained = torch.nn.ModuleList([run.student, run.distillers]).named_parameters()
        assert [name for name, p in trained if p.requires_grad and p.grad is None] == []
    assert terms["loss_mask"] == terms["loss_box_reg"] == 0


def test_the_teacher_is_no_part_of_what_is_trained_and_stays_as_it_was(tmp_path):
    run = prepared(small("several"), tmp_path)
    before = {name: value.clone() for name, value in run.teacher.state_dict().items()}
    run.student.train()
    run.step(batch_of(run))
    objective = {id(module) for module in run.task.modules()}
    assert not objective & {id(module) for module in run.teacher.modules()}
    assert all(torch.equal(value, before[name]) for name, value in run.teacher.state_dict().items())
    assert not run.teacher.training


def test_every_trained_parameter_belongs_to_one_group_of_one_optimiser(tmp_path):
    run = prepared(small("several", head_multiplier=3.0), tmp_path)
    body, rest = run.optimisers["student"].param_groups
    (teachers,) = run.optimisers["teacher_heads"].param_groups
    assert {id(p) for p in body["params"]} == {id(p) for p in run.student.backbone.body.parameters()}
    assert rest["base_rate"] == 3 * body["base_rate"]
    everything = [p for p in (*run.student.parameters(), *run.distillers.parameters()) if p.requires_grad]
    grouped = [p for group in (body, rest, teachers) for p in group["params"]]
    assert len(grouped) == len(everything)
    assert {id(p) for p in grouped} == {id(p) for p in everything}
    assert {id(p) for p in teachers["params"]} == {id(p) for p in run.distillers["roi_apd"].teacher_head.parameters()}


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
    assert set(content["curves"]) - {"iteration", "learning_rate"} == {
        *TERMS,
        *("roi_apd.regularisation", "roi_apd.alignment", "roi_apd.observation"),
        *("roi_kd.pixel_kd", "review_kd.review_kd", "loss"),
    }
    assert [(entry["step"], entry["split"]) for entry in content["evaluations"]] == [(2, "val"), (4, "val")]
    assert [set(entry) for entry in content["evaluations"]] == [{"step", "split", "ap"}] * 2
    assert set(content["teacher"]) == {"ap", "weights_sha256"}
    teacher = train(finished.teacher_experiment())
    assert content["teacher"]["ap"] == teacher.content["ap"]
    assert content["teacher"]["weights_sha256"] == teacher.content["weights_sha256"]
    assert record.teacher_ap["boxes"].ap == teacher.ap["boxes"].ap
    assert teacher.teacher_ap is None


def test_the_network_of_a_run_comes_back_as_it_was_scored(finished):
    record, detector = train(finished), trained_network(finished)
    assert not detector.training
    tables = scored(detector, task_of(finished).split("val")).tables()
    for kind, table in tables.items():
        ours = tables_of(record.content["ap"])[kind]
        assert torch.equal(ours.instances_K, table.instances_K)
        assert torch.equal(ours.ap_TKA.nan_to_num(-1), table.ap_TKA.nan_to_num(-1))
    sample = task_of(finished).split("val")[0]
    found = detector([sample.image_3HW / 255])[0]
    assert set(found) == {"boxes", "labels", "scores", "masks"}


def test_the_distiller_of_a_run_comes_back_with_the_heads_it_had_trained(finished):
    student, teacher = trained_network(finished), trained_network(finished.teacher_experiment())
    distiller = trained_distiller(finished, student, teacher, "roi_apd")
    saved = load_file(run_folder(finished) / "checkpoints" / "step-00000004" / "state.safetensors")
    assert not distiller.training
    for name, value in distiller.state_dict().items():
        assert torch.equal(value, saved[f"distillers.roi_apd.{name}"])


class Thrown(Exception):
    pass


@pytest.mark.parametrize("last", [2, 3])
def test_an_interrupted_run_ends_bit_equal(last, finished, undisturbed, tmp_path, monkeypatch):
    """torchvision draws boxes and anchors from the global generator: it, too, is where it was."""
    expected = outcome(finished)
    monkeypatch.setenv("APD_RUNS", str(tmp_path))
    (teacher,) = undisturbed.glob("scenes-teacher-*")
    (tmp_path / teacher.name).symlink_to(teacher)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)

    def throw(step):
        if step == last:
            raise Thrown

    with pytest.raises(Thrown):
        train(finished, on_step=throw)
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


def test_a_teacher_may_come_from_a_file_that_fits(finished, undisturbed, tmp_path, monkeypatch):
    weights = run_folder(finished.teacher_experiment()) / "weights.safetensors"
    expected = train(finished).content["teacher"]
    monkeypatch.setenv("APD_RUNS", str(tmp_path))
    given = replace(small("roi_apd", iterations=1, evaluations=0), teacher=replace(TEACHER, weights_file=str(weights)))
    assert train(given).content["teacher"] == expected
    wider = replace(given, teacher=replace(given.teacher, network=NETWORK))
    with pytest.raises(TeacherError, match=r"teacher weights .*; the network is DetectorConfig\(kind='mask_rcnn'"):
        train(wider)


def test_a_teacher_below_its_stated_score_is_refused(finished, capsys):
    strict = replace(finished, teacher=replace(TEACHER, expected_ap=0.9))
    with pytest.raises(TeacherError, match=r"the teacher's box AP is 0\.\d{4} on val, below teacher.expected_ap = 0.9"):
        train(strict)
    assert "teacher box AP 0." in capsys.readouterr().out


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_batch(runs, monkeypatch):
    original = loop.TrainStep.__call__

    def poisoned(self, batch):
        with torch.no_grad():
            self.student.roi_heads.box_predictor.cls_score.bias[0] = math.inf
        return original(self, batch)

    monkeypatch.setattr(loop.TrainStep, "__call__", poisoned)
    with pytest.raises(NonFiniteLossError, match=r"step 0: loss_classifier = (nan|inf)"):
        train(small())
    kept = load_file(run_folder(small()) / "non-finite-batch.safetensors")
    first = batch_of(prepared(small(), runs / "first"))
    assert torch.equal(kept["image.1"], first.images[1])
    for name, value in first.targets[0].items():
        assert torch.equal(kept[f"target.0.{name}"], value)


def test_a_finished_run_of_another_generator_of_scenes_is_refused(finished, monkeypatch):
    monkeypatch.setattr("apd.data.scenes.GENERATOR_VERSION", 0)
    with pytest.raises(CheckpointError, match="scenes of another version of their generator: delete the folder"):
        train(finished)


def test_without_the_library_for_scores_nothing_is_begun(runs, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faster_coco_eval", None)
    with pytest.raises(ExperimentError, match=r"needs the package faster-coco-eval: install it with"):
        train(small())
    assert not list(runs.rglob("*.safetensors"))


# data as COCO has them


@pytest.fixture
def coco_folder(tmp_path):
    return write_shapes(tmp_path)


def test_a_data_set_with_annotations_as_coco_has_them(coco_folder, runs, monkeypatch):
    """Pictures of three sizes, one of them without a thing; the split that is trained on is scored."""
    monkeypatch.setenv("APD_DATA", str(coco_folder))
    data = InstanceDataConfig(
        name="coco", folder="shapes", train_part="train", val_part="train", height=64, width=96, flip=0.0
    )
    record = train(small(data=data, iterations=2, evaluations=1))
    assert record.class_names == ["square", "disc", "bar"]
    assert record.content["data"]["name"] == "shapes"
    assert record.content["data"]["images"] == len(CONTENT["images"])
    assert record.content["ap"]["boxes"]["things"] == [0, 1, 1]  # a square is a crowd, and one disc has no width
    splits = task_of(record.experiment).splits()
    assert splits.train is splits.val is splits.evaluation


def test_annotations_and_pictures_may_lie_elsewhere(coco_folder, monkeypatch):
    monkeypatch.setenv("APD_DATA", str(coco_folder))
    (coco_folder / "shapes" / "annotations" / "instances_train.json").rename(coco_folder / "shapes" / "of-train.json")
    (coco_folder / "shapes" / "train").rename(coco_folder / "shapes" / "pictures-train")
    data = InstanceDataConfig(
        name="coco", folder="shapes", annotations="of-{split}.json", pictures="pictures-{split}", train_part="train"
    )
    task = task_of(small(data=data))
    assert len(task.split("train")) == 3
    with pytest.raises(DataError, match=r"of-val2017\.json is missing: expected shapes/of-val2017\.json and shapes/"):
        task.split("val")


def test_splits_of_other_classes_are_refused(coco_folder, monkeypatch):
    monkeypatch.setenv("APD_DATA", str(coco_folder))
    other = copy.deepcopy(CONTENT)
    other["categories"][0]["name"] = "rod"
    (coco_folder / "shapes" / "annotations" / "instances_val.json").write_text(json.dumps(other))
    (coco_folder / "shapes" / "val").symlink_to(coco_folder / "shapes" / "train")
    data = InstanceDataConfig(name="coco", folder="shapes", train_part="train", val_part="val")
    with pytest.raises(DataError, match="shapes: train has 3 categories and val has 3, not the same ones"):
        task_of(small(data=data)).splits()


# the record


def test_a_record_comes_back_and_its_scores_are_computed_from_its_tables(finished, tmp_path):
    record = train(finished)
    record.save(tmp_path / "record.json")
    again = read_record(tmp_path / "record.json")
    assert again.content == record.content
    content = copy.deepcopy(record.content)
    for rows in content["ap"]["boxes"]["ap"]:
        rows[:] = [[None if value is None else 0.25 for value in row] for row in rows]
    changed = Record(content)
    assert changed.headline == ("box AP", 0.25)
    assert changed.ap["boxes"].ap50 == 0.25
    for kind, table in tables_of(record.content["ap"]).items():
        assert record.ap[kind].ap == ap_scores(table).ap


def test_scores_of_the_other_task_are_refused_with_the_right_ones_named(finished):
    record = train(finished)
    for name, instead in (("scores", "ap"), ("teacher_scores", "teacher_ap"), ("agreement", "teacher_ap")):
        with pytest.raises(RecordError, match=rf"a record of detection has no .*: use Record\.{instead}$"):
            getattr(record, name)
    segmentation = train(tiny())
    assert segmentation.headline == ("mIoU", segmentation.scores.miou)
    for name, instead in (("ap", "scores"), ("teacher_ap", "teacher_scores")):
        with pytest.raises(RecordError, match=rf"a record of segmentation has no .*: use Record\.{instead}$"):
            getattr(segmentation, name)


def damaged(content, path, value):
    owner = content = copy.deepcopy(content)
    for key in path[:-1]:
        owner = owner[key]
    if value is ...:
        del owner[path[-1]]
    else:
        owner[path[-1]] = value
    return content


SHAPE = "boxes.ap must be 10 x 3 x 4 nested lists of fractions between 0 and 1, or null"


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("ap",), ..., "entry 'ap' is missing"),
        (("ap",), [], "ap must hold boxes and masks, as the network gives them"),
        (("ap", "masks"), ..., "ap must hold boxes and masks, as the network gives them"),
        (("confusion",), [[1]], "confusion is no entry of a record of detection"),
        (("ap", "boxes", "things"), ..., "ap boxes must hold ap and things"),
        (("ap", "boxes", "things"), [1, 2], "ap boxes.things must be 3 counts >= 0"),
        (("ap", "boxes", "things"), [1, 2, -1], "ap boxes.things must be 3 counts >= 0"),
        (("ap", "boxes", "things"), [1, 2, True], "ap boxes.things must be 3 counts >= 0"),
        (("ap", "boxes", "ap"), [], f"ap {SHAPE}"),
        (("ap", "boxes", "ap", 3), [[0.5] * 4] * 2, f"ap {SHAPE}"),
        (("ap", "boxes", "ap", 3, 1), [0.5] * 3, f"ap {SHAPE}"),
        (("ap", "boxes", "ap", 3, 1, 0), 1.5, f"ap {SHAPE}"),
        (("ap", "boxes", "ap", 3, 1, 0), -1, f"ap {SHAPE}"),
        (("ap", "boxes", "ap", 3, 1, 0), math.nan, f"ap {SHAPE}"),
        (("ap", "boxes", "ap", 3, 1, 0), True, f"ap {SHAPE}"),
        (("ap", "boxes", "ap", 3, 1, 0), "0.5", f"ap {SHAPE}"),
        (("ap", "boxes", "ap", 3, 1, 0), None, "ap boxes.ap of class 1, of which there are "),
        (
            ("ap", "boxes", "things", 1),
            0,
            "ap boxes.ap of class 1, of which there are 0, must be null where there is none",
        ),
        (("ap", "masks", "things", 1), 10**6, "ap must count the same things of boxes and of masks"),
        (("teacher", "ap"), ..., "entry 'teacher.ap' is missing"),
        (("teacher", "ap", "boxes", "ap"), [], f"teacher.ap {SHAPE}"),
        (("teacher",), None, "teacher must be there exactly when the experiment has one"),
        (("evaluations", 0, "ap"), ..., "entry 'evaluations[0].ap' is missing"),
        (("evaluations", 1, "ap", "boxes", "ap"), 7, f"evaluations[1].ap {SHAPE}"),
        (("evaluations", 1, "confusion"), [], "evaluations[1].confusion is no entry of a record of detection"),
        (("data", "class_names"), [], "data.class_names must be a list of at least one text"),
    ],
)
def test_a_damaged_record_is_refused_with_the_entry(path, value, told, finished):
    with pytest.raises(RecordError) as caught:
        Record(damaged(train(finished).content, path, value), source="some.json")
    assert str(caught.value).startswith(f"some.json: {told}")


# the campaign and the command line


def test_a_campaign_runs_experiments_of_both_tasks(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(campaign.CAMPAIGNS, "both", lambda: iter([finished, tiny()]))
    records = campaign.run_campaign("both", folder=tmp_path / "records")
    out = capsys.readouterr().out
    assert f"both: 1/2 boxes-several: box AP {records[0].headline[1]:.4f}, about 0 min left" in out
    assert f"both: 2/2 student-seed0: mIoU {records[1].scores.miou:.4f}, about 0 min left" in out
    again = campaign.run_campaign("both", folder=tmp_path / "records")
    assert [record.content for record in again] == [record.content for record in records]


def test_the_command_line_tells_boxes_and_masks_of_student_and_teacher(finished):
    record = train(finished)
    found, teacher = record.ap, record.teacher_ap
    assert cli.summary(record) == (
        f"boxes-several: box AP {found['boxes'].ap:.4f} (AP50 {found['boxes'].ap50:.4f}), "
        f"mask AP {found['masks'].ap:.4f} (AP50 {found['masks'].ap50:.4f}) on val; "
        f"teacher box AP {teacher['boxes'].ap:.4f} (AP50 {teacher['boxes'].ap50:.4f}), "
        f"mask AP {teacher['masks'].ap:.4f} (AP50 {teacher['masks'].ap50:.4f})"
    )


def test_the_splits_of_scenes_are_those_of_the_configuration():
    task = task_of(small(data=replace(DATA, evaluation_split="test", least_pixels=5, world=3, context_shift=0.25)))
    splits = task.splits()
    assert not splits.others
    splits = (splits.train, splits.val, splits.evaluation)
    assert [len(split) for split in splits] == [6, 3, 3]
    assert [split.scenes.split for split in splits] == ["train", "val", "test"]
    for split in splits:
        settings = (split.least_pixels, split.scenes.seed, split.scenes.context_shift, split.scenes.height)
        assert settings == (5, 3, 0.25, 64)
