"""One training run: what a step updates and what it leaves alone, rates, determinism, and the log."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_detection import prepared, small
from small_experiments import TEACHER, digest, outcome, prepared_run, tiny
from torch import nn

from apd.config.experiment import ExperimentError
from apd.data.batches import Batch
from apd.distillers.apd import APDConfig
from apd.report.perspectives import trained_distiller
from apd.training import trainer as loop
from apd.training.checkpoint import CheckpointError
from apd.training.optim import set_learning_rates
from apd.training.run import run_folder, task_of, train, trained_network
from apd.training.run_log import CURVE_POINTS, NonFiniteLossError, RunLog
from apd.training.segmentation import build_network, task_loss
from apd.training.teacher import load_teacher

CPU = torch.device("cpu")
METHOD_FILES = {
    *("perspective", "fused", "losses", "normalizers", "distill"),
    *("distillers", "hooks", "validation"),
}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("APD_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def copied(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def log_of(experiment):
    return [json.loads(line) for line in (run_folder(experiment) / "log.jsonl").read_text().splitlines()]


# one step on one screen


@pytest.mark.parametrize(("task", "most"), [("segmentation", 11), ("detection", 12)])
def test_one_batch_from_disk_to_the_log_walks_through_few_files(tmp_path, task, most):
    """Beside those of the method: its losses, their normalisers, heads, checks and the hooks that feed them."""
    run = prepared_run(tiny("apd"), tmp_path) if task == "segmentation" else prepared(small("roi_apd"), tmp_path)
    batches = run.task.batches(run.splits.train, start=0, ranks=run.ranks, workers=0, device=run.device)
    package, walked = Path(loop.__file__).parents[1], set()

    def note(frame, event, _):
        if event == "call" and Path(frame.f_code.co_filename).is_relative_to(package):
            walked.add(Path(frame.f_code.co_filename).relative_to(package).as_posix())

    run.student.train()
    for index in range(len(run.splits.train)):  # a scene is drawn once and kept
        run.splits.train[index]
    run.step(next(batches))  # what is imported or set up once is no part of a step
    sys.setprofile(note)
    try:
        batch = next(batches)
        set_learning_rates(run.optimisers, run.experiment.training, 2)
        run._note(2, {}, run.step(batch), batch)
    finally:
        sys.setprofile(None)
    method = METHOD_FILES & {name.removesuffix(".py").split("/")[0] for name in walked}
    others = {name for name in walked if name.removesuffix(".py").split("/")[0] not in METHOD_FILES}
    assert {"losses", "normalizers"} <= method
    assert {f"training/{task}.py", "training/trainer.py", "training/run_log.py", "data/batches.py"} <= others
    assert len(others) <= most, sorted(others)


# what a step updates


def test_training_changes_the_student_and_never_the_teacher(tmp_path):
    run = prepared_run(tiny("both"), tmp_path)
    student, teacher = copied(run.student), copied(run.teacher)
    run.execute()
    assert not equal(copied(run.student), student)
    assert equal(copied(run.teacher), teacher), "weights or batch-norm statistics of the teacher moved"
    assert not run.teacher.training
    assert all(parameter.grad is None for parameter in run.teacher.parameters())


def test_every_student_parameter_belongs_to_one_group_and_heads_learn_ten_times_as_fast(tmp_path):
    run = prepared_run(tiny("apd"), tmp_path)
    backbone, heads = run.optimisers["student"].param_groups
    apd = run.distillers["apd"]
    expected_heads = [*run.student.head_parameters(), *apd.student_head.parameters()]
    assert {id(p) for p in backbone["params"]} == {id(p) for p in run.student.backbone.parameters()}
    assert {id(p) for p in heads["params"]} == {id(p) for p in expected_heads}
    everything = [*run.student.parameters(), *apd.student_head.parameters()]
    assert len(backbone["params"]) + len(heads["params"]) == len(everything)
    assert heads["base_rate"] == 10 * backbone["base_rate"] == 10 * 0.01
    (teacher_head,) = run.optimisers["teacher_heads"].param_groups
    assert {id(p) for p in teacher_head["params"]} == {id(p) for p in apd.teacher_head.parameters()}
    assert (teacher_head["lr"], teacher_head["betas"]) == (1e-3, (0.9, 0.99))


def test_the_teachers_head_moves_by_its_own_optimiser_only(tmp_path):
    run = prepared_run(tiny("apd"), tmp_path)
    head = run.distillers["apd"].teacher_head
    start, student = copied(head), copied(run.student)
    run.optimisers["teacher_heads"].step = lambda: None
    run.step(a_batch(run))
    assert equal(copied(head), start)
    assert not equal(copied(run.student), student)
    del run.optimisers["teacher_heads"].step
    run.optimisers["student"].step = lambda: None
    student = copied_parameters(run.student)
    run.step(a_batch(run))
    assert not equal(copied(head), start)
    assert equal(copied_parameters(run.student), student)


def copied_parameters(module):
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def a_batch(run, images=None):
    random = torch.Generator().manual_seed(5)
    images = torch.rand(2, 3, 32, 32, generator=random) if images is None else images
    return Batch(images, torch.randint(0, 10, (2, 32, 32), generator=random))


def test_a_step_is_plain_sgd_on_the_sum_of_the_terms(tmp_path):
    """One step of the loop against the gradient of its own formula, taken apart."""
    run = prepared_run(tiny("pixel_kd"), tmp_path)
    batch, training = a_batch(run), run.experiment.training
    twin = build_network(run.experiment.network, 10, CPU, seed=0).train()
    torch.manual_seed(3)
    output = twin(batch.images_B3HW)
    up = [
        nn.functional.interpolate(z, (32, 32), mode="bilinear", align_corners=True) for z in (output.logits, output.aux)
    ]
    task, auxiliary = (nn.functional.cross_entropy(z, batch.labels_BHW) for z in up)
    teacher = run.teacher(batch.images_B3HW).logits
    kd = (teacher.softmax(1) * (teacher.log_softmax(1) - output.logits.log_softmax(1))).sum(1).mean()
    (task + 0.4 * auxiliary + kd).backward()
    torch.manual_seed(3)
    run.student.train()
    terms = run.step(batch)
    torch.testing.assert_close(
        [terms["task"], terms["auxiliary"], terms["pixel_kd.pixel_kd"]],
        [task.detach(), auxiliary.detach(), kd.detach()],
    )
    rates = {id(p): training.learning_rate for p in run.student.backbone_parameters()}
    for (name, ours), theirs in zip(run.student.named_parameters(), twin.parameters(), strict=True):
        rate = rates.get(id(ours), run.optimisers["student"].param_groups[1]["lr"])
        expected = theirs - rate * (theirs.grad + training.weight_decay * theirs)
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(("weight", "there"), [(0.4, True), (0.0, False)])
def test_the_auxiliary_term_is_there_just_when_it_has_a_weight(tmp_path, weight, there):
    run = prepared_run(tiny(auxiliary_weight=weight), tmp_path)
    assert ("auxiliary" in run.step(a_batch(run))) == there


@pytest.mark.parametrize("method", ["student", "apd"])
def test_gradients_of_the_student_and_its_heads_are_clipped_together_to_the_norm_asked_for(tmp_path, method):
    norms = {}
    for clip in (None, 0.01):
        run = prepared_run(tiny(method, clip_norm=clip), tmp_path)
        run.step(a_batch(run))
        trained = [*run.student.parameters(), *(p for d in run.distillers.values() for p in d.student_parameters())]
        norms[clip] = torch.stack([p.grad.norm() for p in trained if p.grad is not None]).norm()
    assert norms[0.01] == pytest.approx(0.01, rel=1e-3)
    assert norms[None] > 0.1


def test_channels_last_is_kept_from_the_first_step_to_the_last(tmp_path):
    run = prepared_run(tiny("apd"), tmp_path)
    seen = []
    run.student.head.merge.register_forward_hook(lambda _module, _inputs, out: seen.append(out))
    run.execute()
    spatial = [p for net in (run.student, run.teacher) for p in net.parameters() if p.ndim == 4 and p.shape[-1] > 1]
    assert len(spatial) > 4
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in spatial)
    assert all(features.is_contiguous(memory_format=torch.channels_last) for features in seen)


def test_bf16_is_autocast_around_the_networks_and_kept_out_of_the_losses(tmp_path):
    run = prepared_run(replace(tiny("apd"), precision="bf16"), tmp_path)
    seen = []
    run.student.classifier.register_forward_hook(lambda _module, _inputs, out: seen.append(out.dtype))
    terms = run.step(a_batch(run))
    assert seen == [torch.bfloat16]
    assert {value.dtype for value in terms.values()} == {torch.float32}
    assert {p.dtype for p in run.student.parameters()} == {torch.float32}
    assert all(math.isfinite(value) for value in terms.values())


# the average of weights


def test_with_an_average_its_network_is_scored_and_saved(runs):
    experiment = tiny(ema_decay=0.75)
    runs_student = []

    class Seen(loop.TrainStep):
        def __call__(self, batch):
            terms = super().__call__(batch)
            runs_student.append(copied(self.student))
            return terms

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "TrainStep", Seen)
        train(experiment)
    expected = runs_student[0]
    for state in runs_student[1:]:
        expected = {
            name: 0.75 * value + 0.25 * state[name] if value.is_floating_point() else value
            for name, value in expected.items()
        }
    saved = load_file(run_folder(experiment) / "weights.safetensors")
    for name, value in expected.items():
        if value.is_floating_point():
            torch.testing.assert_close(saved[name], value, rtol=1e-5, atol=1e-6)
    assert not equal(saved, runs_student[-1])


# rates


@pytest.mark.parametrize("schedule", ["constant", "poly"])
def test_rates_follow_the_poly_schedule_and_the_teachers_head_keeps_its_own_unless_told_to_follow(tmp_path, schedule):
    experiment = tiny("apd", power=0.5, iterations=8, learning_rate=0.02)
    distiller = replace(experiment.distillers[0], teacher_head_schedule=schedule)
    run = prepared_run(replace(experiment, distillers=(distiller,)), tmp_path)
    seen = []

    def note(_optimiser, *_):
        seen.append(
            [group["lr"] for name in ("student", "teacher_heads") for group in run.optimisers[name].param_groups]
        )

    run.optimisers["student"].register_step_pre_hook(note)
    run.execute()
    assert len(seen) == 8
    for step, (backbone, heads, teacher_head) in enumerate(seen):
        assert backbone == pytest.approx(0.02 * (1 - step / 8) ** 0.5, rel=1e-12)
        assert heads == pytest.approx(10 * backbone, rel=1e-12)
        assert teacher_head == (1e-3 if schedule == "constant" else pytest.approx(1e-3 * (1 - step / 8) ** 0.5))
    assert [line["learning_rate"] for line in run.log.read()] == pytest.approx([rates[0] for rates in seen])


# the task's loss


def test_the_tasks_loss_is_the_mean_over_valid_pixels():
    torch.manual_seed(1)
    logits, labels = torch.randn(2, 5, 4, 4), torch.randint(0, 5, (2, 4, 4))
    labels[:, :2] = 255
    terms = [
        -logits[b, :, y, x].log_softmax(0)[labels[b, y, x]] for b in range(2) for y in range(2, 4) for x in range(4)
    ]
    torch.testing.assert_close(task_loss(logits, labels, 255), torch.stack(terms).mean())


def test_the_tasks_loss_without_a_valid_pixel_is_a_connected_zero():
    logits = torch.randn(2, 5, 4, 4, requires_grad=True)
    loss = task_loss(logits, torch.full((2, 8, 8), 255), 255)
    loss.backward()
    assert loss == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("label", [5, 17, -1])
def test_a_label_outside_the_classes_is_an_error_and_no_silent_number(tmp_path, label):
    labels = torch.zeros(2, 8, 8, dtype=torch.int64)
    labels[1, 2, 3] = label
    with pytest.raises((IndexError, RuntimeError), match=str(label)):
        task_loss(torch.randn(2, 5, 4, 4), labels, 255)


# seeds


def test_a_seed_decides_everything_and_another_seed_changes_it(runs, monkeypatch):
    one = train(tiny("apd"))
    first = outcome(tiny("apd"))
    monkeypatch.setenv("APD_RUNS", str(runs / "again"))
    train(tiny("apd"))
    assert outcome(tiny("apd")) == first
    other = train(tiny("apd", seed=1))
    assert outcome(tiny("apd", seed=1))["weights"] != first["weights"]
    assert other.content["data"] == one.content["data"], "the seed of an experiment never changes its data"
    assert other.content["teacher"]["confusion"] == one.content["teacher"]["confusion"]


def test_methods_share_initial_weights_and_the_order_of_images_for_one_seed(tmp_path):
    runs = {method: prepared_run(tiny(method, seed=4), tmp_path / method) for method in ("student", "pixel_kd", "apd")}
    states = [copied(run.student) for run in runs.values()]
    assert equal(states[0], states[1])
    assert equal(states[0], states[2])
    for run in runs.values():
        run.execute()
    first = [run.log.read()[0] for run in runs.values()]
    assert first[0]["task"] == first[1]["task"] == first[2]["task"]
    last = [run.log.read()[-1]["task"] for run in runs.values()]
    assert len(set(last)) == 3
    assert not equal(states[0], copied(prepared_run(tiny(seed=5), tmp_path / "other").student))


def test_making_networks_leaves_the_random_state_alone():
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    build_network(tiny().network, 10, CPU, seed=1)
    assert torch.equal(torch.rand(3), expected)


# the log and its curves


def test_every_step_is_logged_once_with_every_term(runs):
    train(tiny("both"))
    lines = log_of(tiny("both"))
    assert [line["step"] for line in lines] == list(range(6))
    terms = {"task", "auxiliary", "pixel_kd.pixel_kd", "apd.regularisation", "apd.alignment", "apd.observation", "loss"}
    assert all(set(line) == {"step", "seconds", "core_seconds", "learning_rate"} | terms for line in lines)
    for line in lines:
        apd = line["apd.regularisation"] + 10 * line["apd.alignment"] + line["apd.observation"]
        total = line["task"] + 0.4 * line["auxiliary"] + line["pixel_kd.pixel_kd"] + apd
        assert line["loss"] == pytest.approx(total, rel=1e-5)


def test_curves_are_means_over_equal_stretches_of_steps(tmp_path):
    log = RunLog(tmp_path / "log.jsonl")
    log.start_over(0)
    for step in range(250):
        taken = {"seconds": 1.0 if step == 0 else 0.25, "core_seconds": 0.5 if step == 0 else 0.125}
        log.write({"step": step, **taken, "loss": float(step)})
    summary = log.summary()
    curves = summary["curves"]
    assert summary["core_seconds_per_iteration"] == 0.125
    assert summary["seconds_per_iteration"] == 0.25  # a median: the first step, with its warming up, does not count
    assert len(curves["iteration"]) == len(curves["loss"]) == 84 <= CURVE_POINTS
    assert (curves["iteration"][:2], curves["iteration"][-1]) == ([3, 6], 250)
    assert (curves["loss"][:2], curves["loss"][-1]) == ([1.0, 4.0], 249.0)


def test_a_resumed_log_keeps_the_lines_of_its_checkpoint_and_drops_later_ones(tmp_path):
    log = RunLog(tmp_path / "log.jsonl")
    log.start_over(0)
    for step in range(4):
        log.write({"step": step})
    with log.path.open("a") as file:
        file.write('{"step": 4, "se')  # a full disk, or a kill in the middle of a line
    again = RunLog(log.path)
    again.start_over(2)
    again.write({"step": 2})
    assert [line["step"] for line in again.read()] == [0, 1, 2]
    assert again.lines == 3


def test_evaluations_on_the_way_come_at_equal_distances_and_at_the_end(runs):
    record = train(tiny(iterations=7, evaluations=3))
    assert [entry["step"] for entry in record.content["evaluations"]] == [2, 4, 7]
    assert record.content["evaluations"][-1]["confusion"] == record.content["confusion"]
    assert train(tiny(evaluations=0)).content["evaluations"] == []


def test_final_scores_are_those_of_the_split_that_the_experiment_names(runs):
    experiment = replace(tiny(), data=replace(tiny().data, evaluation_split="test"))
    content = train(experiment).content
    assert content["data"]["split"] == "test"
    assert content["evaluations"][-1]["split"] == "val"
    assert content["evaluations"][-1]["confusion"] != content["confusion"]


# the teacher


def test_students_share_one_teacher_that_is_trained_once(runs, capsys):
    kd, apd = train(tiny("pixel_kd")), train(tiny("apd", seed=1))
    teachers = [path for path in runs.iterdir() if path.name.startswith("scenes-teacher")]
    assert len(teachers) == 1
    assert json.loads((teachers[0] / "record.json").read_text())["confusion"] == kd.content["teacher"]["confusion"]
    assert kd.content["teacher"]["confusion"] == apd.content["teacher"]["confusion"]
    told = f"teacher mIoU {kd.teacher_scores.miou:.4f} on val"
    assert capsys.readouterr().out.splitlines() == [f"pixel_kd-seed0: {told}", f"apd-seed1: {told}"]


def test_a_teacher_may_come_from_a_file(runs):
    train(tiny("apd"))
    file = run_folder(tiny("apd").teacher_experiment()) / "weights.safetensors"
    experiment = replace(tiny("apd"), teacher=replace(TEACHER, weights_file=str(file)))
    train(experiment)
    given, trained = outcome(experiment), outcome(tiny("apd"))
    assert given.pop("fingerprint") != trained.pop("fingerprint")
    assert given == trained


def test_a_teacher_is_loaded_strictly_frozen_and_in_eval_mode(runs):
    experiment = tiny("apd")
    train(experiment.teacher_experiment())
    path = run_folder(experiment.teacher_experiment()) / "weights.safetensors"
    teacher = load_teacher(task_of(experiment), path, 10, CPU)
    assert equal(copied(teacher), load_file(path))
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_the_network_of_a_run_comes_back_as_it_was_scored(runs):
    train(tiny())
    for given in (tiny(), run_folder(tiny())):
        model = trained_network(given)
        assert not model.training
        assert equal(copied(model), load_file(run_folder(tiny()) / "weights.safetensors"))


def test_weights_are_given_only_when_they_are_those_of_the_record(runs):
    with pytest.raises(CheckpointError, match="this run has not finished"):
        trained_network(tiny())
    train(tiny())
    before = digest(run_folder(tiny()) / "weights.safetensors")
    path = run_folder(tiny()) / "weights.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-4] + b"\0\0\0\1")
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is missing or damaged; delete .*record\.json"):
        trained_network(tiny())
    (run_folder(tiny()) / "record.json").unlink()
    train(tiny())
    assert digest(path) == before


def test_apd_without_heads_trains_and_has_no_second_optimiser(tmp_path):
    headless = APDConfig(width=None, regularisation=0)
    experiment = replace(tiny("apd"), distillers=(headless,), teacher=replace(TEACHER, network=tiny().network))
    run = prepared_run(experiment, tmp_path)
    run.execute()
    assert set(run.optimisers) == {"student"}
    assert {"apd.alignment", "apd.observation", "apd.pixel_kd"} < set(run.log.read()[-1])


def test_a_network_that_cannot_be_built_is_an_error_of_the_experiment(runs):
    unknown = replace(tiny(), network=replace(tiny().network, backbone="test_eficientnet"))
    with pytest.raises(ExperimentError, match=r"this network cannot be built: backbone: .*test_efficientnet"):
        train(unknown)


def test_a_device_that_is_not_there_is_an_error_before_anything_is_written(runs):
    for device in ("gpu", "cuda:99", "meta"):
        with pytest.raises(ExperimentError, match=f"device = '{device}': expected cpu, or cuda where there is a GPU"):
            train(tiny(), device=device)
    assert not runs.exists()


# numbers that are none


def poison(original, step):
    """`TrainStep` with an infinity put into the student's last layer before a step: its terms become NaN."""

    def poisoned(self, batch):
        if len(self.seen) == step:
            with torch.no_grad():
                self.student.classifier.bias[0] = math.inf
        self.seen.append(batch)
        return original(self, batch)

    return poisoned


