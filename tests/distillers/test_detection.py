"""Distillation between detectors equals a slow second version, and holds what must always be true of it."""

import pytest
import slow_detection as slow
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils._pytree import tree_map_only

from apd import DIST, FitNet, PixelKD
from apd.distillers.apd import RoIAPD, dense_apd
from apd.distillers.base import LEVELS, DetectorPair, DetectorView
from apd.distillers.on_detectors import (
    OnPyramid,
    OnRoIs,
    ReviewKD,
    hierarchical_context_loss,
    pyramid_matching,
    roi_dkd,
    roi_kd,
)

GRIDS = {"0": (12, 16), "1": (6, 8), "2": (3, 4), "3": (2, 2), "pool": (1, 1)}
COUNTS = (7, 4)  # boxes of the two images
CLASSES = 3


def boxes(values: list[torch.Tensor]) -> torch.Tensor:
    return pad_sequence(values, batch_first=True).mT.unsqueeze(2)


class Lists:
    """A pair's tensors as the slow version wants them, and the pair."""

    def __init__(self, seed: int = 0, *, student_channels: int = 5, teacher_channels: int = 6) -> None:
        self.random = torch.Generator().manual_seed(seed)
        sizes = {"student": student_channels, "teacher": teacher_channels}
        self.labels = [torch.tensor([0, 2, 0, 3, 2, 0, 0]), torch.tensor([0, 1, 0, 0])]
        self.vectors = {net: [self.draw(n, channels) for n in COUNTS] for net, channels in sizes.items()}
        self.logits = {net: [self.draw(n, CLASSES + 1) for n in COUNTS] for net in sizes}
        self.pyramids = {
            net: {level: self.draw(2, channels, *grid) for level, grid in GRIDS.items()}
            for net, channels in sizes.items()
        }
        for net_values in (*self.vectors["student"], *self.logits["student"], *self.pyramids["student"].values()):
            net_values.requires_grad_()
        self.class_map = torch.randint(0, CLASSES + 1, (2, 48, 64), generator=self.random)
        self.inside = torch.zeros(2, 48, 64, dtype=torch.int64)
        self.inside[1, :, 40:] = -1
        self.class_map[1, :, 40:] = -1

    def draw(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.random, dtype=torch.float64)

    @property
    def pair(self) -> DetectorPair:
        labels = pad_sequence(self.labels, batch_first=True, padding_value=-1).unsqueeze(1)
        views = (
            DetectorView(self.pyramids[net], boxes(self.vectors[net]), boxes(self.logits[net]), [(48, 64), (48, 40)])
            for net in ("student", "teacher")
        )
        return DetectorPair(*views, labels, self.class_map, self.inside)


def make(name: str, student_channels: int = 5) -> torch.nn.Module:
    return {
        "roi_kd": lambda: roi_kd(temperature=2.0),
        "roi_dkd": lambda: roi_dkd(temperature=2.0),
        "roi_apd": lambda: RoIAPD(student_channels, 6, CLASSES, width=4),
        "dense_apd": lambda: dense_apd(student_channels, 6, CLASSES, levels=("0", "1"), width=4),
        "pyramid_matching": lambda: pyramid_matching(student_channels, 6),
        "review_kd": lambda: ReviewKD(student_channels, 6, width=4),
    }[name]().double()


every_method = pytest.mark.parametrize(
    "name", ["roi_kd", "roi_dkd", "roi_apd", "dense_apd", "pyramid_matching", "review_kd"]
)


