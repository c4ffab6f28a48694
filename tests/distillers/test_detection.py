"""Distillation between detectors equals the slow references, and holds what must always be true of it."""

import pytest
import slow_methods
import slow_reference as slow
import torch
from torch.utils._pytree import tree_map_only

from apd.distillers import on_detectors
from apd.distillers.apd import RoIAPD, dense_apd
from apd.distillers.base import LEVELS, DetectorPair, DetectorView
from apd.distillers.on_detectors import ReviewKD, pyramid_matching, roi_dkd, roi_kd

GRIDS = dict(zip(LEVELS, [(12, 16), (6, 8), (3, 4), (2, 2), (1, 1)], strict=True))
CLASSES = 3
METHODS = {
    "roi_kd": lambda channels: roi_kd(temperature=2.0),
    "roi_dkd": lambda channels: roi_dkd(temperature=2.0),
    "roi_apd": lambda channels: RoIAPD(channels, 6, CLASSES, width=4),
    "dense_apd": lambda channels: dense_apd(channels, 6, CLASSES, levels=("0", "1"), width=4),
    "pyramid_matching": lambda channels: pyramid_matching(channels, 6),
    "review_kd": lambda channels: ReviewKD(channels, 6, width=4),
}
every_method = pytest.mark.parametrize("name", METHODS)
LARGER, FEW = {"image_sizes": [(96, 128), (96, 80)]}, {"pyramid": {"0": None, "pool": None}}


def make(name, student_channels=5):
    return METHODS[name](student_channels).double()


def make_pair(student_channels=5):
    """Views of two images of 7 and 4 boxes, the second image narrower than the first."""
    labels = torch.tensor([[[0, 2, 0, 3, 2, 0, 0]], [[0, 1, 0, 0, -1, -1, -1]]])
    are_boxes = (labels >= 0)[:, None]

    def view(channels, *, trained):
        pyramid = {level: torch.randn(2, channels, *grid).double() for level, grid in GRIDS.items()}
        vectors, logits = (torch.randn(2, width, 1, 7).double() * are_boxes for width in (channels, CLASSES + 1))
        for value in (*pyramid.values(), vectors, logits):
            value.requires_grad_(trained)
        return DetectorView(pyramid, vectors, logits, [(48, 64), (48, 40)])

    class_map = torch.randint(0, CLASSES + 1, (2, 48, 64))
    inside = torch.zeros_like(class_map)
    inside[1, :, 40:] = class_map[1, :, 40:] = -1
    return DetectorPair(view(student_channels, trained=True), view(6, trained=False), labels, class_map, inside)


def maps_of(view):
    return [*view.pyramid.values(), view.vectors_BC1N, view.logits_BK1N]


def for_slow(labels):
    return torch.where(labels < 0, slow.IGNORED, labels)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_roi_kd_and_roi_dkd_are_the_slow_ones(temperature):
    pair = make_pair()
    boxes = pair.student.logits_BK1N, pair.teacher.logits_BK1N, for_slow(pair.labels_B1N)
    wanted = slow.pixel_kd(*boxes, temperature=temperature)
    out = roi_kd(temperature=temperature, weight=0.5)(pair)
    torch.testing.assert_close(out, {"pixel_kd": wanted, "loss": 0.5 * wanted})
    wanted = slow_methods.dkd(*boxes, temperature=temperature)
    out = roi_dkd(temperature=temperature)(pair)
    torch.testing.assert_close(out, wanted | {"loss": wanted["target"] + 0.25 * wanted["non_target"]})


@pytest.mark.parametrize("width", [4, None])
def test_roi_apd_is_the_slow_one_in_value_and_gradient_with_objects_and_background_apart(width):
    pair = make_pair(student_channels=6)
    weights = {"regularisation": 2.0 if width else 0.0, "alignment": 10.0, "observation": 1.0, "pixel_kd": 1.0}
    module = RoIAPD(6, 6, CLASSES, width=width, weights={"regularisation": weights["regularisation"]}).double()
    labels, nowhere = for_slow(pair.labels_B1N), (pair.labels_B1N < 0)[:, None]
    student = module.student_head(pair.student.vectors_BC1N + nowhere)  # anything that has a direction
    teacher = module.teacher_head(pair.teacher.vectors_BC1N + nowhere)
    counted = (lambda label: label > 0), (lambda label: label == 0)
    wanted = {
        "regularisation": slow.regularisation(teacher, labels, num_classes=CLASSES + 1),
        "alignment": slow.alignment(student, teacher, labels),
        "observation": sum(slow.observation(student, teacher, labels, counted=some) for some in counted) / 2,
        "pixel_kd": slow.pixel_kd(pair.student.logits_BK1N, pair.teacher.logits_BK1N, labels),
    }
    wanted = {name: value for name, value in wanted.items() if weights[name]}
    wanted["loss"] = sum(weights[name] * value for name, value in wanted.items())
    out = module(pair)
    torch.testing.assert_close(out, wanted)
    leaves = [*maps_of(pair.student)[-2:], *module.parameters()]
    torch.testing.assert_close(*(torch.autograd.grad(values["loss"], leaves) for values in (out, wanted)))


def test_dense_apd_is_the_segmentation_loss_on_each_level_and_the_mean_over_levels():
    pair, module = make_pair(), make("dense_apd")
    out = module(pair)
    nets = {"student_features": pair.student.pyramid, "teacher_features": pair.teacher.pyramid}
    per_level = [
        distiller(**{name: pyramid[level] for name, pyramid in nets.items()}, labels=pair.class_map_BHW)
        for level, distiller in module.distillers.items()
    ]
    assert (list(out), len(per_level)) == (["regularisation", "alignment", "observation", "loss"], 2)
    torch.testing.assert_close(out, {name: (per_level[0][name] + per_level[1][name]) / 2 for name in out})
    assert module.distillers["0"].student_head is not module.distillers["1"].student_head