@pytest.mark.parametrize("method", ["student", "apd"])
def test_a_loss_that_is_no_number_stops_the_run_names_the_term_and_keeps_batch_and_checkpoint(
    runs, monkeypatch, method
):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(loop.TrainStep, "seen", [], raising=False)
    if method == "apd":
        train(tiny("apd").teacher_experiment())
    loop.TrainStep.seen.clear()
    monkeypatch.setattr(loop.TrainStep, "__call__", poison(loop.TrainStep.__call__, 3))
    with pytest.raises(NonFiniteLossError) as caught:
        train(tiny(method))
    told = str(caught.value)
    assert told.startswith("step 3: task = ")
    assert "Lower --training.learning-rate, set --training.clip-norm or use --precision fp32" in told
    assert ("apd.pixel_kd = " in told) == (method == "apd")
    folder = run_folder(tiny(method))
    batch = load_file(folder / "non-finite-batch.safetensors")
    assert str(folder / "non-finite-batch.safetensors") in told
    assert torch.equal(batch["images_B3HW"], loop.TrainStep.seen[3].images_B3HW)
    assert torch.equal(batch["labels_BHW"], loop.TrainStep.seen[3].labels_BHW)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-00000002", "step-00000003"]
    assert not (folder / "record.json").exists()
    monkeypatch.undo()
    monkeypatch.setenv("APD_RUNS", str(runs))
    healthy = train(tiny(method))
    assert [line["step"] for line in log_of(tiny(method))] == list(range(6))
    assert healthy.content["curves"]["iteration"] == [1, 2, 3, 4, 5, 6]


