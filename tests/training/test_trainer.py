"""A training step: files, updates, switches; and learning rates against PyTorch's schedules and published numbers."""

import inspect
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from small_detection import small
from small_experiments import a_batch, copied, equal, prepared_run, tiny
from torch import nn
from torch.optim.lr_scheduler import ChainedScheduler, LinearLR, MultiStepLR, PolynomialLR

from apd.config.experiment import TrainingConfig
from apd.study.recipes import lengthened
from apd.training import trainer as loop
from apd.training.run import run_folder, train
from apd.training.run_log import NonFiniteLossError, values_of
from apd.training.trainer import CapturedStep, TrainStep, learning_rate_factors

PACKAGE = Path(loop.__file__).parents[1]
EXPERIMENTS = {"segmentation": tiny("apd"), "detection": small("roi_apd")}


@pytest.mark.parametrize(("task", "most"), [("segmentation", 12), ("detection", 14)])
def test_one_batch_from_disk_to_the_log_walks_through_few_files(tmp_path, task, most):
    run, walked = prepared_run(EXPERIMENTS[task], tmp_path), set()
    batches = run.task.batches(run.splits.train, start=0, ranks=run.ranks, workers=0, device=run.device)

    def note(frame, event, _):
        file = Path(frame.f_code.co_filename)
        if event == "call" and file.is_relative_to(PACKAGE):
            walked.add(file.relative_to(PACKAGE).as_posix())

    for index in range(len(run.splits.train)):  # a scene is drawn once and kept
        run.splits.train[index]
    run.step(next(batches))  # what is imported or set up once is no part of a step
    sys.setprofile(note)
    try:
        batch = next(batches)
        run.set_learning_rates(2)
        run._note(2, {}, values_of(run.step(batch)), batch)
    finally:
        sys.setprofile(None)
    assert {f"training/{task}.py", "training/trainer.py", "training/run_log.py", "data/batches.py"} <= walked
    assert {"losses.py", "normalizers.py"} <= walked
    assert len(walked) <= most, sorted(walked)


def test_the_step_reads_on_one_screen():
    """Forward of both networks, losses, backward, accumulation, optimisers and averaging."""
    methods = (TrainStep.__call__, TrainStep.gradients, TrainStep._global_counts)
    first, last = methods[0].__code__.co_firstlineno, methods[-1].__code__.co_firstlineno
    assert last + len(inspect.getsource(methods[-1]).splitlines()) - first <= 60
    assert all(first <= method.__code__.co_firstlineno <= last for method in methods)


@pytest.mark.parametrize("task", EXPERIMENTS)
def test_a_run_trains_the_student_and_heads_that_learn_faster_in_one_group_each_and_never_the_teacher(tmp_path, task):
    def identities(parameters):
        return sorted(id(parameter) for parameter in parameters)

    run = prepared_run(EXPERIMENTS[task], tmp_path)
    backbone, heads = run.optimisers["student"].param_groups
    (teachers,) = run.optimisers["teacher_heads"].param_groups
    (distiller,) = run.distillers.values()
    body = run.student.backbone if task == "segmentation" else run.student.backbone.body
    assert identities(backbone["params"]) == identities(body.parameters())
    assert identities(teachers["params"]) == identities(distiller.teacher_head.parameters())
    assert heads["base_rate"] == run.experiment.training.head_multiplier * backbone["base_rate"]
    assert (teachers["lr"], teachers["betas"]) == (1e-3, (0.9, 0.99))
    everything = [p for p in (*run.student.parameters(), *run.distillers.parameters()) if p.requires_grad]
    assert identities(p for group in (backbone, heads, teachers) for p in group["params"]) == identities(everything)
    student, teacher = copied(run.student), copied(run.teacher)
    run.execute()
    assert not equal(copied(run.student), student)
    assert equal(copied(run.teacher), teacher), "weights or batch-norm statistics of the teacher moved"
    assert not run.teacher.training
    assert not {id(module) for module in run.task.modules()} & {id(module) for module in run.teacher.modules()}


def test_a_step_is_plain_sgd_on_the_sum_of_the_terms(tmp_path):
    run = prepared_run(tiny("pixel_kd"), tmp_path)
    before, decay = copied(run.student), run.experiment.training.weight_decay
    terms = run.step(a_batch())
    torch.testing.assert_close(terms["loss"], terms["task"] + 0.4 * terms["auxiliary"] + terms["pixel_kd.pixel_kd"])
    of_backbone = {id(p) for p in run.student.backbone_parameters()}
    backbone, heads = run.optimisers["student"].param_groups
    for name, ours in run.student.named_parameters():
        learning_rate = backbone["lr"] if id(ours) in of_backbone else heads["lr"]
        expected = before[name] - learning_rate * (ours.grad + decay * before[name])
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_gradients_of_the_student_and_its_heads_are_clipped_together_to_the_norm_asked_for(tmp_path):
    norms = {}
    for clip in (None, 0.01):
        run = prepared_run(tiny("apd", clip_norm=clip), tmp_path)
        run.step(a_batch())
        trained = [*run.student.parameters(), *(p for d in run.distillers.values() for p in d.student_parameters())]
        norms[clip] = torch.stack([p.grad.norm() for p in trained if p.grad is not None]).norm()
    assert norms[0.01] == pytest.approx(0.01, rel=1e-3)
    assert norms[None] > 0.1


