"""A run of either task from experiment to record: seeds, log and curves, the teacher, and what is refused."""

import copy
import json
import multiprocessing
import os
import random
import signal
import sys
from dataclasses import replace

import pytest
import small_experiments as small_runs
import torch
from miniatures import write_coco
from safetensors.torch import load_file
from small_detection import DATA, NETWORK, small
from small_experiments import Thrown, copied, equal, outcome, prepared_run, thrown_at, tiny, undisturbed

from apd.config.detection_config import InstanceDataConfig
from apd.config.experiment import ExperimentError
from apd.data.image_folder import DataError
from apd.models.detector_hooks import DetectorTap, training_step
from apd.training import trainer as loop
from apd.training.checkpoint import CheckpointError
from apd.training.run import run_folder, task_of, train, trained_distiller, trained_network
from apd.training.run_log import CURVE_POINTS, LogLines, RunLog
from apd.training.segmentation import build_network
from apd.training.task import TeacherError, load_teacher

CPU = torch.device("cpu")
TERMS = {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}


def test_a_seed_decides_everything_and_another_seed_changes_it(runs):
    one, other = (train(tiny("apd", seed=seed)).content for seed in (0, 1))
    assert outcome(tiny("apd")) == undisturbed(tiny("apd"))
    assert other["weights_sha256"] != one["weights_sha256"]
    assert other["data"] == one["data"], "the seed of an experiment never changes its data"
    assert other["teacher"]["confusion"] == one["teacher"]["confusion"]


def test_methods_share_initial_weights_and_the_order_of_images_for_one_seed(tmp_path):
    made = [prepared_run(tiny(method, seed=4), tmp_path / method) for method in ("student", "pixel_kd", "apd")]
    first, *others = (copied(run.student) for run in made)
    assert all(equal(first, other) for other in others)
    for run in made:
        run.execute()
    first_losses, last_losses = ([run.log.read()[place]["task"] for run in made] for place in (0, -1))
    assert (len(set(first_losses)), len(set(last_losses))) == (1, 3)
    assert not equal(first, copied(prepared_run(tiny(seed=5), tmp_path / "other").student))


def test_curves_are_means_over_equal_stretches_of_steps(tmp_path):
    log = RunLog(tmp_path / "log.jsonl")
    log.start_over([])
    for step in range(250):
        taken = {"seconds": 1.0 if step == 0 else 0.25, "core_seconds": 0.5 if step == 0 else 0.125}
        log.write({"step": step, **taken, "loss": float(step)})
    summary = log.summary()  # medians: the first step, with its warming up, does not count
    assert (summary["core_seconds_per_iteration"], summary["seconds_per_iteration"]) == (0.125, 0.25)
    iterations, losses = (summary["curves"][name] for name in ("iteration", "loss"))
    assert len(iterations) == len(losses) == 84 <= CURVE_POINTS
    assert (iterations[:2], iterations[-1]) == ([3, 6], 250)
    assert (losses[:2], losses[-1]) == ([1.0, 4.0], 249.0)