def test_a_loss_that_is_no_number_is_told_even_where_its_batch_cannot_be_saved(runs, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("apd.training.run_log.save_file", full)
    monkeypatch.setattr(loop.TrainStep, "seen", [], raising=False)
    monkeypatch.setattr(loop.TrainStep, "__call__", poison(loop.TrainStep.__call__, 0))
    with pytest.raises(NonFiniteLossError, match=r"task = nan.*the batch could not be saved in .*No space left"):
        train(tiny())


def test_the_distiller_of_a_run_comes_back_with_the_heads_it_had_trained(runs):
    train(tiny("both"))
    student = trained_network(tiny("both"))
    teacher = trained_network(tiny("both").teacher_experiment())
    distiller = trained_distiller(tiny("both"), student, teacher)
    checkpoint = load_file(run_folder(tiny("both")) / "checkpoints" / "step-00000006" / "state.safetensors")
    trained = copied(distiller)
    assert not distiller.training
    assert {f"distillers.apd.{name}" for name in trained} == {name for name in checkpoint if ".apd." in name}
    assert all(torch.equal(value, checkpoint[f"distillers.apd.{name}"]) for name, value in trained.items())
    fresh = copied(prepared_run(tiny("both"), runs / "fresh").distillers["apd"])
    assert not any(torch.equal(trained[name], fresh[name]) for name in fresh if name.endswith("weight"))


def test_a_distiller_that_a_run_does_not_have_is_told(runs):
    network = build_network(tiny().network, 10, CPU, seed=0)
    with pytest.raises(CheckpointError, match="'student-seed0' has no distiller 'apd': it has none at all"):
        trained_distiller(tiny(), network, network)
    with pytest.raises(CheckpointError, match=r"holds no whole checkpoint of the last step; delete .*apd-seed0-"):
        trained_distiller(tiny("apd"), network, network)


def test_a_finished_run_of_another_generator_of_scenes_is_refused(runs, monkeypatch):
    train(tiny())
    monkeypatch.setattr("apd.data.scenes.GENERATOR_VERSION", 0)
    with pytest.raises(CheckpointError, match="scenes of another version of their generator: delete the folder"):
        train(tiny())