def test_an_average_of_the_weights_has_the_decay_asked_for(tmp_path):
    run, states = prepared_run(tiny(ema_decay=0.75), tmp_path), []
    for _ in range(2):
        run.step(a_batch())
        states.append(copied(run.student))
    for name, found in copied(run.evaluated).items():
        if found.is_floating_point():
            expected = 0.75 * states[0][name] + 0.25 * states[1][name]
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def poison(monkeypatch, step, parameter_of):
    """`TrainStep` whose student has an infinite parameter from a step on; the batches it has seen are returned."""
    original, seen = TrainStep.__call__, []

    def poisoned(self, batch):
        if len(seen) == step:
            parameter_of(self.student).data[0] = math.inf
        seen.append(batch)
        return original(self, batch)

    monkeypatch.setattr(TrainStep, "__call__", poisoned)
    return seen


def test_a_loss_that_is_no_number_stops_the_run_names_the_term_and_keeps_batch_and_checkpoint(runs, monkeypatch):
    train(tiny("apd").teacher_experiment())
    with monkeypatch.context() as patch:
        patch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
        seen = poison(patch, 3, lambda student: student.classifier.bias)
        with pytest.raises(NonFiniteLossError, match=r"^step 3: task = .*apd\.pixel_kd = .*Lower --training") as caught:
            train(tiny("apd"))
    folder = run_folder(tiny("apd"))
    assert str(folder / "non-finite-batch.safetensors") in str(caught.value)
    assert equal(load_file(folder / "non-finite-batch.safetensors"), seen[3]._asdict())
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-00000002", "step-00000003"]
    assert not (folder / "record.json").exists()
    assert train(tiny("apd")).content["curves"]["iteration"] == [1, 2, 3, 4, 5, 6]


def test_a_detectors_batch_is_kept_too_and_the_loss_reported_even_where_the_disk_refuses_it(runs, monkeypatch):
    seen = poison(monkeypatch, 0, lambda student: student.roi_heads.box_predictor.cls_score.bias)
    with pytest.raises(NonFiniteLossError, match=r"step 0: loss_classifier = (nan|inf)"):
        train(small())
    kept = {f"images[{place}]": image for place, image in enumerate(seen[0].images)}
    kept |= {f"targets[{n}]['{name}']": v for n, target in enumerate(seen[0].targets) for name, v in target.items()}
    assert equal(load_file(run_folder(small()) / "non-finite-batch.safetensors"), kept)
    seen.clear()
    monkeypatch.setattr("apd.training.trainer.save_tensors", lambda *_: Path("/nowhere/at/all").touch())
    with pytest.raises(NonFiniteLossError, match=r"the batch could not be saved in .*No such file"):
        train(small())


@pytest.mark.parametrize("switch", [{"fused": True}, {"channels_last": False}, {"pinned_memory": True}])
def test_a_switch_changes_how_a_step_is_computed_and_not_what(switch, tmp_path):
    plain, switched = (prepared_run(tiny("apd", batch_size=4, **on), tmp_path / str(len(on))) for on in ({}, switch))
    before, terms = copied(plain.student), []
    for run in (plain, switched):
        torch.manual_seed(4)
        terms.append(run.step(a_batch(4)))
    torch.testing.assert_close(terms[0], terms[1], rtol=1e-4, atol=1e-6)
    for (name, value), other in zip(plain.student.named_parameters(), switched.student.parameters(), strict=True):
        assert (other - value).norm() <= 0.02 * (value - before[name]).norm() + 1e-7, name
    assert all(bool(o.defaults["fused"]) == ("fused" in switch) for o in switched.optimisers.values())
    layout = torch.channels_last if switch.get("channels_last", True) else torch.contiguous_format
    spatial = [p for p in switched.teacher.parameters() if p.ndim == 4 and p.shape[-1] > 1]
    assert all(p.is_contiguous(memory_format=layout) for p in spatial)


def test_bf16_is_autocast_around_the_networks_and_kept_out_of_the_losses(tmp_path):
    run = prepared_run(replace(tiny("apd"), precision="bf16"), tmp_path)
    seen = []
    run.student.classifier.register_forward_hook(lambda _module, _inputs, out: seen.append(out.dtype))
    terms = run.step(a_batch())
    assert seen == [torch.bfloat16]
    assert {value.dtype for value in terms.values()} == {p.dtype for p in run.student.parameters()} == {torch.float32}
    assert all(math.isfinite(value) for value in terms.values())