def test_progress_lines_come_in_a_bounded_number(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    lines = LogLines(desc="run", initial=100, total=10_000)
    for _ in range(100, 10_000):
        clock[0] += 0.125
        lines.update()
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == ["run: step 100 of 10000, 00:00<?, ?s/it", "run: step 340 of 10000, 00:30<20:07,  0.12s/it"]
    assert len(printed) == 1 + 9900 * 0.125 // 30


def test_evaluations_on_the_way_are_of_val_at_equal_distances_and_final_scores_of_the_split_that_is_named(runs):
    content = train(tiny(iterations=7, evaluations=3)).content
    assert [entry["step"] for entry in content["evaluations"]] == [2, 4, 7]
    assert content["evaluations"][-1]["confusion"] == content["confusion"]
    of_test = replace(tiny(evaluations=1), data=replace(tiny().data, evaluation_split="test"))
    content = train(of_test).content
    assert (content["data"]["split"], content["evaluations"][0]["split"]) == ("test", "val")
    assert content["evaluations"][0]["confusion"] != content["confusion"]
    assert train(tiny(evaluations=0)).content["evaluations"] == []


@pytest.mark.parametrize(
    ("experiment", "classes", "expected", "score"),
    [(tiny("apd"), 10, "expected_miou", "mIoU"), (small("roi_apd", iterations=1), 3, "expected_ap", "box AP")],
)
def test_a_teacher_from_a_file_fits_reaches_its_stated_score_and_is_frozen(experiment, classes, expected, score, runs):
    train(experiment)
    own = experiment.teacher_experiment()
    file = run_folder(own) / "weights.safetensors"
    for spelled in (file.parent, file.with_name("record.json"), file):  # as other commands take a run
        teacher = load_teacher(task_of(experiment), spelled, classes, CPU)
        assert equal(copied(teacher), load_file(file))
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    reached = {"weights_file": str(file), expected: train(own).headline[1]}
    given = replace(experiment, teacher=replace(experiment.teacher, **reached))
    for spelled in (file.parent, file.with_name("record.json"), file):
        given = replace(given, teacher=replace(given.teacher, weights_file=str(spelled)))
        assert train(given).content == train(given).content, "which is found finished"
    assert outcome(given) | {"fingerprint": ""} == outcome(experiment) | {"fingerprint": ""}
    with pytest.raises(TeacherError, match=r"teacher weights .*; give another --teacher.*; the teacher is "):
        train(replace(given, teacher=replace(given.teacher, network=experiment.network)))
    with pytest.raises(TeacherError, match=rf"the teacher's {score} is 0\.\d+ on val, below teacher.{expected} = 0.9"):
        train(replace(experiment, teacher=replace(experiment.teacher, **{expected: 0.9})))


def test_a_distiller_that_a_run_does_not_have_is_an_error(runs):
    network = build_network(tiny().network, 10, CPU, seed=0)
    with pytest.raises(CheckpointError, match="this run has not finished"):
        trained_network(tiny())
    with pytest.raises(CheckpointError, match="'student-seed0' has no distiller 'apd'"):
        trained_distiller(tiny(), network, network)
    with pytest.raises(CheckpointError, match=r"holds no whole checkpoint of the last step; delete .*apd-seed0-"):
        trained_distiller(tiny("apd"), network, network)


@pytest.mark.parametrize("experiment", [tiny(), small()])
def test_a_finished_run_of_another_generator_of_scenes_is_refused(experiment, runs, monkeypatch):
    train(experiment)
    monkeypatch.setattr("apd.data.scenes.GENERATOR_VERSION", 0)
    with pytest.raises(CheckpointError, match="scenes of another version of their generator: delete the folder"):
        train(experiment)


def test_what_cannot_be_run_is_an_error_of_the_experiment_before_anything_is_written(runs):
    for device in ("gpu", "cuda:99", "meta"):
        with pytest.raises(ExperimentError, match=f"device = '{device}': expected cpu, or cuda where there is a GPU"):
            train(tiny(), device=device)
    with pytest.raises(ExperimentError, match="workers = -1: expected a whole number of at least 0"):
        train(tiny(), workers=-1)
    assert not runs.exists()
    unknown = replace(tiny(), network=replace(tiny().network, backbone="test_eficientnet"))
    with pytest.raises(ExperimentError, match=r"this network cannot be built: backbone: .*test_efficientnet"):
        train(unknown)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_run_with_workers_ends_as_without_even_if_its_workers_are_asked_to_stop(runs):
    def ask(step):  # as Ctrl-C in a terminal does, and a scheduler
        for worker in multiprocessing.active_children() if step in (1, 2) else ():
            os.kill(worker.pid, signal.SIGINT if step == 1 else signal.SIGTERM)

    train(tiny(), workers=1, on_step=ask)
    assert outcome(tiny()) == undisturbed(tiny())
    assert multiprocessing.active_children() == []


EXPERIMENTS = {
    "apd": tiny("apd"),  # two optimisers
    "both_with_average": tiny("both", seed=1, ema_decay=0.9, clip_norm=1.0),
    "adamw_warming_up": tiny(optimiser="adamw", warmup=4, schedule="steps", milestones=(5,), learning_rate=1e-3),
    "detection_with_average": small("several", ema_decay=0.5),
}


@pytest.mark.parametrize("name", ["apd", "both_with_average", "detection_with_average"])
def test_a_run_killed_at_random_moments_ends_bit_equal(name, runs, tmp_path):
    """The kills fall anywhere: while a checkpoint is written, renamed or pruned, between log and checkpoint, at the
    end while weights and record are written, and in the run of the teacher."""
    dice, output, kills = random.Random(name), tmp_path / "output", 0
    kill = small_runs.train_until_killed
    while (code := small_runs.exit_code(kill, EXPERIMENTS[name], runs, dice.randint(8, 50), output=output)) == -9:
        kills += 1
        assert kills < 60, "the run makes no progress"
    assert code == 0, output.read_text()
    assert kills >= 4, "too few to show anything"
    assert "resumed at step" in output.read_text()
    assert outcome(EXPERIMENTS[name]) == undisturbed(EXPERIMENTS[name])
    assert not list(runs.rglob("*.part*")), "a partial file outlived the run"


OFTEN, NEVER = 0.0, 1e9  # seconds between two checkpoints
INTERRUPTIONS = [  # the experiment, and after which steps it is thrown out of its loop with how frequent checkpoints
    ("apd", [(4, OFTEN), (5, NEVER)]),  # after the scores of step 3, which the checkpoint holds
    ("adamw_warming_up", [(2, OFTEN)]),
    ("adamw_warming_up", [(4, OFTEN)]),
    ("both_with_average", [(3, NEVER)]),
    *(("detection_with_average", [(step, OFTEN)]) for step in (2, 3)),  # boxes are drawn from the global generator
]


@pytest.mark.parametrize(("name", "interruptions"), INTERRUPTIONS)
def test_a_run_thrown_out_of_its_loop_goes_on_and_ends_bit_equal(name, interruptions, runs, monkeypatch, capsys):
    experiment, last = EXPERIMENTS[name], 0
    for step, seconds in interruptions:
        monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", seconds)
        with pytest.raises(Thrown):
            train(experiment, on_step=thrown_at(step))
        last = step if seconds == OFTEN else last
    steps = []
    torch.manual_seed(12345)  # the random state around a run plays no part
    content = train(experiment, on_step=steps.append).content
    assert steps == list(range(last + 1, 1 + experiment.training.iterations))
    assert (f"resumed at step {last}" in capsys.readouterr().out) == (last > 0)
    assert outcome(experiment) == undisturbed(experiment)
    spent = sum(line["seconds"] for line in RunLog(run_folder(experiment) / "log.jsonl").read())
    assert content["wall_seconds"] >= round(spent, 2) - 0.01, "summed over the parts"


def batch_of(run):
    return next(run.task.batches(run.splits.train, start=0, ranks=run.ranks, workers=0, device=run.device))


def test_the_terms_are_torchvisions_losses_and_the_distillers_and_the_loss_their_sum(tmp_path):
    run = prepared_run(small("several"), tmp_path)
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


def test_a_run_of_detection_is_trained_scored_and_recorded_with_its_teacher(runs):
    record, teacher = (train(each) for each in (small("several"), small("several").teacher_experiment()))
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


def test_without_the_library_for_scores_nothing_is_begun(runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(ExperimentError, match="needs the package faster_coco_eval"):
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
