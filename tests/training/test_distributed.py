"""Several ranks do what one process would, in either task, and count what all have found as one."""

import itertools
import sys
from dataclasses import replace

import pytest
import small_detection as boxes
import torch
from small_experiments import NETWORK, TEACHER, assert_same_step, prepared_run, run_ranks, state_after, tiny
from torch import nn

from apd.config.datasets import build_splits
from apd.config.experiment import ExperimentError
from apd.data.batches import Batch, InstanceBatch
from apd.data.instances import as_target
from apd.data.scenes import SceneInstances
from apd.distillers.apd import APDConfig
from apd.distillers.features import AttentionTransferConfig, CWDConfig, FitNetConfig, MGDConfig
from apd.distillers.logits import DISTConfig, DKDConfig, LSKDConfig, PixelKDConfig
from apd.distillers.relations import I2CKDConfig, IDDConfig, IFVDConfig, SKDConfig
from apd.evaluation.average_precision import Detections, DetectionScorer
from apd.training import distributed as ranks
from apd.training.distributed import ALONE, Ranks, join
from apd.training.run import task_of
from apd.training.trainer import TrainStep

CPU, CLASSES, IGNORE = torch.device("cpu"), 10, 255
SCENES = SceneInstances(8, height=64, width=64, context_shift=0.5, seed=0)
OBJECTIVES = {
    "task": (),
    "apd": (APDConfig(width=8),),
    "apd_without_heads": (APDConfig(width=None, regularisation=0.0),),
    "apd_element_means": (APDConfig(width=8, reduction="element", absent="zero", labels_from="teacher"),),
    "logits": (PixelKDConfig(), DKDConfig(), CWDConfig(), DISTConfig(intra=0.0), LSKDConfig()),
    "features": (FitNetConfig(), AttentionTransferConfig(), SKDConfig(), IFVDConfig(), MGDConfig(masked=0.0)),
    "prototypes": (I2CKDConfig(), IDDConfig()),
    "weighted": (),
}
WEIGHTS = (3.0, 0.0, 1e-3, 2.0, 0.5, 1.0, 1.0, 0.25, 8.0, 1.0)
TRAINING = {"weighted": {"class_weights": WEIGHTS, "label_smoothing": 0.1, "added_loss": "focal"}}
# ReviewKD's heads have batch norms, which torch does not synchronise on a CPU
OF_DETECTORS = {"detector": ("student",), "roi_apd": ("roi_apd",)}
OF_DETECTORS["others_between_detectors"] = ("roi_kd", "roi_dkd", "pyramid_matching", "dense_apd")
ACCUMULATIONS = dict.fromkeys(OBJECTIVES, (1, 2)) | dict.fromkeys(OF_DETECTORS, (1,))
CASES = [
    *itertools.product(OBJECTIVES, ("unevenly_ignored", "second_half_empty")),
    *((name, "second_half_empty") for name in OF_DETECTORS),
    ("others_between_detectors", "all"),
]


def experiment_of(name, accumulation=1):
    if name in OF_DETECTORS:
        distillers = tuple(config for method in OF_DETECTORS[name] for config in boxes.METHODS[method])
        return replace(boxes.small("roi_apd", batch_size=4, clip_norm=5.0), distillers=distillers)
    network = replace(NETWORK, dropout=0.0)
    start = tiny(batch_size=8, accumulation=accumulation, clip_norm=5.0, **TRAINING.get(name, {}))
    teacher = replace(TEACHER, network=replace(TEACHER.network, head_width=network.head_width))
    return replace(start, network=network, teacher=teacher, distillers=OBJECTIVES[name])


def batch_with(labels):
    """Eight images; image i has about i/8 of its pixels ignored, or the last four have all."""
    random = torch.Generator().manual_seed(3)
    images = torch.rand(8, 3, 32, 32, generator=random)
    classes = torch.randint(0, CLASSES, (8, 4, 4), generator=random)
    labels_BHW = classes.repeat_interleave(8, 1).repeat_interleave(8, 2)
    share = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]) if labels == "second_half_empty" else torch.arange(8) / 8
    labels_BHW[torch.rand(8, 32, 32, generator=random) < share[:, None, None]] = IGNORE
    return Batch(images, labels_BHW)


def scenes_with(labels):
    """Four scenes; of the last two every object may be gone."""
    targets = [as_target(SCENES[index]) for index in range(4)]
    for target in targets[2:] if labels == "second_half_empty" else []:
        target |= {name: value[:0] for name, value in target.items() if name != "class_map"}
        target["class_map"] = torch.zeros_like(target["class_map"])
    return InstanceBatch([SCENES[index].image_3HW / 255 for index in range(4)], targets)


def part_of(batch, job):
    size = len(batch[0]) // job.size
    return type(batch)(*(value[job.rank * size : (job.rank + 1) * size] for value in batch))


