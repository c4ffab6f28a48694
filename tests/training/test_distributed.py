"""Several ranks: they do what one process would, one of them writes, and none waits for one that has gone."""

import itertools
import sys
from dataclasses import replace

import pytest
import torch
from small_experiments import DATA, NETWORK, TEACHER, assert_same_step, prepared_run, run_ranks, state_after, tiny
from torch import nn

from apd.config.datasets import build_splits
from apd.config.experiment import ExperimentError
from apd.data.batches import Batch
from apd.distillers.apd import APDConfig
from apd.distillers.features import AttentionTransferConfig, CWDConfig, FitNetConfig, MGDConfig
from apd.distillers.logits import DISTConfig, DKDConfig, LSKDConfig, PixelKDConfig
from apd.distillers.relations import I2CKDConfig, IDDConfig, IFVDConfig, SKDConfig
from apd.models.segmenter import Segmenter
from apd.training import distributed as ranks
from apd.training.distributed import ALONE, Ranks, join
from apd.training.run import task_of
from apd.training.segmentation import build_network
from apd.training.trainer import TrainStep

CPU, CLASSES, IGNORE = torch.device("cpu"), 10, 255
OBJECTIVES = {
    "task": (),
    "apd": (APDConfig(width=8),),
    "apd_without_heads": (APDConfig(width=None, regularisation=0.0),),
    "apd_element_means": (APDConfig(width=8, reduction="element", absent="zero", labels_from="teacher"),),
    "logits": (PixelKDConfig(), DKDConfig(), CWDConfig(), DISTConfig(intra=0.0), LSKDConfig()),
    "features": (FitNetConfig(), AttentionTransferConfig(), SKDConfig(), IFVDConfig(), MGDConfig(masked=0.0)),
    "prototypes": (I2CKDConfig(), IDDConfig()),
}
LABELS = ("unevenly_ignored", "second_half_ignored")
CASES = list(itertools.product(OBJECTIVES, LABELS))


def objective_experiment(name, accumulation=1):
    network = replace(NETWORK, dropout=0.0)
    start = tiny(batch_size=8, accumulation=accumulation, clip_norm=5.0)
    teacher = replace(TEACHER, network=replace(TEACHER.network, head_width=network.head_width))
    return replace(start, network=network, teacher=teacher, distillers=OBJECTIVES[name])


def batch_with(labels):
    """Eight images; image i has about i/8 of its pixels ignored, or the last four have all."""
    random = torch.Generator().manual_seed(3)
    images = torch.rand(8, 3, 32, 32, generator=random)
    classes = torch.randint(0, CLASSES, (8, 4, 4), generator=random)
    labels_BHW = classes.repeat_interleave(8, 1).repeat_interleave(8, 2)
    share = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]) if labels == "second_half_ignored" else torch.arange(8) / 8
    labels_BHW[torch.rand(8, 32, 32, generator=random) < share[:, None, None]] = IGNORE
    return Batch(images, labels_BHW)


class Frozen(Segmenter):
    """Batch norm couples the images of a part, so for equality its statistics stay what they are."""

    def train(self, mode=True):
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


def step_of(name, job, accumulation=1):
    experiment = objective_experiment(name, accumulation)
    student = build_network(experiment.network, CLASSES, CPU, seed=0)
    student.__class__ = Frozen
    teacher = build_network(experiment.teacher.network, CLASSES, CPU, seed=1).eval().requires_grad_(False)
    return TrainStep(task_of(experiment), student.train(), teacher, job)


def part_of(labels, job):
    size = 8 // job.size
    return Batch(*(value[job.rank * size : (job.rank + 1) * size] for value in batch_with(labels)))


def one_step(name, labels, job, accumulation=1):
    return state_after(step_of(name, job, accumulation), part_of(labels, job))


def save_steps(folder):
    job = join()
    for accumulation in (1, 2):
        for name, labels in CASES:
            torch.save(one_step(name, labels, job, accumulation), folder / f"{name}-{labels}-{accumulation}-{job.rank}")
    sys.exit(ranks.leave(0))


@pytest.fixture(scope="module")
def steps_of_two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steps")
    first, second = run_ranks(save_steps, folder, outputs=folder / "out")
    assert "batch norm: each of the 2 ranks takes the statistics of its own images" in first
    assert "batch norm" not in second
    return folder


@pytest.mark.parametrize(("name", "labels"), CASES)
def test_two_ranks_and_accumulation_do_the_step_of_one_process_with_the_whole_batch(name, labels, steps_of_two_ranks):
    expected = one_step(name, labels, ALONE)
    assert_same_step(one_step(name, labels, ALONE, accumulation=2), expected)
    for accumulation, rank in itertools.product((1, 2), (0, 1)):
        assert_same_step(torch.load(steps_of_two_ranks / f"{name}-{labels}-{accumulation}-{rank}"), expected)


def count_reductions(folder):
    job = join()
    for accumulation in (1, 2):
        step, part = step_of("apd", job, accumulation), part_of("unevenly_ignored", job)

        def hook(_state, bucket, file=folder / f"{accumulation}-{job.rank}"):
            with file.open("a") as calls:
                calls.write(".")
            reduced = torch.distributed.all_reduce(bucket.buffer(), async_op=True)
            return reduced.get_future().then(lambda found: found.value()[0])

        step.losses.register_comm_hook(None, hook)
        step(part)
        step(part)
    sys.exit(ranks.leave(0))


def test_gradients_are_sent_on_the_last_step_of_an_accumulation_only(tmp_path):
    run_ranks(count_reductions, tmp_path, outputs=tmp_path / "out")
    assert len({(tmp_path / f"{accumulation}-0").read_text() for accumulation in (1, 2)}) == 1


# what a rank is given


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_parts_of_an_evaluation_have_every_image_once(size):
    images = build_splits(DATA).val
    parts = [Ranks(rank, size).part(images) for rank in range(size)]
    assert sorted(part[place].name for part in parts for place in range(len(part))) == [image.name for image in images]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert {(part.spec, part.fingerprint()) for part in parts} == {(images.spec, images.fingerprint())}


def test_synchronised_norms_keep_activations_names_and_parameters():
    """They run on GPUs only, but in evaluation they are what they were."""
    network = build_network(NETWORK, CLASSES, CPU, seed=0).eval()
    images, parameters = torch.rand(2, 3, 32, 32), {id(parameter) for parameter in network.parameters()}
    before, names = network(images), list(network.state_dict())
    ranks.convert_sync_batchnorm(network)
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) > 10
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    torch.testing.assert_close(network(images), before)
    assert list(network.state_dict()) == names
    assert {id(parameter) for parameter in network.parameters()} == parameters


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
    for name, value in (("WORLD_SIZE", "8"), ("RANK", "5"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert ranks.own_gpu() == "cuda:1"
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ExperimentError, match="rank 5 is process 2 of its machine, which has 2 GPUs: start"):
        ranks.own_gpu()


def test_ranks_draw_dropout_of_their_own_and_the_first_what_one_process_would():
    def drawn(rank, step):
        Ranks(rank, 3).seed(5, step)
        return torch.rand(4).tolist()

    assert len({tuple(drawn(rank, step)) for rank in range(3) for step in (0, 7)}) == 5
    torch.manual_seed(5)
    alone = torch.rand(4).tolist()
    assert drawn(0, 0) == drawn(0, 7) == alone
