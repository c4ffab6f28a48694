"""What is counted in a picture is what the rule says, and a choice of pictures follows from the counts alone."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from apd.data.instances import InstanceSample, InstanceSpec
from apd.data.scenes import SceneInstances
from apd.evaluation.average_precision import Detections, DetectionScorer
from apd.report.detections import count_in_image, least_middle_most


def boxes(count: int, generator: torch.Generator) -> torch.Tensor:
    corner = 40 * torch.rand(count, 2, generator=generator)
    return torch.cat([corner, corner + 4 + 16 * torch.rand(count, 2, generator=generator)], 1)


def truth_of(boxes_N4, labels, crowd=None) -> InstanceSample:
    crowd_N = torch.tensor(crowd or [False] * len(labels), dtype=torch.bool)
    areas_N = (boxes_N4[:, 2:] - boxes_N4[:, :2]).prod(1)
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    return InstanceSample(image, boxes_N4, torch.tensor(labels, dtype=torch.long), None, crowd_N, areas_N, "picture")


def found_of(boxes_N4, labels, scores) -> Detections:
    return Detections(boxes_N4, torch.tensor(scores), torch.tensor(labels, dtype=torch.long), None)


def test_perfect_findings_are_all_right_and_no_findings_miss_everything():
    boxes_N4 = boxes(6, torch.Generator().manual_seed(1))
    truth = truth_of(boxes_N4, [0, 1, 2, 0, 1, 2])
    assert count_in_image(truth, found_of(boxes_N4, [0, 1, 2, 0, 1, 2], [0.9] * 6)) == (6, 0, 0)
    nothing = count_in_image(truth, found_of(torch.zeros(0, 4), [], []))
    assert nothing == (0, 0, 6)
    assert nothing.score == 0


def test_a_wrong_class_a_second_finding_and_an_unsure_one_are_told_apart():
    box = torch.tensor([[4.0, 4.0, 24.0, 24.0]])
    truth = truth_of(box, [1])
    assert count_in_image(truth, found_of(box, [0], [0.9])) == (0, 1, 1)
    assert count_in_image(truth, found_of(box.repeat(3, 1), [1, 1, 1], [0.6, 0.9, 0.4])) == (1, 1, 0)
    assert count_in_image(truth, found_of(box, [1], [0.4])) == (0, 0, 1)
    assert count_in_image(truth, found_of(box, [1], [0.5])) == (1, 0, 0)


def test_the_surest_finding_takes_the_thing_that_it_overlaps_most():
    things = torch.tensor([[0.0, 0.0, 10.0, 10.0], [3.0, 0.0, 13.0, 10.0]])
    between = torch.tensor([[2.0, 0.0, 12.0, 10.0], [0.0, 0.0, 10.0, 10.0]])
    assert count_in_image(truth_of(things, [0, 0]), found_of(between, [0, 0], [0.9, 0.8])) == (2, 0, 0)
    only = truth_of(things[:1], [0])
    assert count_in_image(only, found_of(between, [0, 0], [0.9, 0.8])) == (1, 1, 0)


def test_a_finding_in_a_crowd_is_neither_right_nor_false_and_a_crowd_is_not_missed():
    crowd, inside = torch.tensor([[0.0, 0.0, 40.0, 40.0]]), torch.tensor([[4.0, 4.0, 12.0, 12.0]])
    truth = truth_of(crowd, [1], [True])
    assert count_in_image(truth, found_of(inside, [1], [0.9])) == (0, 0, 0)
    assert count_in_image(truth, found_of(inside, [0], [0.9])) == (0, 1, 0)
    assert count_in_image(truth, found_of(inside + 36, [1], [0.9])) == (0, 1, 0)


def test_a_picture_without_things_counts_every_finding_as_false():
    empty = truth_of(torch.zeros(0, 4), [])
    assert count_in_image(empty, found_of(boxes(3, torch.Generator().manual_seed(2)), [0, 1, 2], [0.9] * 3)) == (
        *(0, 3, 0),
    )


@given(st.integers(0, 10_000))
def test_things_found_agree_with_what_coco_calls_right_at_half_overlap(seed):
    generator = torch.Generator().manual_seed(seed)
    boxes_N4 = boxes(5, generator)
    labels = torch.randint(0, 2, (5,), generator=generator).tolist()
    moved = boxes_N4 + 6 * torch.rand(5, 4, generator=generator) - 3
    moved = torch.cat([moved[:, :2], torch.maximum(moved[:, 2:], moved[:, :2] + 1)], 1)
    scores = (0.5 + 0.5 * torch.rand(5, generator=generator)).tolist()
    truth, found = truth_of(boxes_N4, labels), found_of(moved, labels, scores)
    count = count_in_image(truth, found)
    assert count.right + count.missed == 5
    assert count.right + count.false == 5
    scorer = DetectionScorer(InstanceSpec("pets", ("cat", "dog")), ("boxes",))
    scorer.update(truth, found)
    table = scorer.tables()["boxes"]
    perfect = bool((table.ap_TKA[0, :, 0].nan_to_num(1.0) == 1.0).all())
    assert perfect == (count.right == 5)


def test_the_truth_of_a_scene_found_as_it_is_has_everything_right():
    sample = SceneInstances(4, height=96, width=128, context_shift=0.5, seed=0, split="test")[1]
    wanted_N = ~sample.crowd_N
    found = Detections(sample.boxes_N4[wanted_N], torch.ones(int(wanted_N.sum())), sample.labels_N[wanted_N], None)
    assert count_in_image(sample, found) == (int(wanted_N.sum()), 0, 0)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=30))
def test_chosen_pictures_have_the_extreme_and_the_middle_difference_and_each_is_named_once(values):
    chosen, ordered = least_middle_most(values), sorted(values)
    wanted = {"greatest": ordered[-1], "median": ordered[(len(values) - 1) // 2], "least": ordered[0]}
    assert len(set(chosen.values())) == len(chosen)
    assert all(values[place] == wanted[name] for name, place in chosen.items())
    for name in wanted.keys() - chosen.keys():
        assert set(chosen.values()) >= {place for place, value in enumerate(values) if value == wanted[name]}
    if len(values) >= 3 and len(set(values)) == 1:
        assert list(chosen.values()) == [0, 1, 2]


def test_without_pictures_none_is_chosen():
    assert least_middle_most([]) == {}
