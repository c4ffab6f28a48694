"""Several ranks: they do what one process would, one of them writes, and none waits for one that has gone."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from small_experiments import (
    NETWORK,
    SMALLEST,
    TEACHER,
    exit_codes,
    outcome,
    prepared_run,
    run_as_a_command,
    start_ranks,
    tiny,
)
from torch import nn

from apd.config.experiment import ExperimentError
from apd.data.batches import Batch
from apd.data.image_folder import DataError
from apd.distillers.apd import APDConfig
from apd.distillers.channels import CWDConfig, DISTConfig
from apd.distillers.features import AttentionTransferConfig, FitNetConfig, MGDConfig
from apd.distillers.logits import DKDConfig, LSKDConfig, PixelKDConfig
from apd.distillers.prototypes import I2CKDConfig, IDDConfig
from apd.distillers.relations import IFVDConfig, SKDConfig
from apd.models.segmenter import Segmenter
from apd.training import distributed as ranks
from apd.training import trainer as loop
from apd.training.distributed import ALONE, Ranks, join
from apd.training.record import read_record
from apd.training.run import run_folder, task_of, train
from apd.training.segmentation import build_network
from apd.training.trainer import TrainStep

CPU, CLASSES, IGNORE = torch.device("cpu"), 10, 255
OBJECTIVES = {
    "task": (),
    "apd": (APDConfig(width=8),),
    "apd_without_heads": (APDConfig(width=None, regularisation=0.0),),
    "apd_element_means": (APDConfig(width=8, reduction="element", absent="zero"),),
    "apd_labels_of_the_teacher": (APDConfig(width=8, labels_from="teacher"),),
    "logits": (PixelKDConfig(), DKDConfig(), CWDConfig(), DISTConfig(intra=0.0), LSKDConfig()),
    "features": (FitNetConfig(), AttentionTransferConfig(), SKDConfig(), IFVDConfig(), MGDConfig(masked=0.0)),
    "prototypes": (I2CKDConfig(), IDDConfig()),
}
LABELS = ("unevenly_ignored", "second_half_ignored")
CASES = list(itertools.product(OBJECTIVES, LABELS))


def objective_experiment(name, accumulation=1):
    network = replace(NETWORK, dropout=0.0)
    return replace(
        tiny(batch_size=8, accumulation=accumulation, clip_norm=5.0),
        network=network,
        teacher=replace(TEACHER, network=replace(TEACHER.network, head_width=network.head_width)),
        distillers=OBJECTIVES[name],
    )


def batch_with(labels):
    """Eight images; image i has about i/8 of its pixels ignored, or the last four have all."""
    random = torch.Generator().manual_seed(3)
    images = torch.rand(8, 3, 32, 32, generator=random)
    classes = torch.randint(0, CLASSES, (8, 4, 4), generator=random)
    labels_BHW = classes.repeat_interleave(8, 1).repeat_interleave(8, 2)
    if labels == "second_half_ignored":
        labels_BHW[4:] = IGNORE
    else:
        share = torch.arange(8)[:, None, None] / 8
        labels_BHW[torch.rand(labels_BHW.shape, generator=random) < share] = IGNORE
    return Batch(images, labels_BHW)


class Frozen(Segmenter):
    """Batch norm couples the images of a part, so for equality its statistics stay what they are."""

    def train(self, mode=True):
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


def one_step(name, labels, job, accumulation=1):
    """Terms, gradients and new weights of one optimiser step."""
    experiment = objective_experiment(name, accumulation)
    student = build_network(experiment.network, CLASSES, CPU, seed=0)
    student.__class__ = Frozen
    teacher = build_network(experiment.teacher.network, CLASSES, CPU, seed=1).eval().requires_grad_(False)
    step = TrainStep(task_of(experiment), student.train(), teacher, job)
    size = 8 // job.size
    batch = Batch(*(value[job.rank * size : (job.rank + 1) * size] for value in batch_with(labels)))
    terms = step(batch)
    everything = nn.ModuleDict({"student": student, "distillers": step.distillers})
    return {
        **{f"term.{term}": value for term, value in terms.items()},
        **{f"gradient.{n}": p.grad for n, p in everything.named_parameters() if p.requires_grad},
        **{f"weight.{n}": p.detach() for n, p in everything.named_parameters()},
    }


def save_steps(folder):
    job = join()
    for accumulation in (1, 2):
        for name, labels in CASES:
            torch.save(one_step(name, labels, job, accumulation), folder / f"{name}-{labels}-{accumulation}-{job.rank}")
    sys.exit(ranks.leave(0))


@pytest.fixture(scope="module")
def steps_of_two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steps")
    codes = exit_codes(start_ranks(save_steps, folder, outputs=folder / "out"))
    assert codes == [0, 0], [(folder / "out" / name).read_text() for name in "01"]
    said = (folder / "out" / "0").read_text()
    assert "batch norm: each of the 2 ranks takes the statistics of its own images" in said
    assert "batch norm" not in (folder / "out" / "1").read_text()
    return folder


def assert_same_step(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        tolerance = {"rtol": 1e-4, "atol": 1e-4 * value.abs().max().item() + 1e-8}
        if "teacher_head" in name and name.startswith("weight"):
            tolerance = {"rtol": 0.0, "atol": 2.1e-3}  # Adam's first step: the learning rate times the sign
        torch.testing.assert_close(found[name], value, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(("name", "labels"), CASES)
def test_two_ranks_and_accumulation_do_the_step_of_one_process_with_the_whole_batch(name, labels, steps_of_two_ranks):
    expected = one_step(name, labels, ALONE)
    assert_same_step(one_step(name, labels, ALONE, accumulation=2), expected)
    for accumulation, rank in itertools.product((1, 2), (0, 1)):
        assert_same_step(torch.load(steps_of_two_ranks / f"{name}-{labels}-{accumulation}-{rank}"), expected)


@pytest.mark.parametrize("labels", LABELS)
def test_a_mean_of_means_would_be_another_number(labels, monkeypatch):
    """Else the test above would show nothing."""

    class Apart(Ranks):
        def wrapped(self, module):
            return module

        def mean(self, terms):
            return terms

    whole = one_step("apd", labels, ALONE)
    monkeypatch.setattr("apd.training.trainer.across_processes", contextlib.nullcontext)
    halves = [one_step("apd", labels, Apart(rank, 2)) for rank in (0, 1)]
    for term in ("term.task", "term.apd.observation", "term.apd.regularisation", "term.loss"):
        mean_of_means = (halves[0][term] + halves[1][term]) / 2
        assert (mean_of_means / whole[term] - 1).abs() > 1e-3, term


def count_reductions(file):
    job, counts = join(), {}
    for accumulation in (1, 2):
        experiment = objective_experiment("apd", accumulation)
        student = build_network(experiment.network, CLASSES, CPU, seed=0).train()
        teacher = build_network(experiment.teacher.network, CLASSES, CPU, seed=1).eval().requires_grad_(False)
        step = TrainStep(task_of(experiment), student, teacher, job)
        calls = []

        def hook(_state, bucket, calls=calls):
            calls.append(bucket.index())
            return (
                torch.distributed.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda f: f.value()[0])
            )

        step.losses.register_comm_hook(None, hook)
        for _ in range(2):
            step(Batch(*(value[4 * job.rank : 4 * job.rank + 4] for value in batch_with("unevenly_ignored"))))
        counts[accumulation] = len(calls)
    if job.first:
        file.write_text(json.dumps(counts))
    sys.exit(ranks.leave(0))


def test_gradients_are_sent_on_the_last_step_of_an_accumulation_only(tmp_path):
    assert exit_codes(start_ranks(count_reductions, tmp_path / "counts", outputs=tmp_path)) == [0, 0]
    counts = json.loads((tmp_path / "counts").read_text())
    assert counts["1"] == counts["2"] > 0


# what a rank is given


@pytest.mark.parametrize(("count", "size"), [(7, 3), (6, 2), (2, 4), (1, 2), (0, 2)])
def test_the_parts_of_an_evaluation_have_every_image_once(count, size):
    class Images(list):
        spec = "spec"

        def fingerprint(self):
            return "whole"

    images = Images(range(count))
    parts = [Ranks(rank, size).part(images) for rank in range(size)]
    assert sorted(image for part in parts for image in part) == images
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert {(part.spec, part.fingerprint()) for part in parts} == {("spec", "whole")}
    assert ALONE.part(images) is images


def test_synchronised_norms_keep_activations_names_and_parameters():
    """They run on GPUs only, but in evaluation they are what they were."""
    network = build_network(NETWORK, CLASSES, CPU, seed=0).eval()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before, names, parameters = network(images), list(network.state_dict()), list(network.parameters())
    ranks.convert_sync_batchnorm(network)
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) > 10
    assert {isinstance(norm, nn.SyncBatchNorm) for norm in norms} == {True}
    torch.testing.assert_close(network(images), before)
    assert list(network.state_dict()) == names
    assert [id(parameter) for parameter in network.parameters()] == [id(parameter) for parameter in parameters]


def test_every_parameter_of_a_step_gets_a_gradient(tmp_path):
    """One that waits for a gradient and gets none would stall several ranks."""
    for name, weight in itertools.product(OBJECTIVES, (0.4, 0.0)):
        experiment = objective_experiment(name)
        experiment = replace(experiment, training=replace(experiment.training, auxiliary_weight=weight))
        run = prepared_run(experiment, tmp_path)
        run.student.train()
        terms = run.step(batch_with("unevenly_ignored"))
        assert ("auxiliary" in terms) == bool(weight)
        heads = any(getattr(config, "width", None) for config in OBJECTIVES[name] if isinstance(config, APDConfig))
        assert ("teacher_heads" in run.optimisers) == heads
        trained = nn.ModuleList([run.student, run.distillers]).named_parameters()
        assert [name for name, p in trained if p.requires_grad and p.grad is None] == []


def test_each_rank_of_a_machine_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert ranks.own_gpu() == "cuda"
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert ranks.own_gpu() == "cuda:1"
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ExperimentError, match="rank 5 is process 2 of its machine, which has 2 GPUs: start"):
        ranks.own_gpu()


def test_ranks_draw_dropout_of_their_own_and_the_first_what_one_process_would():
    draws = set()
    for rank, step in itertools.product(range(3), (0, 7)):
        Ranks(rank, 3).seed(5, step)
        draws.add(torch.rand(4).numpy().tobytes())
    assert len(draws) == 5, "rank 0 starts alike at any step, the others do not"
    torch.manual_seed(5)
    assert torch.rand(4).numpy().tobytes() in draws


# a run


def shared(method="apd", **training):
    """An experiment whose batches two ranks can share."""
    experiment = tiny(method, batch_size=4, **training)
    teacher = experiment.teacher
    if teacher is not None:
        experiment = replace(experiment, teacher=replace(teacher, training=replace(teacher.training, batch_size=4)))
    return experiment


@dataclass
class KillAt:
    """SIGKILL of one rank, or of every one, when that many steps are done."""

    step: int
    rank: int | None = None
    number: int = signal.SIGKILL

    def __call__(self, step):
        if step == self.step and self.rank in (None, ranks.started_rank()):
            os.kill(os.getpid(), self.number)


def often(experiment, runs, on_step=None):
    """Train with a checkpoint after every step."""
    loop.CHECKPOINT_SECONDS = 0.0
    run_as_a_command(experiment, runs, on_step)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of the runs of an experiment by two ranks, and what they said."""
    folder = tmp_path_factory.mktemp("undisturbed")
    codes = exit_codes(start_ranks(run_as_a_command, shared(), folder / "runs", outputs=folder / "out"))
    assert codes == [0, 0], [(folder / "out" / name).read_text() for name in "01"]
    return folder