def test_student_and_teacher_are_compiled_for_steps_and_called_as_they_are_for_scores(tmp_path, monkeypatch):
    calls = []

    def compiling(function):
        return lambda *arguments: calls.append(function.__self__) or function(*arguments)

    monkeypatch.setattr(torch, "compile", compiling)
    run = prepared_run(tiny("apd", compile=True, iterations=3, evaluations=1), tmp_path)
    run.execute()
    assert calls == [run.teacher, run.student] * 3
    assert "_orig_mod" not in "".join(run.student.state_dict())


def test_a_recorded_step_is_replayed_on_new_batches_and_trains_as_one_that_is_not(tmp_path, monkeypatch):
    """The graph itself is a GPU's (tests/gpu); here it is what is done around it: a replay computes anew."""
    plain, recorded = (prepared_run(tiny("apd", clip_norm=1.0), tmp_path / name) for name in ("plain", "recorded"))
    parameters = [p for o in recorded.optimisers.values() for group in o.param_groups for p in group["params"]]

    def record(step):
        terms = {}

        def replay():
            for parameter in parameters:
                parameter.grad = None
            terms.update(step._compute(step._batch))

        return SimpleNamespace(replay=replay), terms

    monkeypatch.setattr(CapturedStep, "_aside", lambda step, batch: step._compute(batch))
    monkeypatch.setattr(CapturedStep, "_record", record)
    recorded.step.captured = CapturedStep(recorded.step.gradients)
    plain.execute()
    recorded.execute()
    assert recorded.step.captured.graph is not None
    assert [line["loss"] for line in recorded.log.read()] == [line["loss"] for line in plain.log.read()]
    assert equal(copied(recorded.student), copied(plain.student))


@pytest.mark.filterwarnings("ignore")  # an optimiser that makes no step is what is wanted here
@pytest.mark.parametrize("warmup", [0, 1, 2, 30])
@pytest.mark.parametrize("schedule", ["poly", "steps"])
def test_every_step_has_the_factor_of_pytorchs_own_schedulers_and_a_teachers_head_that_of_poly(schedule, warmup):
    optimisers = [torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0) for _ in range(2)]
    poly, steps = (PolynomialLR(optimiser, total_iters=40, power=0.7) for optimiser in optimisers)
    fields = {"power": 0.7}
    if schedule == "steps":
        fields = {"milestones": (10, 11, 35)}
        poly.power, steps = 0.9, MultiStepLR(optimisers[1], milestones=fields["milestones"], gamma=0.1)
    warm = LinearLR(optimisers[1], start_factor=1 / max(warmup, 1), total_iters=max(warmup - 1, 0))
    student = ChainedScheduler([steps, warm], optimisers[1])
    training = TrainingConfig(iterations=40, schedule=schedule, warmup=warmup, **fields)
    for step in range(40):
        expected = {"student": student.get_last_lr()[0], "teacher_heads": poly.get_last_lr()[0]}
        assert learning_rate_factors(training, step) == pytest.approx(expected, rel=1e-9)
        student.step()
        poly.step()


@pytest.mark.parametrize("schedule", ["constant", "poly"])
def test_a_run_follows_its_schedule_logs_it_and_the_teachers_head_follows_if_asked(tmp_path, schedule):
    experiment = tiny("apd", power=0.5, iterations=8, learning_rate=0.02)
    distiller = replace(experiment.distillers[0], teacher_head_schedule=schedule)
    run = prepared_run(replace(experiment, distillers=(distiller,)), tmp_path)
    groups, seen = [group for o in run.optimisers.values() for group in o.param_groups], []
    run.optimisers["student"].register_step_pre_hook(lambda *_: seen.append([group["lr"] for group in groups]))
    run.execute()
    assert len(seen) == 8
    for step, (backbone, heads, teacher_head) in enumerate(seen):
        assert backbone == pytest.approx(0.02 * (1 - step / 8) ** 0.5, rel=1e-12)
        assert heads == pytest.approx(10 * backbone, rel=1e-12)
        assert teacher_head == (1e-3 if schedule == "constant" else pytest.approx(1e-3 * (1 - step / 8) ** 0.5))
    assert [line["learning_rate"] for line in run.log.read()] == pytest.approx([of_groups[0] for of_groups in seen])


def test_adamw_is_pytorchs_with_decay_beside_the_gradient(tmp_path):
    run = prepared_run(tiny("apd", optimiser="adamw", weight_decay=0.05, learning_rate=0.002), tmp_path)
    student, heads = run.optimisers["student"], run.optimisers["teacher_heads"]
    assert (type(student), type(heads)) == (torch.optim.AdamW, torch.optim.Adam)
    assert (student.defaults["betas"], student.defaults["weight_decay"]) == ((0.9, 0.999), 0.05)
    assert [group["base_rate"] for group in student.param_groups] == pytest.approx([0.002, 0.02])


def test_a_lengthened_training_has_its_milestones_moved_along_and_its_warm_up_kept():
    start = tiny(iterations=90, schedule="steps", milestones=(60, 80), warmup=5)
    longer = lengthened(start, student=1.5, teacher=1).training
    assert (longer.iterations, longer.milestones, longer.warmup) == (135, (90, 120), 5)
