"""Two ranks train a detector as one process does, and count what both have found as one."""

import sys
from dataclasses import replace

import pytest
import torch
from small_detection import METHODS, NETWORK, TEACHER, TRAINING, small
from small_experiments import assert_same_step, equal, run_ranks, state_after
from torch import nn

from apd.data.augment_instances import InstanceAugmentation, InstanceBatch, training_instance_batches
from apd.data.instances import as_target
from apd.data.scenes import SceneInstances
from apd.evaluation.average_precision import Detections, DetectionScorer
from apd.models.detector_hooks import DetectorTap
from apd.training import distributed as ranks
from apd.training.distributed import ALONE, Ranks, join
from apd.training.run import task_of
from apd.training.trainer import TrainStep

CPU = torch.device("cpu")
SCENES = SceneInstances(8, height=64, width=64, context_shift=0.5, seed=0)
# ReviewKD's heads have batch norms, which torch does not synchronise on a CPU
DISTILLED = [*(METHODS[name][0] for name in ("roi_kd", "roi_dkd", "pyramid_matching")), *METHODS["dense_apd"]]
OBJECTIVES = {"student": (), "roi_apd": METHODS["roi_apd"], "others": tuple(DISTILLED)}
CASES = [*((name, "second_half_empty") for name in OBJECTIVES), ("others", "all")]


def batch_of(uneven):
    """Four scenes; of the last two every object may be gone."""
    targets = [as_target(SCENES[index]) for index in range(4)]
    for target in targets[2:] if uneven == "second_half_empty" else []:
        target |= {name: value[:0] for name, value in target.items() if name != "class_map"}
        target["class_map"] = torch.zeros_like(target["class_map"])
    return InstanceBatch([SCENES[index].image_3HW / 255 for index in range(4)], targets)


def part_of(batch, job):
    size = len(batch.images) // job.size
    return InstanceBatch(*(part[job.rank * size : (job.rank + 1) * size] for part in batch))


def without_chance(detector):
    """Every anchor and every proposal is drawn, and batch norm couples no images."""
    detector.rpn.fg_bg_sampler.batch_size_per_image = 10**5
    detector.roi_heads.fg_bg_sampler.batch_size_per_image = 10**4
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return detector


def one_step(name, uneven, job):
    training = replace(TRAINING, batch_size=4, clip_norm=5.0)
    task = task_of(replace(small("roi_apd"), training=training, distillers=OBJECTIVES[name]))
    student = without_chance(task.network(NETWORK, 3, CPU, 0).train())
    teacher = task.network(TEACHER.network, 3, CPU, 1).eval().requires_grad_(False)
    step = TrainStep(task, student, teacher, job)
    torch.manual_seed(job.rank)
    return state_after(step, part_of(batch_of(uneven), job))


def save_steps(folder):
    job = join()
    for name, uneven in CASES:
        torch.save(one_step(name, uneven, job), folder / f"{name}-{uneven}-{job.rank}")
    sys.exit(ranks.leave(0))


@pytest.fixture(scope="module")
def steps_of_two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steps")
    run_ranks(save_steps, folder, outputs=folder / "out")
    return folder


@pytest.mark.parametrize(("name", "uneven"), CASES)
def test_two_ranks_with_half_a_batch_do_the_step_of_one_with_all_of_it(name, uneven, steps_of_two_ranks):
    """A rank whose images hold no object neither hangs nor changes what the others' objects count."""
    expected = one_step(name, uneven, ALONE)
    for rank in (0, 1):
        assert_same_step(torch.load(steps_of_two_ranks / f"{name}-{uneven}-{rank}"), expected, rtol=1e-3)


def test_torchvisions_own_means_would_give_another_number():
    """Else the test above would show nothing."""
    task, batch = task_of(small()), batch_of("second_half_empty")
    student = without_chance(task.network(NETWORK, 3, CPU, 0).train())
    losses = [student(*part_of(batch, Ranks(rank, size))) for rank, size in ((0, 1), (0, 2), (1, 2))]
    mean_of_means = (losses[1]["loss_mask"] + losses[2]["loss_mask"]) / 2
    assert mean_of_means < 0.6 * losses[0]["loss_mask"]


def test_what_the_losses_are_means_over_is_counted_as_torchvision_does():
    task, batch = task_of(small()), batch_of("second_half_empty")
    student = task.network(NETWORK, 3, CPU, 0).train()
    sampler = student.rpn.fg_bg_sampler
    with DetectorTap(student) as tap:
        assert student.rpn.fg_bg_sampler is not sampler
        student(*batch)
        counts, labels = {name: int(count) for name, count in tap.loss_counts.items()}, tap.labels_B1N
    assert student.rpn.fg_bg_sampler is sampler
    assert counts["loss_objectness"] == counts["loss_rpn_box_reg"] == 4 * sampler.batch_size_per_image
    assert counts["loss_classifier"] == counts["loss_box_reg"] == int((labels >= 0).sum())
    assert counts["loss_mask"] == int((labels > 0).sum()) > 0
    assert int((labels[2:] > 0).sum()) == 0


# what a rank is given


def test_the_parts_of_a_batch_are_those_of_the_whole():
    settings = dict(batch_size=4, augmentation=InstanceAugmentation(scale=(0.8, 1.2)), seed=1, iterations=3)
    parts = [list(training_instance_batches(SCENES, **settings, part=(rank, 2))) for rank in (0, 1)]
    for number, batch in enumerate(training_instance_batches(SCENES, **settings)):
        joined = InstanceBatch(*(first + second for first, second in zip(*(p[number] for p in parts), strict=True)))
        assert equal(batch.by_name(), joined.by_name())
    with pytest.raises(ValueError, match=r"part=\(0, 3\): expected \(r, n\) with 0 <= r < n, n a divisor of"):
        training_instance_batches(SCENES, **settings, part=(0, 3))


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