def seen_in(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("APD_RUNS", str(folder))
        return outcome(shared())


def test_two_ranks_leave_one_log_and_one_record_of_all_images(undisturbed, tmp_path, monkeypatch):
    (folder,) = (undisturbed / "runs").glob("apd-seed0-*")
    record = read_record(folder / "record.json")
    monkeypatch.setenv("APD_RUNS", str(tmp_path))
    alone = train(shared())
    assert record.content["device"]["ranks"] == 2
    assert "ranks" not in alone.content["device"]
    assert record.content["fingerprint"] == alone.content["fingerprint"]
    for owner, matrix in ((None, "confusion"), ("teacher", "confusion"), ("teacher", "agreement")):
        counts = [(content[owner] if owner else content)[matrix] for content in (record.content, alone.content)]
        assert torch.equal(*(torch.tensor(count).sum() for count in counts)), "an image was left out or seen twice"
    assert [entry["step"] for entry in record.content["evaluations"]] == [3, 6]
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(6))
    assert (undisturbed / "out" / "0").read_text().count("teacher mIoU") == 1
    assert (undisturbed / "out" / "1").read_text() == ""


def test_two_ranks_that_are_killed_go_on_and_end_bit_equal(undisturbed, tmp_path):
    """Dropout is on: the second rank's generator, too, is where it was."""
    for step in (2, 5):
        codes = exit_codes(start_ranks(often, shared(), tmp_path / "runs", KillAt(step), outputs=tmp_path / "out"))
        assert codes == [-9, -9]
    assert exit_codes(start_ranks(often, shared(), tmp_path / "runs", outputs=tmp_path / "out")) == [0, 0]
    assert (tmp_path / "out" / "0").read_text().count("apd-seed0: resumed at step") >= 1
    assert seen_in(tmp_path / "runs") == seen_in(undisturbed / "runs")


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_ranks(before, after, tmp_path, monkeypatch, capfd):
    runs, experiment = tmp_path / "runs", shared("student")
    codes = exit_codes(start_ranks(often, experiment, runs, KillAt(4), outputs=tmp_path / "before", size=before))
    assert codes == [-9] * before
    monkeypatch.setenv("APD_RUNS", str(runs))
    kept = (run_folder(experiment) / "log.jsonl").read_text().splitlines()[:3]
    assert exit_codes(start_ranks(often, experiment, runs, outputs=tmp_path / "after", size=after)) == [0] * after
    resumed = int((tmp_path / "after" / "0").read_text().split("resumed at step ")[1].split()[0])
    assert resumed >= 3
    lines = (run_folder(experiment) / "log.jsonl").read_text().splitlines()
    assert lines[:3] == kept
    assert [json.loads(line)["step"] for line in lines] == list(range(6))
    record = read_record(run_folder(experiment) / "record.json")
    assert record.content["device"].get("ranks", 1) == after


