"""Numbers of an image's perspective against loops over classes and cells, what leaves them unchanged, and bad input."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apd import class_prototypes
from apd.evaluation.metrics import ConfusionMatrix, scores
from apd.report.perspectives import (
    centred,
    compare_views,
    distance_to_shared,
    image_scores,
)


def made_up(seed=0, batch=3, classes=5, channels=7):
    """A classifier, prototypes and presence; the last image has one class, the one before it two."""
    generator = torch.Generator().manual_seed(seed)
    weights_KC = torch.randn(classes, channels, generator=generator)
    prototypes_BKC = torch.nn.functional.normalize(torch.randn(batch, classes, channels, generator=generator), dim=2)
    present_BK = torch.rand(batch, classes, generator=generator) < 0.6
    present_BK[0] = True
    present_BK[-2] = torch.arange(classes) < 2
    present_BK[-1] = torch.arange(classes) == 1
    return weights_KC, prototypes_BKC * present_BK[:, :, None], present_BK


def slow_cosine(first, second):
    lengths = math.sqrt(sum(a * a for a in first)) * math.sqrt(sum(b * b for b in second))
    return sum(a * b for a, b in zip(first, second, strict=True)) / lengths


def slow_distance(weights, prototypes, present):
    """Written out for one image, from lists, class by class."""
    here = [k for k in range(len(weights)) if present[k]]
    if len(here) < 2:
        return math.nan
    moved = []
    for rows in (weights, prototypes):
        mean = [sum(rows[k][c] for k in here) / len(here) for c in range(len(rows[0]))]
        moved.append({k: [value - middle for value, middle in zip(rows[k], mean, strict=True)] for k in here})
    return 1 - sum(slow_cosine(moved[0][k], moved[1][k]) for k in here) / len(here)


def same(found, expected, tolerance=1e-5):
    return all(
        (math.isnan(a) and math.isnan(b)) or abs(a - b) < tolerance for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("seed", range(4))
def test_the_distance_is_the_formula_written_out(seed):
    weights_KC, prototypes_BKC, present_BK = made_up(seed)
    found = distance_to_shared(weights_KC, prototypes_BKC, present_BK).distance_B.tolist()
    expected = [slow_distance(weights_KC.tolist(), p.tolist(), q.tolist()) for p, q in zip(prototypes_BKC, present_BK)]
    assert same(found, expected)
    assert math.isnan(found[-1])


def test_a_perspective_is_at_no_distance_from_itself_and_at_the_largest_from_its_mirror_image():
    weights_KC, _, _ = made_up()
    everywhere = torch.ones(1, len(weights_KC), dtype=torch.bool)
    assert distance_to_shared(weights_KC, weights_KC[None], everywhere).distance_B.abs() < 1e-6
    assert (distance_to_shared(weights_KC, -weights_KC[None], everywhere).distance_B - 2).abs() < 1e-6


def test_what_changes_no_softmax_and_what_changes_its_temperature_only_leave_the_distance_as_it_is():
    weights_KC, prototypes_BKC, present_BK = made_up()
    before = distance_to_shared(weights_KC, prototypes_BKC, present_BK).distance_B
    after = distance_to_shared(5 * weights_KC + torch.randn(7), 0.1 * prototypes_BKC + torch.randn(7), present_BK)
    assert same(after.distance_B.tolist(), before.tolist())


def test_classes_that_an_image_does_not_have_play_no_part():
    weights_KC, prototypes_BKC, present_BK = made_up()
    before = distance_to_shared(weights_KC, prototypes_BKC, present_BK).distance_B
    changed = torch.where(present_BK[:, :, None], prototypes_BKC, torch.randn(7))
    assert same(distance_to_shared(weights_KC, changed, present_BK).distance_B.tolist(), before.tolist())
    moved_KC = weights_KC.clone()
    moved_KC[3] += 9.0  # the image before the last has classes 0 and 1 only
    assert same(distance_to_shared(moved_KC, prototypes_BKC, present_BK).distance_B[1:].tolist(), before[1:].tolist())


def test_the_cosines_are_those_of_the_distance_and_empty_where_a_class_is_absent():
    weights_KC, prototypes_BKC, present_BK = made_up()
    cosines_BKK = distance_to_shared(weights_KC, prototypes_BKC, present_BK).cosines_BKK
    found = distance_to_shared(weights_KC, prototypes_BKC, present_BK)
    assert torch.equal(cosines_BKK.isnan(), ~(present_BK[:, :, None] & present_BK[:, None]))
    assert torch.equal(found.cosines_BKK.nan_to_num(9), cosines_BKK.nan_to_num(9))
    row, column = centred(weights_KC[None], present_BK[:1])[0, 2], centred(prototypes_BKC[:1], present_BK[:1])[0, 4]
    assert float(cosines_BKK[0, 2, 4]) == pytest.approx(slow_cosine(row.tolist(), column.tolist()), abs=1e-6)


def test_rows_without_a_direction_have_a_cosine_of_zero_and_no_nan():
    equal_KC = torch.ones(3, 4)
    found = distance_to_shared(equal_KC, torch.randn(1, 3, 4), torch.ones(1, 3, dtype=torch.bool))
    assert found.distance_B.tolist() == [1.0]


def test_perspectives_of_another_space_are_refused_with_the_reason():
    weights_KC, prototypes_BKC, present_BK = made_up()
    with pytest.raises(ValueError, match=r"\(5, 6\).*without a projection head"):
        distance_to_shared(weights_KC[:, :6], prototypes_BKC, present_BK)
    with pytest.raises(ValueError, match=r"present is torch.float32.*expected torch.bool"):
        distance_to_shared(weights_KC, prototypes_BKC, present_BK.float())


def made_up_views(seed=0):
    generator = torch.Generator().manual_seed(seed)
    own_BKhw, shared_BKhw = (3 * torch.randn(3, 4, 2, 5, generator=generator) for _ in range(2))
    labels_Bhw = torch.randint(0, 4, (3, 2, 5), generator=generator)
    labels_Bhw[0, 0, :3] = 255
    labels_Bhw[0][labels_Bhw[0] == 2] = 0
    labels_Bhw[2] = 255
    _, present_BK = class_prototypes(own_BKhw, labels_Bhw, 4)
    present_BK[2] = True
    return own_BKhw, shared_BKhw, present_BK, labels_Bhw


@pytest.mark.parametrize("seed", range(3))
def test_views_are_compared_cell_by_cell_over_present_classes(seed):
    own_BKhw, shared_BKhw, present_BK, labels_Bhw = made_up_views(seed)
    found = compare_views(own_BKhw, shared_BKhw, present_BK, labels_Bhw)
    for b in range(2):
        here = [k for k in range(4) if present_BK[b, k]]
        total, differ, own_right, shared_right, cells = 0.0, 0, 0, 0, 0
        for y in range(2):
            for x in range(5):
                label = int(labels_Bhw[b, y, x])
                if label == 255:
                    continue
                own, shared = ([float(v[b, k, y, x]) for k in here] for v in (own_BKhw, shared_BKhw))
                own_sum, shared_sum = (math.log(sum(math.exp(s) for s in scores)) for scores in (own, shared))
                for s, t in zip(own, shared, strict=True):
                    total += math.exp(s - own_sum) * ((s - own_sum) - (t - shared_sum))
                first, second = here[own.index(max(own))], here[shared.index(max(shared))]
                differ, own_right = differ + (first != second), own_right + (first == label)
                shared_right, cells = shared_right + (second == label), cells + 1
        expected = [total / cells, differ / cells, own_right / cells, shared_right / cells]
        assert [float(value[b]) for value in found] == pytest.approx(expected, abs=1e-5)
    assert all(bool(value[2].isnan()) for value in found)  # no valid cell


def test_equal_views_do_not_differ_whatever_the_scores_of_absent_classes():
    own_BKhw, _, present_BK, labels_Bhw = made_up_views()
    other_BKhw = torch.where(present_BK[:, :, None, None], own_BKhw, 50.0) + 2.5  # a shift changes no softmax
    found = compare_views(own_BKhw, other_BKhw, present_BK, labels_Bhw)
    assert found.divergence_B[:2].abs().max() < 1e-5
    assert found.disagreement_B[:2].tolist() == [0.0, 0.0]
    assert torch.equal(found.own_right_B[:2], found.shared_right_B[:2])


def test_one_class_leaves_nothing_to_compare():
    own_BKhw, shared_BKhw, _, _ = made_up_views()
    labels_Bhw, present_BK = torch.ones(3, 2, 5, dtype=torch.int64), torch.zeros(3, 4, dtype=torch.bool)
    present_BK[:, 1] = True
    assert all(bool(value.isnan().all()) for value in compare_views(own_BKhw, shared_BKhw, present_BK, labels_Bhw))


def test_views_on_different_grids_are_refused():
    own_BKhw, shared_BKhw, present_BK, labels_Bhw = made_up_views()
    with pytest.raises(ValueError, match=r"own has shape .* but shared .*: they must agree"):
        compare_views(own_BKhw, shared_BKhw[..., :4], present_BK, labels_Bhw)


@given(st.integers(0, 10**6))
def test_an_images_scores_are_those_of_a_confusion_matrix_of_its_own(seed):
    generator = torch.Generator().manual_seed(seed)
    labels_BHW = torch.randint(0, 4, (3, 4, 5), generator=generator)
    labels_BHW[torch.rand(3, 4, 5, generator=generator) < 0.2] = 255
    predictions_BHW = torch.randint(0, 5, (3, 4, 5), generator=generator)
    found = image_scores(predictions_BHW, labels_BHW, 5)
    for b in range(3):
        matrix = ConfusionMatrix(5)
        matrix.update(predictions_BHW[b], labels_BHW[b])
        expected = scores(matrix.matrix_KK)
        in_labels = matrix.matrix_KK.sum(1) > 0
        assert float(found.miou_B[b]) == pytest.approx(float(expected.iou[in_labels].mean()))
        assert float(found.right_B[b]) == pytest.approx(expected.aacc)
        assert int(found.valid_B[b]) == int(matrix.matrix_KK.sum())


def test_an_image_without_a_valid_pixel_has_no_score():
    found = image_scores(torch.zeros(1, 2, 2, dtype=torch.int64), torch.full((1, 2, 2), 255), 3)
    assert found.miou_B.isnan().all()
    assert found.right_B.isnan().all()
    assert found.valid_B.tolist() == [0]


def test_predictions_and_labels_out_of_range_are_errors():
    labels_BHW = torch.zeros(1, 2, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"predictions hold .*expected 0\.\.2"):
        image_scores(labels_BHW + 3, labels_BHW, 3)
    with pytest.raises(ValueError, match=r"labels hold .*expected 0\.\.2"):
        image_scores(labels_BHW, labels_BHW + 7, 3)
