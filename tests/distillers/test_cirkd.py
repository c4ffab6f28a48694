"""The memories of CIRKD: what is queued, where, and that a checkpoint holds it."""

import copy

import pytest
import slow_reference as slow
import torch
from every_method import random_batch

from apd import CIRKD
from apd.distillers.cirkd import ClassMemory


def method(**options):
    return CIRKD(6, 8, 5, **({"pixel_slots": 64, "region_slots": 6} | options)).double()


@pytest.mark.parametrize("candidates", [3, 7, 12], ids=["few", "as-many-as-slots", "more-than-slots"])
def test_queues_hold_what_a_list_for_each_class_would_hold(candidates):
    torch.manual_seed(1)
    memory = ClassMemory(3, 2, slots=7, samples=5)
    lists, starts = [list(rows.clone()) for rows in memory.vectors], [0, 0, 0]
    for _ in range(9):
        offered, wanted = torch.randn(3, candidates, 2), torch.rand(3, candidates) < 0.4
        memory.append(offered, wanted)
        for label in range(3):
            for vector in offered[label][wanted[label]][:7]:
                lists[label][starts[label] % 7] = vector
                starts[label] += 1
    assert torch.equal(memory.vectors, torch.stack([torch.stack(rows) for rows in lists]))
    assert memory.written.tolist() == starts


@pytest.mark.parametrize(("samples", "each"), [(4, 3), (1000, 6)])
def test_a_sample_is_the_same_random_slots_of_every_class_without_repetition(samples, each):
    memory = ClassMemory(2, 1, slots=6, samples=samples)
    memory.vectors.copy_(torch.arange(12.0).view(2, 6, 1))
    drawn = memory.sample().view(2, -1)
    assert drawn.shape == (2, each)
    assert torch.equal(drawn[1], drawn[0] + 6)
    assert len(set(drawn[0].tolist())) == each
    assert len({tuple(sorted(memory.sample()[:each, 0].tolist())) for _ in range(50)}) > (each < 6)


def test_a_call_queues_random_normalised_teacher_pixels_of_the_class_itself():
    module, batch = method(new_pixels=2), random_batch(labels=(5, 4))
    module(**batch)
    memory = module.memories["pixel_memory"]
    directions = torch.nn.functional.normalize(batch["teacher_features"], dim=1)
    for label in range(5):
        of_image = [directions[b][:, batch["labels"][b] == label].T for b in range(2)]
        expected = [min(2, len(rows)) for rows in of_image]
        assert memory.written[label] == sum(expected)
        written = memory.vectors[label, : sum(expected)].split(expected)
        for rows, queued in zip(of_image, written, strict=True):
            found = [int((rows - vector).abs().sum(1).argmin()) for vector in queued]
            torch.testing.assert_close(rows[found], queued)
            assert len(set(found)) == len(found), "a pixel was queued twice"
    assert memory.written[4] == 0  # the class is nowhere
    (again := method(new_pixels=2))(**batch)
    assert not torch.equal(again.memories["pixel_memory"].vectors[:, :2], memory.vectors[:, :2])


def test_a_call_queues_the_direction_of_the_mean_of_each_class_in_each_image():
    module, batch = method(), random_batch(labels=(5, 4))
    module(**batch)
    memory = module.memories["region_memory"]
    images = slow.perspectives(batch["teacher_features"], batch["labels"])
    for label in range(5):
        expected = [rows[label] for rows in images if label in rows]
        assert memory.written[label] == len(expected)
        for vector, row in zip(memory.vectors[label], expected, strict=False):
            torch.testing.assert_close(vector, row)


def test_training_writes_the_memories_before_it_reads_them_and_evaluation_does_not_write():
    module, batch, written = method().eval(), random_batch(), []
    before = copy.deepcopy(module.state_dict())
    module(**batch)
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    for memory in module.memories.values():
        memory.sample = lambda memory=memory: written.append(memory.written.sum()) or memory.vectors.flatten(0, 1)
    module.train()(**batch)
    assert [bool(count) for count in written] == [True, True]


@pytest.mark.parametrize("weights", [(1, 0, 0), (0, 1, 0), (1, 0, 1)])
def test_terms_of_weight_zero_are_not_computed_and_have_no_queue(weights):
    chosen = dict(zip(("batch_pixels", "pixel_memory", "region_memory"), weights, strict=True))
    module, wanted = method(**chosen), [name for name, weight in chosen.items() if weight]
    assert list(module(**random_batch())) == [*wanted, "loss"]
    assert list(module.memories) == [name for name in wanted if name != "batch_pixels"]
    assert bool(module.student_parameters()) == bool(module.memories)


def test_the_published_queues_are_the_defaults_of_the_module():
    memories = CIRKD(2, 2, 1).memories.values()
    assert [(memory.vectors.shape[1], memory.samples) for memory in memories] == [(20_000, 4097), (2000, 1025)]