def test_a_request_to_one_rank_stops_all_with_a_checkpoint(tmp_path):
    stop = KillAt(2, rank=1, number=signal.SIGTERM)
    codes = exit_codes(start_ranks(run_as_a_command, shared("student"), tmp_path / "runs", stop, outputs=tmp_path))
    assert codes == [130, 130]
    said = (tmp_path / "0").read_text().splitlines()
    assert said[-1].startswith("apd: stopped at step 3; the same command goes on from there")
    assert "stopped" not in (tmp_path / "1").read_text()
    assert [path.name for path in (tmp_path / "runs").glob("*/checkpoints/*")] == ["step-00000003"]


# ranks that fail


def test_a_killed_rank_ends_the_others_with_a_message(tmp_path):
    before = time.monotonic()
    kill = KillAt(3, rank=1)
    codes = exit_codes(start_ranks(often, shared("student"), tmp_path / "runs", kill, outputs=tmp_path))
    assert codes == [1, -9]
    assert time.monotonic() - before < 90
    (message,) = [line for line in (tmp_path / "0").read_text().splitlines() if line.startswith("apd: ")]
    assert message.startswith("apd: another process of this run has gone or cannot be reached (")
    assert message.endswith("Start the same command again: the run goes on from its last checkpoint")
    assert "Traceback" not in (tmp_path / "0").read_text()


