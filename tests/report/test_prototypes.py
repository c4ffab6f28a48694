"""Figures and tables of own perspectives: what they show is what they were given, and they say when nothing was."""

import pytest
import torch
from made_up_evidence import made_up_evidence
from page_blocks import data_of
from torch import nn

from apd import APDLoss, class_prototypes, observe, resize_labels
from apd.data.scenes import Scenes
from apd.data.specs import SCENES
from apd.models.segmenter import SegOutput
from apd.report.correlations import per_image, relation, seeds_agree
from apd.report.figures import prototypes as figures
from apd.report.perspectives import Trace, pairwise_cosine

SAMPLE = Scenes(1, height=48, width=64, context_shift=0.5, seed=0, split="val")[0]


def unit(*shape, seed=0):
    return nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.fixture(scope="module")
def trace():
    present_BK = torch.ones(3, 10, dtype=torch.bool)
    present_BK[1, 4] = present_BK[2, :5] = False
    absent = ~present_BK[:, :, None]
    teacher, student, aligned = (unit(6, 3, 10, 8, seed=i).masked_fill(absent, 0) for i in range(3))
    untrained = unit(3, 10, 8, seed=4).masked_fill(absent, 0)
    return Trace([0, 10, 20, 30, 40, 50], present_BK, teacher, student, untrained, aligned, None, None)


def test_the_plane_keeps_most_of_what_two_directions_can():
    rows_BKD, present_BK = unit(4, 6, 5), torch.ones(4, 6, dtype=torch.bool)
    present_BK[0, 0] = False
    mean_D, directions_D2, kept = figures.plane_of(rows_BKD, present_BK)
    away_ND = rows_BKD[present_BK].double() - mean_D
    assert torch.allclose(away_ND.mean(0), torch.zeros(5, dtype=torch.float64))
    assert torch.allclose(directions_D2.T @ directions_D2, torch.eye(2, dtype=torch.float64), atol=1e-9)
    assert kept == pytest.approx(float((away_ND @ directions_D2).square().sum() / away_ND.square().sum()))
    lengths = torch.linalg.eigvalsh(away_ND.T @ away_ND)
    assert kept == pytest.approx(float(lengths[-2:].sum() / lengths.sum()))


def test_every_present_prototype_of_both_networks_is_drawn_at_four_moments(trace):
    shown = figures.prototype_plane(trace, SCENES)
    assert "steps 0, 10, 20, 50" in shown.description
    assert all(f">step {step}<" in shown.html for step in (0, 10, 20, 50))
    assert shown.html.count("<use ") + shown.html.count("<path ") > 4 * 2 * int(trace.present_BK.sum())


def test_the_collapse_figure_has_the_first_and_the_last_mean(trace):
    said = figures.apart_over_steps(trace).description
    for name, prototypes in (
        ("regularisation trains the head", trace.teacher_SBKD),
        ("alignment trains the head", trace.aligned_SBKD),
        ("nothing trains the head", trace.untrained_BKD[None].expand(6, -1, -1, -1)),
    ):
        mean = pairwise_cosine(prototypes, trace.present_BK).nanmean(1)
        assert f"{name}: {float(mean[0]):.2f} to {float(mean[-1]):.2f}" in said


class Fixed(nn.Module):
    """A network whose features are the same for every image."""

    def __init__(self, channels, seed):
        super().__init__()
        self.features = nn.Parameter(torch.randn(1, channels, 12, 16, generator=torch.Generator().manual_seed(seed)))
        self.classifier = nn.Conv2d(channels, 10, 1)

    def forward(self, images):
        features = self.features.expand(len(images), -1, -1, -1)
        return SegOutput(self.classifier(features), features, None)


def test_an_image_is_seen_by_both_networks_through_both_perspectives():
    networks = {"teacher": Fixed(6, 0).eval(), "student": Fixed(4, 1).eval()}
    apd = APDLoss(4, 6, 10, width=8, scale=7.0).eval()
    shown = figures.shared_and_own(networks, apd, SAMPLE, SCENES, SCENES.index("road"))
    labels_1hw = resize_labels(SAMPLE.labels_HW[None].long(), (12, 16))
    valid_hw, data = labels_1hw[0] != 255, data_of(shown)
    assert data["views"][0]["labels"] == torch.where(valid_hw, labels_1hw[0], -1).flatten().tolist()
    expected = {}
    with torch.no_grad():
        for who, network in networks.items():
            projected = getattr(apd, f"{who}_head")(network.features)
            prototypes, present = class_prototypes(projected, labels_1hw, 10)
            expected[f"{who}, shared perspective"] = network.classifier(network.features)
            expected[f"{who}, own perspective"] = observe(projected, prototypes, present, scale=7.0)
    assert [view["name"] for view in data["views"][1:]] == list(expected)
    for view, scores in zip(data["views"][1:], expected.values(), strict=True):
        probability, called = scores.masked_fill(~present[..., None, None], -1e4).softmax(1)[0].max(0)
        assert view["labels"] == called.flatten().tolist()
        assert view["scores"] == pytest.approx((100 * probability).flatten().tolist(), abs=0.51)
        right = ((called == labels_1hw[0]) & valid_hw).sum() / valid_hw.sum()
        assert f"{view['name']} ({100 * float(right):.0f} % of cells right)" in shown.description
    assert shown.html.count("<img") == 15


def test_the_table_has_every_correlation_and_what_follows_from_it():
    images = per_image([made_up_evidence(shift, seed) for shift in (0.0, 0.5, 1.0) for seed in range(3)])
    found = relation(images[0])
    table = figures.relation_table(images)
    assert table.html.count("<tr") == 1 + 3
    (line,) = [line for line in table.description.splitlines() if line.startswith("context shift 0 ")]
    for expected in (found.over_images, found.over_seeds, (seeds_agree(images[0]), float("nan"), 0)):
        assert figures.coefficient(expected) in line
    assert figures.RELATIONS[found.verdict] in line.split()


def test_a_coefficient_has_its_sign_and_zero_none_and_one_seed_gives_no_nan():
    assert figures.coefficient((0.126, -0.5, 0.004)) == "+0.13\u00a0[−0.50,\u00a00.00]"
    assert figures.coefficient((float("nan"),) * 3) == "–"
    assert "nan" not in str(figures.relation_table(per_image([made_up_evidence(1.0, 0)])))
