"""Switches of a training step: what they change, what they leave alone, and what they cost."""

from dataclasses import replace

import pytest
import torch
from small_experiments import prepared_run, tiny

from apd.config.experiment import ExperimentError, TrainingConfig
from apd.config.identity import fingerprint
from apd.cost import switches as switch_cost
from apd.cost.measure import Latency
from apd.cost.switches import other_settings, random_batch, switch_costs, switch_table
from apd.data.batches import Batch
from apd.training.cuda_graph import CapturedStep

CPU = torch.device("cpu")


def after_a_step(folder, **training):
    run = prepared_run(tiny("apd", batch_size=4, **training), folder)
    run.student.train()
    torch.manual_seed(4)
    random = torch.Generator().manual_seed(5)
    images = torch.rand(4, 3, 32, 32, generator=random)
    run.terms = run.step(Batch(images, torch.randint(0, 10, (4, 32, 32), generator=random)))
    return run


@pytest.mark.parametrize("switch", [{"fused": True}, {"channels_last": False}, {"pinned_memory": True}])
def test_a_switch_changes_how_a_step_is_computed_and_not_what(switch, tmp_path):
    plain, switched = after_a_step(tmp_path / "a"), after_a_step(tmp_path / "b", **switch)
    torch.testing.assert_close(switched.terms, plain.terms, rtol=1e-4, atol=1e-6)
    before = prepared_run(tiny("apd", batch_size=4), tmp_path / "c").student.state_dict()
    for name, value in plain.student.named_parameters():
        moved = (value - before[name]).norm()
        assert (switched.student.state_dict()[name] - value).norm() <= 0.02 * moved + 1e-7, name


def test_fused_optimisers_are_asked_for_and_channels_first_is_kept(tmp_path):
    run = after_a_step(tmp_path, fused=True, channels_last=False)
    assert all(optimiser.defaults["fused"] for optimiser in run.optimisers.values())
    spatial = [p for net in (run.student, run.teacher) for p in net.parameters() if p.ndim == 4 and p.shape[-1] > 1]
    assert len(spatial) > 4
    assert all(p.is_contiguous() for p in spatial)
    assert not any(p.is_contiguous(memory_format=torch.channels_last) for p in spatial if p.shape[1] > 1)


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


def test_a_part_of_an_accumulation_is_what_the_networks_see(tmp_path):
    run = prepared_run(tiny("apd", batch_size=6, accumulation=3), tmp_path)
    seen = []
    run.student.register_forward_hook(lambda net, inputs, _out: seen.append(len(inputs[0])) if net.training else None)
    run.execute()
    assert seen == [2] * 3 * run.experiment.training.iterations
    assert [line["step"] for line in run.log.read()] == list(range(run.experiment.training.iterations))


@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 3), (8, 8), (4, 0), (6, 4)])
def test_parts_must_be_equal_and_of_two_images_at_least(batch_size, accumulation):
    with pytest.raises(ExperimentError, match=f"TrainingConfig.accumulation = {accumulation}: expected "):
        TrainingConfig(batch_size=batch_size, accumulation=accumulation)


def test_switches_that_are_off_leave_every_fingerprint_as_it_was():
    assert fingerprint(tiny("apd")) == fingerprint(
        tiny("apd", accumulation=1, compile=False, channels_last=True, fused=False, pinned_memory=False)
    )
    assert fingerprint(tiny("apd")) != fingerprint(tiny("apd", fused=True))


class Replayed:
    """What stands for a CUDA graph on a CPU: a replay computes anew, writes where the recording wrote, and no more."""

    def __init__(self, compute, batch, parameters):
        self.compute, self.batch, self.parameters = compute, batch, parameters
        kept = [p.detach().clone() for p in parameters]
        self.terms = compute(batch)
        self.gradients = [p.grad for p in parameters]
        for parameter, value in zip(parameters, kept, strict=True):
            assert torch.equal(parameter, value), "gradients only"

    def replay(self):
        for parameter in self.parameters:
            parameter.grad = None
        terms = self.compute(self.batch)
        for name, value in terms.items():
            self.terms[name].copy_(value)
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient.copy_(parameter.grad)


def test_a_recorded_step_is_replayed_on_new_batches_and_trains_as_one_that_is_not(tmp_path, monkeypatch):
    """The graph itself is a GPU's (tests/gpu); here it is what is done around it."""
    ends, logs = [], []
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
        ends.append(run.student.state_dict())
        logs.append([{k: v for k, v in line.items() if "seconds" not in k} for line in run.log.read()])
    assert run.step.captured.recorded
    assert logs[0] == logs[1]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