def without_data(experiment, runs, rank):
    def missing(*_):
        raise DataError(f"no data on rank {ranks.started_rank()}")

    if rank is None or ranks.started_rank() == rank:
        import apd.training.segmentation

        apd.training.segmentation.build_splits = missing
    run_as_a_command(experiment, runs)


@pytest.mark.parametrize(
    ("rank", "told"),
    [
        (0, [["apd: no data on rank 0"], []]),
        (None, [["apd: no data on rank 0"], []]),
        (1, [["apd: another process of this run has gone"], ["apd (rank 1): no data on rank 1"]]),
    ],
)
def test_an_error_of_one_rank_is_told_once_and_ends_all(rank, told, tmp_path):
    codes = exit_codes(start_ranks(without_data, shared("student"), tmp_path / "runs", rank, outputs=tmp_path))
    assert codes == [1, 1]
    for name, expected in zip("01", told, strict=True):
        said = [line for line in (tmp_path / name).read_text().splitlines() if not line.startswith("student-seed0:")]
        said = [line for line in said if not line.startswith("batch norm:")]
        assert len(said) == len(expected), said
        assert all(line.startswith(start) for line, start in zip(said, expected, strict=True))


def test_a_batch_that_cannot_be_divided_is_refused_once(tmp_path):
    codes = exit_codes(start_ranks(run_as_a_command, tiny(batch_size=3), tmp_path / "runs", outputs=tmp_path))
    assert codes == [1, 1]
    assert (tmp_path / "0").read_text().splitlines() == [
        "apd: TrainingConfig.batch_size = 3: expected a multiple of ranks x accumulation = 2 x 1 = 2, and 2 or more "
        "images in each part"
    ]
    assert (tmp_path / "1").read_text() == ""