def without_chance(network):
    """Batch norm couples no images of a part, and of a detector every anchor and every proposal is drawn."""
    if hasattr(network, "rpn"):
        network.rpn.fg_bg_sampler.batch_size_per_image = 10**5
        network.roi_heads.fg_bg_sampler.batch_size_per_image = 10**4
    for module in network.train().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return network


def step_of(name, job, accumulation=1):
    experiment, classes = experiment_of(name, accumulation), 3 if name in OF_DETECTORS else CLASSES
    task, networks = task_of(experiment), (experiment.network, experiment.teacher.network)
    task.splits()
    student, teacher = (task.network(network, classes, CPU, seed) for seed, network in enumerate(networks))
    return TrainStep(task, without_chance(student), teacher.eval().requires_grad_(False), job)


def one_step(name, labels, job, accumulation=1):
    batch = scenes_with(labels) if name in OF_DETECTORS else batch_with(labels)
    step = step_of(name, job, accumulation)
    torch.manual_seed(job.rank)
    return state_after(step, part_of(batch, job))


def save_steps(folder):
    job = join()
    for name, labels in CASES:
        for accumulation in ACCUMULATIONS[name]:
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
    """A rank whose images hold nothing neither hangs nor changes what the others' objects count."""
    expected, rtol = one_step(name, labels, ALONE), 1e-3 if name in OF_DETECTORS else 1e-4
    for accumulation in ACCUMULATIONS[name]:
        assert_same_step(one_step(name, labels, ALONE, accumulation), expected, rtol=rtol)
        for rank in (0, 1):
            found = torch.load(steps_of_two_ranks / f"{name}-{labels}-{accumulation}-{rank}")
            assert_same_step(found, expected, rtol=rtol)


def count_reductions(folder):
    job = join()
    for accumulation in (1, 2):
        step, part = step_of("apd", job, accumulation), part_of(batch_with("unevenly_ignored"), job)

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


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_parts_of_an_evaluation_have_every_image_once(size):
    images = build_splits(tiny().data).val
    parts = [Ranks(rank, size).part(images) for rank in range(size)]
    assert sorted(part[place].name for part in parts for place in range(len(part))) == [image.name for image in images]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert {(part.spec, part.fingerprint()) for part in parts} == {(images.spec, images.fingerprint())}


def test_every_parameter_of_a_step_gets_a_gradient(tmp_path):
    """One that waits for a gradient and gets none would stall several ranks."""
    for name, weight in itertools.product(OBJECTIVES, (0.4, 0.0)):
        experiment = experiment_of(name)
        experiment = replace(experiment, training=replace(experiment.training, auxiliary_weight=weight))
        run = prepared_run(experiment, tmp_path)
        terms = run.step(batch_with("unevenly_ignored"))
        assert ("auxiliary" in terms) == bool(weight)
        heads = any(getattr(config, "width", None) for config in OBJECTIVES[name] if isinstance(config, APDConfig))
        assert ("teacher_heads" in run.optimisers) == heads
        trained = nn.ModuleList([run.student, run.distillers]).named_parameters()
        assert [name for name, p in trained if p.requires_grad and p.grad is None] == []


def test_each_rank_of_a_machine_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", lambda *_, device: torch.zeros(1))
    assert ranks.choose_device() == torch.device("cuda")
    for name, value in (("WORLD_SIZE", "8"), ("RANK", "5"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert ranks.choose_device() == torch.device("cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ExperimentError, match="rank 5 is process 2 of its machine, which has 2 GPUs: start"):
        ranks.choose_device()


def test_ranks_draw_dropout_of_their_own_and_the_first_what_one_process_would():
    def drawn(rank, step):
        Ranks(rank, 3).seed(5, step)
        return torch.rand(4).tolist()

    assert len({tuple(drawn(rank, step)) for rank in range(3) for step in (0, 7)}) == 5
    torch.manual_seed(5)
    alone = torch.rand(4).tolist()
    assert drawn(0, 0) == drawn(0, 7) == alone


@pytest.mark.parametrize("size", [2, 3, 9])
def test_scorers_of_parts_joined_are_the_scorer_of_the_whole(size):
    """Scores are few, so that ties between images are many: the order of images counts, too."""
    whole, *parts = [DetectionScorer(SCENES.spec, ("boxes",)) for _ in range(1 + size)]
    for place in range(8):
        sample, number = SCENES[place], len(SCENES[place].labels_N)
        moved = sample.boxes_N4 + torch.randn(number, 4)
        moved[:, 2:] = torch.maximum(moved[:, 2:], moved[:, :2] + 1)
        found = Detections(moved, torch.randint(1, 4, (number,)) / 4, sample.labels_N, None)
        for scorer in (whole, parts[place % size]):
            scorer.update(sample, found)
    whole, joined = (scorer.tables()["boxes"] for scorer in (whole, parts[0].joined(parts[1:])))
    assert torch.equal(joined.ap_TKA.nan_to_num(-1), whole.ap_TKA.nan_to_num(-1))
    assert torch.equal(joined.instances_K, whole.instances_K)