@pytest.mark.parametrize("beside", [{"compile": True}, {"accumulation": 2}])
def test_a_recording_is_one_whole_step_that_is_not_compiled(beside):
    with pytest.raises(ExperimentError, match=r"TrainingConfig.cuda_graph = True: expected False beside compile"):
        TrainingConfig(cuda_graph=True, **beside)


# what they cost


def test_each_switch_is_turned_once_and_alone():
    experiment = tiny("apd", batch_size=4)
    names = [name for name, _ in other_settings(experiment, CPU)]
    assert names == [
        "as it is",
        "precision = bf16",
        "channels_last = False",
        "fused = True",
        "compile = True",
        "accumulation = 2",
    ]
    for name, changed in list(other_settings(experiment, CPU))[1:]:
        field, value = name.split(" = ")
        owner = changed if field == "precision" else changed.training
        assert str(getattr(owner, field)) == value
        back = {field: getattr(experiment if field == "precision" else experiment.training, field)}
        undone = (
            replace(changed, **back)
            if field == "precision"
            else replace(changed, training=replace(changed.training, **back))
        )
        assert undone == experiment
    on_a_gpu = [name for name, _ in other_settings(experiment, torch.device("cuda"))]
    assert {"pinned_memory = True", "cuda_graph = True"} <= set(on_a_gpu)
    assert "accumulation = 1" in [name for name, _ in other_settings(tiny(batch_size=4, accumulation=2), CPU)]
    assert not any("accumulation" in name for name, _ in other_settings(tiny(batch_size=2), CPU))


def test_costs_are_measured_and_what_cannot_be_had_says_why(monkeypatch):
    def no_compiler(_function):
        raise RuntimeError("no compiler\nhere")

    monkeypatch.setattr(torch, "compile", no_compiler)
    costs = {cost.setting: cost for cost in switch_costs(tiny("apd", batch_size=4), CPU, warmup=1, repeats=2)}
    missing = costs.pop("compile = True")
    assert (missing.milliseconds, missing.reason) == (None, "RuntimeError: no compiler")
    assert len(costs) == 5
    for cost in costs.values():
        assert 0 < cost.milliseconds.lower <= cost.milliseconds.median <= cost.milliseconds.upper
        assert cost.reason == ""


def test_the_table_tells_seconds_and_factors(monkeypatch):
    made = iter([Latency(90.0, 100.0, 110.0), Latency(40.0, 50.0, 60.0), ValueError("not this one")])

    def latency(*_):
        if isinstance(value := next(made, ValueError("nor that")), Exception):
            raise value
        return value

    monkeypatch.setattr(switch_cost, "step_latency", latency)
    head, first, second, third, *_ = switch_table(tiny("apd", batch_size=4), CPU)
    assert head == "apd-seed0: one optimiser step, batch of 4, on cpu"
    assert first.split() == ["as", "it", "is", "0.1000", "s", "(0.0900", "to", "0.1100),", "1.00", "times"]
    assert second.endswith("0.0500 s (0.0400 to 0.0600), 0.50 times")
    assert third.endswith("not here: ValueError: not this one")


def test_an_experiment_that_cannot_be_measured_at_all_is_an_error(monkeypatch):
    def broken(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(switch_cost, "step_latency", broken)
    with pytest.raises(RuntimeError, match="no memory"):
        next(switch_costs(tiny(), CPU))


@pytest.mark.parametrize(("warmup", "repeats"), [(0, 5), (2, 1)])
def test_too_few_steps_are_refused(warmup, repeats):
    with pytest.raises(ValueError, match=f"warmup={warmup}, repeats={repeats}: expected at least 1 and 2"):
        next(switch_costs(tiny(), CPU, warmup=warmup, repeats=repeats))


def test_the_random_batch_has_the_size_of_the_experiments():
    batch = random_batch(tiny(batch_size=4), classes=10)
    assert batch.images_B3HW.shape == (4, 3, 32, 32)
    assert batch.labels_BHW.shape == (4, 32, 32)
    assert 0 <= batch.labels_BHW.min() < batch.labels_BHW.max() < 10
    assert 0 <= batch.images_B3HW.min() < batch.images_B3HW.max() < 1
