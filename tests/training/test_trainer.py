"""A training step: what it walks through, what it updates and leaves alone, and what its switches change."""

import inspect
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_detection import prepared, small
from small_experiments import copied, equal, prepared_run, tiny
from torch import nn

from apd.config.experiment import ExperimentError, TrainingConfig
from apd.data.batches import Batch
from apd.training import trainer as loop
from apd.training.run import run_folder, train
from apd.training.run_log import NonFiniteLossError
from apd.training.segmentation import build_network, task_loss
from apd.training.trainer import CapturedStep, TrainStep

CPU = torch.device("cpu")
METHOD = {"perspective", "fused", "losses", "normalizers", "distill", "distillers", "hooks", "validation"}
PREPARED = {"segmentation": lambda folder: prepared_run(tiny("apd"), folder)}
PREPARED["detection"] = lambda folder: prepared(small("roi_apd"), folder)


def a_batch(size=2):
    random = torch.Generator().manual_seed(5)
    return Batch(torch.rand(size, 3, 32, 32, generator=random), torch.randint(0, 10, (size, 32, 32), generator=random))


# one step on one screen


@pytest.mark.parametrize(("task", "most", "most_in_all"), [("segmentation", 11, 17), ("detection", 12, 19)])
def test_one_batch_from_disk_to_the_log_walks_through_few_files(tmp_path, task, most, most_in_all):
    """`most` are those beside the method: its losses, their normalisers, heads, checks and the hooks that feed them."""
    run = PREPARED[task](tmp_path)
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
        run.set_learning_rates(2)
        run._note(2, {}, run.step(batch), batch)
    finally:
        sys.setprofile(None)
    others = {name for name in walked if name.removesuffix(".py").split("/")[0] not in METHOD}
    assert {f"training/{task}.py", "training/trainer.py", "training/run_log.py", "data/batches.py"} <= others
    assert {"losses.py", "normalizers.py"} <= walked
    assert len(others) <= most, sorted(others)
    assert len(walked) <= most_in_all, sorted(walked)


def test_the_step_reads_on_one_screen():
    """Forward of both networks, losses, backward, accumulation, optimisers and averaging."""
    methods = (TrainStep.__call__, TrainStep.gradients, TrainStep._global_counts)
    first, last = methods[0].__code__.co_firstlineno, methods[-1].__code__.co_firstlineno
    assert last + len(inspect.getsource(methods[-1]).splitlines()) - first <= 60
    assert all(first <= method.__code__.co_firstlineno <= last for method in methods)


# what a step updates


@pytest.mark.parametrize("task", PREPARED)
def test_training_changes_the_student_and_never_the_teacher(tmp_path, task):
    run = PREPARED[task](tmp_path)
    student, teacher = copied(run.student), copied(run.teacher)
    run.execute()
    assert not equal(copied(run.student), student)
    assert equal(copied(run.teacher), teacher), "weights or batch-norm statistics of the teacher moved"
    assert not run.teacher.training
    assert all(parameter.grad is None for parameter in run.teacher.parameters())
    assert not {id(module) for module in run.task.modules()} & {id(module) for module in run.teacher.modules()}


@pytest.mark.parametrize("task", PREPARED)
def test_every_trained_parameter_belongs_to_one_group_and_heads_learn_faster(tmp_path, task):
    run = PREPARED[task](tmp_path)
    backbone, heads = run.optimisers["student"].param_groups
    (teachers,) = run.optimisers["teacher_heads"].param_groups
    body = run.student.backbone if task == "segmentation" else run.student.backbone.body
    assert {id(p) for p in backbone["params"]} == {id(p) for p in body.parameters()}
    assert heads["base_rate"] == run.experiment.training.head_multiplier * backbone["base_rate"]
    (distiller,) = run.distillers.values()
    assert {id(p) for p in teachers["params"]} == {id(p) for p in distiller.teacher_head.parameters()}
    assert (teachers["lr"], teachers["betas"]) == (1e-3, (0.9, 0.99))
    everything = [p for p in (*run.student.parameters(), *run.distillers.parameters()) if p.requires_grad]
    grouped = [p for group in (backbone, heads, teachers) for p in group["params"]]
    assert len(grouped) == len(everything)
    assert {id(p) for p in grouped} == {id(p) for p in everything}


def test_the_teachers_head_moves_by_its_own_optimiser_only(tmp_path):
    run = prepared_run(tiny("apd"), tmp_path)
    head = run.distillers["apd"].teacher_head

    def moved(held):
        run.optimisers[held].step = lambda: None
        start = copied(head), [p.detach().clone() for p in run.student.parameters()]
        run.step(a_batch())
        del run.optimisers[held].step
        return not equal(copied(head), start[0]), not all(map(torch.equal, run.student.parameters(), start[1]))

    assert moved("teacher_heads") == (False, True)
    assert moved("student") == (True, False)