def projected(head: torch.nn.Module, vectors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [head(value.mT[None, :, None]).squeeze(2)[0].mT for value in vectors]


# ---------------------------------------------------------------- the slow version


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_roi_kd_and_roi_dkd_are_the_slow_ones(temperature):
    lists = Lists()
    logits = lists.logits["student"], lists.logits["teacher"]
    wanted = slow.kd(*logits, temperature=temperature)
    out = roi_kd(temperature=temperature, weight=0.5)(lists.pair)
    torch.testing.assert_close(out, {"pixel_kd": wanted, "loss": 0.5 * wanted})
    wanted = slow.dkd(*logits, lists.labels, temperature=temperature)
    out = roi_dkd(temperature=temperature)(lists.pair)
    torch.testing.assert_close(out, wanted | {"loss": wanted["target"] + 0.25 * wanted["non_target"]})


@pytest.mark.parametrize("width", [4, None])
def test_roi_apd_is_the_slow_one_in_value_and_gradient(width):
    lists = Lists(student_channels=6)
    module = RoIAPD(6, 6, CLASSES, width=width, weights={"regularisation": 2.0 if width else 0.0}).double()
    out = module(lists.pair)
    wanted = slow.roi_apd(
        projected(module.student_head, lists.vectors["student"]),
        projected(module.teacher_head, lists.vectors["teacher"]),
        lists.labels,
    ) | {"pixel_kd": slow.kd(lists.logits["student"], lists.logits["teacher"])}
    if width is None:
        del wanted["regularisation"]
    weights = {"regularisation": 2.0, "alignment": 10.0, "observation": 1.0, "pixel_kd": 1.0}
    wanted["loss"] = sum(weights[name] * value for name, value in wanted.items())
    torch.testing.assert_close(out, wanted)
    leaves = [*lists.vectors["student"], *lists.logits["student"], *module.parameters()]
    ours = torch.autograd.grad(out["loss"], leaves)
    theirs = torch.autograd.grad(wanted["loss"], leaves)
    torch.testing.assert_close(ours, theirs)


def test_dense_apd_is_the_segmentation_loss_on_each_level():
    lists = Lists()
    module = make("dense_apd")
    out = module(lists.pair)
    per_level = [
        module.distillers[level](
            student_features=lists.pyramids["student"][level],
            teacher_features=lists.pyramids["teacher"][level],
            labels=lists.class_map,
        )
        for level in ("0", "1")
    ]
    assert list(out) == ["regularisation", "alignment", "observation", "loss"]
    for name, value in out.items():
        torch.testing.assert_close(value, (per_level[0][name] + per_level[1][name]) / 2)
    assert module.distillers["0"].student_head is not module.distillers["1"].student_head


def test_feature_matching_is_the_slow_one_and_covers_the_insides_of_images_only():
    lists, module = Lists(), make("pyramid_matching")
    adapters = [module.distillers[level].adapter.weight[:, :, 0, 0] for level in LEVELS]
    nets = [list(lists.pyramids[net].values()) for net in ("student", "teacher")]
    torch.testing.assert_close(module(lists.pair)["fitnet"], slow.feature_matching(*nets, adapters, lists.inside))


@pytest.mark.parametrize("grid", [(12, 16), (5, 7), (4, 9), (3, 2), (1, 1)])
def test_the_hierarchical_context_loss_is_the_slow_one(grid):
    student, teacher = (torch.randn(2, 3, *grid, dtype=torch.float64) for _ in range(2))
    torch.testing.assert_close(hierarchical_context_loss(student, teacher), slow.hierarchical_context(student, teacher))
    assert hierarchical_context_loss(student, student) == 0


def test_review_kd_is_the_slow_one():
    lists, module = Lists(), make("review_kd")
    parts = []
    for level in LEVELS:
        review = module.reviews[level]
        part = {"reduced": review.reduced[0].weight, "out": review.out[0].weight}
        if review.shares is not None:
            part |= {"shares": review.shares.weight, "shares_bias": review.shares.bias}
        parts.append(part)
    assert ["shares" in part for part in parts] == [True, True, True, True, False]
    nets = [list(lists.pyramids[net].values()) for net in ("student", "teacher")]
    torch.testing.assert_close(module(lists.pair)["review_kd"], slow.review_kd(*nets, parts))


# ---------------------------------------------------------------- what must always be true


@every_method
def test_student_and_every_parameter_get_a_gradient_and_the_teacher_none(name):
    lists, module = Lists(), make(name)
    nets = [[*lists.vectors[n], *lists.logits[n], *lists.pyramids[n].values()] for n in ("student", "teacher")]
    for value in nets[1]:
        value.requires_grad_()
    out = module(lists.pair)
    assert 0 < out["loss"] < torch.inf
    out["loss"].backward()
    student, teacher = ([value.grad is not None and bool(value.grad.any()) for value in net] for net in nets)
    assert any(student)
    assert not any(teacher)
    sides = [*module.student_parameters(), *module.teacher_parameters()]
    assert {id(p) for p in sides} == {id(p) for p in module.parameters()}
    assert len(sides) == len(list(module.parameters()))
    assert all(parameter.grad is not None for parameter in sides)


@pytest.mark.parametrize("name", ["roi_kd", "roi_dkd", "roi_apd", "dense_apd", "pyramid_matching"])
def test_equal_nets_with_equal_heads_or_no_adapter_cost_nothing_but_the_teachers_own_training(name):
    lists, module = Lists(student_channels=6), make(name, student_channels=6)
    for part in module.modules():
        if hasattr(part, "student_head"):
            part.student_head.load_state_dict(part.teacher_head.state_dict())
        if hasattr(part, "adapter"):
            torch.nn.init.dirac_(part.adapter.weight)
    pair = lists.pair._replace(student=lists.pair.teacher)
    with torch.no_grad():
        out = module(pair)
    assert all(value.abs() < 1e-12 for term, value in out.items() if term not in ("regularisation", "loss"))


@pytest.mark.parametrize("name", ["roi_kd", "roi_dkd", "roi_apd", "dense_apd", "pyramid_matching"])
def test_without_a_box_or_a_pixel_everything_is_a_connected_zero(name):  # ReviewKD compares whole maps
    lists, module = Lists(), make(name)
    pair = lists.pair
    pair = pair._replace(
        labels_B1N=torch.full_like(pair.labels_B1N, -1),
        class_map_BHW=torch.full_like(pair.class_map_BHW, -1),
        inside_BHW=torch.full_like(pair.inside_BHW, -1),
    )
    out = module(pair)
    assert all(value == 0 for value in out.values())
    out["loss"].backward()
    assert all(not parameter.grad.any() for parameter in module.parameters())


def test_images_of_background_alone_teach_of_it_alone():
    lists = Lists()
    lists.labels = [torch.zeros(n, dtype=torch.int64) for n in COUNTS]
    out = make("roi_apd")(lists.pair)
    assert out["observation"] == 0  # one class: every box is seen alike through either perspective
    assert out["alignment"] > 0


@every_method
def test_half_precision_is_computed_in_single(name):
    lists, module = Lists(), make(name).float()

    def cast(pair, dtype):
        return tree_map_only(
            lambda v: isinstance(v, torch.Tensor) and v.is_floating_point(), lambda v: v.to(dtype), pair
        )

    coarse = cast(lists.pair, torch.bfloat16)
    exact = module(cast(coarse, torch.float32))["loss"]
    assert torch.equal(module(coarse)["loss"], exact)
    with torch.autocast("cpu", torch.bfloat16):
        half = module(coarse)["loss"]
    assert half.dtype == torch.float32
    # a network of convolutions, ReviewKD's, may run in half precision, the comparison of its maps may not
    torch.testing.assert_close(half, exact, rtol=2e-2 if name == "review_kd" else 1e-5, atol=1e-6)


# ---------------------------------------------------------------- wrong input


def test_any_distiller_of_pixels_works_on_boxes_and_on_the_pyramid():
    lists = Lists()
    assert OnRoIs(DIST(ignore_index=-1))(lists.pair)["loss"] > 0
    fitnet = OnPyramid(lambda: FitNet(5, 6, CLASSES + 1, ignore_index=-1).double(), levels=("1",))
    assert fitnet(lists.pair)["loss"] > 0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: OnRoIs(PixelKD()), "PixelKD has ignore_index=255: construct it with ignore_index=-1"),
        (lambda: OnPyramid(lambda: FitNet(5, 6, 4), levels=("1",)), "FitNet has ignore_index=255"),
        (lambda: OnPyramid(lambda: None, levels=()), r"levels=\(\): expected one or several of 0, 1, 2, 3, pool"),
        (lambda: OnPyramid(lambda: None, levels=("1", "1")), "each once"),
        (lambda: OnPyramid(lambda: None, levels=("1",), labels="boxes"), "labels='boxes': expected one of 'classes'"),
        (lambda: dense_apd(5, 6, 3, levels=("4",)), r"levels=\('4',\)"),
        (lambda: dense_apd(5, 6, 3, weights={"pixel_kd": 1.0}), r"a pyramid has no logits; add roi_kd\(\)"),
        (lambda: dense_apd(5, 6, 3, width=None), "width=None needs equal channels"),
        (lambda: RoIAPD(5, 6, 3, width=None), "width=None needs equal channels, got student_channels=5"),
        (lambda: RoIAPD(0, 6, 3), "student_channels=0: expected a positive integer"),
        (lambda: RoIAPD(5, 6, 3, scale=0), "scale=0: expected a positive number"),
        (lambda: RoIAPD(5, 6, 3, weights={"observations": 1}), "did you mean 'observation'"),
        (lambda: ReviewKD(5, 6, levels=("1", "0")), r"levels = \('1', '0'\): expected some of .* in this order"),
        (lambda: ReviewKD(5, 6, weight=0), "ReviewKDConfig.weight = 0.0: expected a number > 0"),
    ],
)
def test_wrong_settings_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("build", "change", "message"),
    [
        ("dense_apd", {"image_sizes": [(96, 128), (96, 80)]}, "build both with the same min_size and max_size"),
        ("review_kd", {"image_sizes": [(96, 128), (96, 80)]}, "build both with the same min_size and max_size"),
        ("dense_apd", {"pyramid": ("0", "pool")}, "the teacher's pyramid has no level 1: it has 0, pool"),
        ("review_kd", {"pyramid": ("0", "pool")}, "the teacher's pyramid has no level 1, 2, 3: it has 0, pool"),
        ("dense_apd", {"class_map_BHW": None}, "the targets have no class_map"),
        ("roi_apd", {}, "the student's vectors have 5 channels: expected 7"),
        ("review_kd", {}, "the student's pyramid has 5 channels: expected 7"),
    ],
)
def test_wrong_views_are_named(build, change, message):
    pair = Lists().pair
    if "pyramid" in change:
        change = {"pyramid": {level: pair.teacher.pyramid[level] for level in change["pyramid"]}}
    teacher = pair.teacher._replace(**{k: v for k, v in change.items() if k != "class_map_BHW"})
    pair = pair._replace(teacher=teacher, class_map_BHW=change.get("class_map_BHW", pair.class_map_BHW))
    with pytest.raises(ValueError, match=message):
        make(build, student_channels=5 if change else 7)(pair)


