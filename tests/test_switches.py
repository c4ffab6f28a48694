"""Switches of a training step: what they change, and what they leave alone."""

import multiprocessing
import os
import signal

import pytest
import torch
from small_experiments import outcome, prepared_run, tiny

from apd.cli import app as cli
from apd.config.experiment import ExperimentError, TrainingConfig
from apd.config.identity import fingerprint
from apd.data.batches import Batch
from apd.training.run import train
from apd.training.trainer import CapturedStep


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


def signalled(step):
    """What Ctrl-C in a terminal does to the workers, and a scheduler's stop."""
    if step in (1, 2):
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGINT if step == 1 else signal.SIGTERM)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_run_with_workers_ends_as_without_even_if_its_workers_are_asked_to_stop(tmp_path, monkeypatch):
    found, experiment = [], tiny()
    for workers, on_step in ((0, None), (1, signalled)):
        monkeypatch.setenv("APD_RUNS", str(tmp_path / str(workers)))
        train(experiment, workers=workers, on_step=on_step)
        found.append(outcome(experiment))
    assert found[0] == found[1]
    assert multiprocessing.active_children() == []


def test_a_negative_number_of_workers_is_refused_before_anything_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("APD_RUNS", str(tmp_path))
    with pytest.raises(ExperimentError, match="workers = -1: expected a whole number of at least 0"):
        train(tiny(), workers=-1)
    assert cli.main(["train", "--workers", "-1"]) == 2
    assert "--workers -1: expected" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