def test_feature_matching_is_the_slow_one_and_covers_the_insides_of_images_only():
    pair, module, levels = make_pair(), make("pyramid_matching"), []
    for level in LEVELS:
        maps, adapter = [view.pyramid[level] for view in pair[:2]], module.distillers[level].adapter.weight
        levels.append(slow_methods.fitnet(*maps, for_slow(pair.inside_BHW), adapter=(adapter, None))["fitnet"])
    torch.testing.assert_close(module(pair)["fitnet"], torch.stack(levels).mean())


@pytest.mark.parametrize("grid", [(12, 16), (5, 7), (4, 9), (3, 2), (1, 1)])
def test_the_hierarchical_context_loss_is_the_slow_one(grid):
    student, teacher = (torch.randn(2, 3, *grid, dtype=torch.float64) for _ in range(2))
    wanted = slow_methods.hierarchical_context(student, teacher)
    torch.testing.assert_close(on_detectors.hierarchical_context_loss(student, teacher), wanted)


def test_review_kd_is_the_slow_one():
    pair, module = make_pair(), make("review_kd")
    levels = pair.student.pyramid.values(), pair.teacher.pyramid.values(), [module.reviews[level] for level in LEVELS]
    torch.testing.assert_close(module(pair)["review_kd"], slow_methods.review_kd(*levels))


@every_method
def test_student_and_every_parameter_get_a_gradient_and_the_teacher_none(name):
    pair, module = make_pair(), make(name)
    for value in maps_of(pair.teacher):
        value.requires_grad_()
    out = module(pair)
    assert 0 < out["loss"] < torch.inf
    out["loss"].backward()
    assert any(value.grad is not None and value.grad.any() for value in maps_of(pair.student))
    assert not any(value.grad is not None and value.grad.any() for value in maps_of(pair.teacher))
    sides = [*module.student_parameters(), *module.teacher_parameters()]
    assert sorted(map(id, sides)) == sorted(map(id, module.parameters()))
    assert all(parameter.grad is not None for parameter in sides)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "review_kd"])  # which compares whole maps
def test_without_a_box_or_a_pixel_everything_is_a_connected_zero(name):
    pair, module = make_pair(), make(name)
    labels = ("labels_B1N", "class_map_BHW", "inside_BHW")
    out = module(pair._replace(**{which: torch.full_like(getattr(pair, which), -1) for which in labels}))
    assert all(value == 0 for value in out.values())
    out["loss"].backward()
    assert all(not parameter.grad.any() for parameter in module.parameters())


@every_method
def test_half_precision_is_computed_in_single(name):
    module = make(name).float()

    def cast(pair, dtype):
        return tree_map_only(torch.Tensor, lambda v: v.to(dtype) if v.is_floating_point() else v, pair)

    coarse = cast(make_pair(), torch.bfloat16)
    exact = module(cast(coarse, torch.float32))["loss"]
    assert torch.equal(module(coarse)["loss"], exact)
    with torch.autocast("cpu", torch.bfloat16):
        half = module(coarse)["loss"]
    assert half.dtype == torch.float32
    # a network of convolutions, ReviewKD's, may run in half precision, the comparison of its maps may not
    torch.testing.assert_close(half, exact, rtol=2e-2 if name == "review_kd" else 1e-5, atol=1e-6)


@every_method
def test_a_student_without_gradient_is_refused_in_training_only_and_maps_that_are_not_finite_always(name):
    pair, module = make_pair(), make(name)
    frozen = tree_map_only(torch.Tensor, torch.Tensor.detach, pair)
    with pytest.raises(ValueError, match=r"student_\w+ does not require a gradient"):
        module(frozen)
    assert module.eval()(frozen)["loss"].isfinite()
    for side in ("student", "teacher"):
        broken = tree_map_only(torch.Tensor, lambda value: value * torch.nan, getattr(pair, side))
        with pytest.raises(ValueError, match=rf"{side}_\w+ holds NaN"):
            module(pair._replace(**{side: broken}))


@pytest.mark.parametrize("name", ["dense_apd", "pyramid_matching", "review_kd"])
def test_beside_a_cpu_too_every_level_is_read_in_the_first_call(name, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "is_cpu", property(lambda _: False))
    pair = make_pair()
    for level in LEVELS[:2]:
        broken = pair.teacher.pyramid | {level: pair.teacher.pyramid[level] * torch.nan}
        with pytest.raises(ValueError, match="teacher_features holds NaN"):
            make(name)(pair._replace(teacher=pair.teacher._replace(pyramid=broken)))


@pytest.mark.parametrize(
    ("module", "change", "teachers", "message"),
    [
        (make("dense_apd"), {}, LARGER, "build both with the same min_size and max_size"),
        (make("review_kd"), {}, FEW, "the teacher's pyramid has no level 1, 2, 3: it has 0, pool"),
        (make("dense_apd"), {"class_map_BHW": None}, {}, "the targets have no class_map"),
        (make("roi_apd", student_channels=7), {}, {}, "student_features has 5 channels .*: expected 7"),
        (make("review_kd", student_channels=7), {}, {}, "student_features has 5 channels .*: expected 7"),
        (RoIAPD(5, 6, 5), {}, {}, "student_logits has 4 channels .*: expected 6, the num_classes"),
    ],
)
def test_wrong_views_are_named(module, change, teachers, message):
    pair = make_pair()
    pair = pair._replace(teacher=pair.teacher._replace(**teachers), **change)
    with pytest.raises(ValueError, match=message):
        module(pair)
    if teachers is LARGER:
        assert make("roi_apd")(pair)["loss"] > 0  # boxes are where they are in each