def test_boxes_need_no_common_size_but_common_classes_and_maps_one_shape():
    pair = Lists().pair
    misplaced = pair._replace(teacher=pair.teacher._replace(image_sizes=[(96, 128), (96, 80)]))
    assert make("roi_apd")(misplaced)["loss"] > 0  # boxes are where they are in each
    coarse = {level: pair.teacher.pyramid[level] for level in ("0", "pool")}
    for name, lacking in (("dense_apd", "1"), ("review_kd", "1, 2, 3")):
        with pytest.raises(ValueError, match=f"the teacher's pyramid has no level {lacking}: it has 0, pool"):
            make(name)(pair._replace(teacher=pair.teacher._replace(pyramid=coarse)))
    with pytest.raises(ValueError, match="the targets have no class_map"):
        make("dense_apd")(pair._replace(class_map_BHW=None))
    with pytest.raises(ValueError, match=r"student_features has 5 channels .*: expected 7"):
        make("roi_apd", student_channels=7)(pair)
    with pytest.raises(ValueError, match=r"student_logits has 4 channels .*: expected 6, the num_classes"):
        RoIAPD(5, 6, 5)(pair)
    with pytest.raises(ValueError, match=r"student_features has 5 channels .*: expected 7"):
        make("review_kd", student_channels=7)(pair)
    with pytest.raises(ValueError, match=r"student has shape \(1, 2, 3, 3\) but teacher \(1, 2, 4, 4\)"):
        hierarchical_context_loss(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 4, 4))