def hold_and_train(experiment, runs, wait):
    os.environ["APD_RUNS"] = str(runs)
    ranks.ASK_AGAIN_SECONDS = 0.05
    train(experiment, wait=wait)
    sys.exit(ranks.leave(0))


def test_two_ranks_wait_together_for_a_run_that_another_process_holds(tmp_path, monkeypatch):
    experiment, runs = shared("student"), tmp_path / "runs"
    monkeypatch.setenv("APD_RUNS", str(runs))
    waiting = None

    def start_others(step):
        nonlocal waiting
        if step == 2:
            waiting = start_ranks(hold_and_train, experiment, runs, True, outputs=tmp_path)
            while not ((tmp_path / "0").exists() and "waiting: " in (tmp_path / "0").read_text()):
                time.sleep(0.02)

    record = train(experiment, on_step=start_others)
    assert exit_codes(waiting) == [0, 0]
    assert f"is in use by process {os.getpid()} on " in (tmp_path / "0").read_text()
    assert read_record(run_folder(experiment) / "record.json").content == record.content


# torchrun


def torchrun(runs, iterations):
    """`torchrun -m apd train` on two processes, whose first run is the teacher's."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "apd"]
    options = {**SMALLEST, "training.batch-size": 4, "teacher.training.batch-size": 4}
    options["teacher.training.iterations"] = iterations
    arguments = ["train", "--method", "student", *(f"--{name}={value}" for name, value in options.items())]
    environment = {**os.environ, "APD_RUNS": str(runs), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, *arguments], env=environment, stdout=-1, stderr=-1, text=True)


def test_torchrun_trains_and_a_rank_that_is_killed_ends_the_job(tmp_path):
    job = torchrun(tmp_path, iterations=100_000)
    while not (logs := list(tmp_path.glob("*/log.jsonl"))) or len(logs[0].read_text().splitlines()) < 3:
        assert job.poll() is None, job.stderr.read()
        time.sleep(0.05)
    workers = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    (second,) = [int(pid) for pid in workers if "\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_text()]
    os.kill(second, signal.SIGKILL)
    _out, err = job.communicate(timeout=100)
    assert job.returncode != 0
    assert "apd: another process of this run has gone" in err or "SIGKILL" in err
    assert not list(tmp_path.glob("*/record.json"))