def test_a_step_is_plain_sgd_on_the_sum_of_the_terms(tmp_path):
    """One step of the loop against the gradient of its own formula, taken apart."""
    run = prepared_run(tiny("pixel_kd"), tmp_path)
    batch, training = a_batch(), run.experiment.training
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
    found = [terms["task"], terms["auxiliary"], terms["pixel_kd.pixel_kd"]]
    torch.testing.assert_close(found, [task.detach(), auxiliary.detach(), kd.detach()])
    backbone = {id(p) for p in run.student.backbone_parameters()}
    for (name, ours), theirs in zip(run.student.named_parameters(), twin.parameters(), strict=True):
        rate = training.learning_rate if id(ours) in backbone else run.optimisers["student"].param_groups[1]["lr"]
        expected = theirs - rate * (theirs.grad + training.weight_decay * theirs)
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


def test_with_an_average_its_network_is_scored_and_saved(runs, monkeypatch):
    experiment, states = tiny(ema_decay=0.75), []

    class Seen(TrainStep):
        def __call__(self, batch):
            terms = super().__call__(batch)
            states.append(copied(self.student))
            return terms

    monkeypatch.setattr(loop, "TrainStep", Seen)
    train(experiment)
    expected = states[0]
    for state in states[1:]:
        expected = {name: 0.75 * value + 0.25 * state[name] for name, value in expected.items()}
    saved = load_file(run_folder(experiment) / "weights.safetensors")
    for name, value in expected.items():
        if states[0][name].is_floating_point():
            torch.testing.assert_close(saved[name], value, rtol=1e-5, atol=1e-6)
    assert not equal(saved, states[-1])


# the task's loss


def test_the_tasks_loss_is_the_mean_over_valid_pixels_and_a_connected_zero_without_one():
    torch.manual_seed(1)
    logits, labels = torch.randn(2, 5, 4, 4, requires_grad=True), torch.randint(0, 5, (2, 4, 4))
    labels[:, :2] = 255
    valid = [(b, y, x) for b in range(2) for y in range(2, 4) for x in range(4)]
    terms = [-logits[b, :, y, x].log_softmax(0)[labels[b, y, x]] for b, y, x in valid]
    torch.testing.assert_close(task_loss(logits, labels, 255), torch.stack(terms).mean())
    loss = task_loss(logits, torch.full((2, 8, 8), 255), 255)
    loss.backward()
    assert loss == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("label", [5, 17, -1])
def test_a_label_outside_the_classes_is_an_error_and_no_silent_number(label):
    labels = torch.zeros(2, 8, 8, dtype=torch.int64)
    labels[1, 2, 3] = label
    with pytest.raises((IndexError, RuntimeError), match=str(label)):
        task_loss(torch.randn(2, 5, 4, 4), labels, 255)


# numbers that are none


def poison(monkeypatch, step, change):
    """`TrainStep` with its student changed before a step; the batches it has seen are returned."""
    original, seen = TrainStep.__call__, []

    def poisoned(self, batch):
        if len(seen) == step:
            with torch.no_grad():
                change(self.student)
        seen.append(batch)
        return original(self, batch)

    monkeypatch.setattr(TrainStep, "__call__", poisoned)
    return seen


def set_infinite(student):
    student.classifier.bias[0] = math.inf


def test_a_loss_that_is_no_number_stops_the_run_names_the_term_and_keeps_batch_and_checkpoint(runs, monkeypatch):
    train(tiny("apd").teacher_experiment())
    with monkeypatch.context() as patch:
        patch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
        seen = poison(patch, 3, set_infinite)
        with pytest.raises(NonFiniteLossError) as caught:
            train(tiny("apd"))
    message, folder = str(caught.value), run_folder(tiny("apd"))
    assert message.startswith("step 3: task = ")
    assert "apd.pixel_kd = " in message
    assert "Lower --training.learning-rate, set --training.clip-norm or use --precision fp32" in message
    assert str(folder / "non-finite-batch.safetensors") in message
    batch = load_file(folder / "non-finite-batch.safetensors")
    assert equal(batch, seen[3]._asdict())
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-00000002", "step-00000003"]
    assert not (folder / "record.json").exists()
    assert train(tiny("apd")).content["curves"]["iteration"] == [1, 2, 3, 4, 5, 6]
    assert [json.loads(line)["step"] for line in (folder / "log.jsonl").open()] == list(range(6))


def test_a_detectors_batch_is_kept_too_and_the_loss_reported_even_where_the_disk_refuses_it(runs, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    def change(student):
        student.roi_heads.box_predictor.cls_score.bias[0] = math.inf

    seen = poison(monkeypatch, 0, change)
    with pytest.raises(NonFiniteLossError, match=r"step 0: loss_classifier = (nan|inf)"):
        train(small())
    assert equal(load_file(run_folder(small()) / "non-finite-batch.safetensors"), seen[0].by_name())
    monkeypatch.setattr("apd.training.run_log.save_file", full)
    seen.clear()
    with pytest.raises(NonFiniteLossError, match=r"the batch could not be saved in .*No space left"):
        train(small())


# switches


def after_a_step(folder, **training):
    run = prepared_run(tiny("apd", batch_size=4, **training), folder)
    run.student.train()
    torch.manual_seed(4)
    run.terms = run.step(a_batch(4))
    return run


@pytest.mark.parametrize("switch", [{"fused": True}, {"channels_last": False}, {"pinned_memory": True}])
def test_a_switch_changes_how_a_step_is_computed_and_not_what(switch, tmp_path):
    plain, switched = after_a_step(tmp_path / "a"), after_a_step(tmp_path / "b", **switch)
    torch.testing.assert_close(switched.terms, plain.terms, rtol=1e-4, atol=1e-6)
    before = prepared_run(tiny("apd", batch_size=4), tmp_path / "c").student.state_dict()
    for name, value in plain.student.named_parameters():
        moved = (value - before[name]).norm()
        assert (switched.student.state_dict()[name] - value).norm() <= 0.02 * moved + 1e-7, name


@pytest.mark.parametrize(("last", "layout"), [(True, torch.channels_last), (False, torch.contiguous_format)])
def test_the_layout_of_memory_asked_for_is_kept_and_fused_optimisers_are_fused(tmp_path, last, layout):
    run = after_a_step(tmp_path, fused=True, channels_last=last)
    assert all(optimiser.defaults["fused"] for optimiser in run.optimisers.values())
    spatial = [p for net in (run.student, run.teacher) for p in net.parameters() if p.ndim == 4 and p.shape[-1] > 1]
    assert len(spatial) > 4
    assert all(p.is_contiguous(memory_format=layout) for p in spatial)
    assert last or not any(p.is_contiguous(memory_format=torch.channels_last) for p in spatial if p.shape[1] > 1)


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
        def compiled(*arguments):
            calls.append(function.__self__)
            return function(*arguments)

        return compiled

    monkeypatch.setattr(torch, "compile", compiling)
    run = prepared_run(tiny("apd", compile=True, iterations=3, evaluations=1), tmp_path)
    run.execute()
    assert calls == [run.teacher, run.student] * 3
    assert "_orig_mod" not in "".join(run.student.state_dict())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 8, "accumulation": 3}, "accumulation = 3: expected "),
        ({"batch_size": 8, "accumulation": 8}, "accumulation = 8: expected "),
        ({"accumulation": 0}, "accumulation = 0: expected "),
        ({"cuda_graph": True, "compile": True}, "cuda_graph = True: expected False beside compile"),
        ({"cuda_graph": True, "accumulation": 2}, "cuda_graph = True: expected False beside compile"),
    ],
)
def test_switches_that_cannot_stand_together_are_refused(fields, message):
    with pytest.raises(ExperimentError, match=f"TrainingConfig.{message}"):
        TrainingConfig(**fields)


class Replayed:
    """What stands for a CUDA graph on a CPU: a replay computes anew, writes where the recording wrote, and no more."""

    def __init__(self, compute, batch, parameters):
        self.compute, self.batch, self.parameters = compute, batch, parameters
        kept = [p.detach().clone() for p in parameters]
        self.terms = compute(batch)
        self.gradients = [p.grad for p in parameters]
        assert all(map(torch.equal, parameters, kept)), "gradients only"

    def replay(self):
        for parameter in self.parameters:
            parameter.grad = None
        for name, value in self.compute(self.batch).items():
            self.terms[name].copy_(value)
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient.copy_(parameter.grad)


def test_a_recorded_step_is_replayed_on_new_batches_and_trains_as_one_that_is_not(tmp_path, monkeypatch):
    """The graph itself is a GPU's (tests/gpu); here it is what is done around it."""
    ends = []
    for recorded in (False, True):
        run = prepared_run(tiny("apd", clip_norm=1.0), tmp_path / str(recorded))
        if recorded:
            parameters = [p for o in run.optimisers.values() for g in o.param_groups for p in g["params"]]
            buffers = [b for module in (run.student, run.distillers) for b in module.buffers()]

            def record(step, parameters=parameters, buffers=buffers):
                kept, random = [b.clone() for b in buffers], torch.get_rng_state()
                graph = Replayed(step._compute, step._batch, parameters)
                for buffer, value in zip(buffers, kept, strict=True):
                    buffer.copy_(value)  # recording computes nothing
                torch.set_rng_state(random)
                return graph, graph.terms

            monkeypatch.setattr(CapturedStep, "_aside", lambda step, batch: step._compute(batch))
            monkeypatch.setattr(CapturedStep, "_record", record)
            run.step.captured = CapturedStep(run.step.gradients)
        run.execute()
        log = [{k: v for k, v in line.items() if "seconds" not in k} for line in run.log.read()]
        ends.append((log, copied(run.student)))
    assert run.step.captured.recorded
    assert ends[0][0] == ends[1][0]
    assert equal(ends[0][1], ends[1][1])
