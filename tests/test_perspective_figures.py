"""Figures and sentences on perspectives: what they say is what they were given, and they say when there is nothing."""

import json
import re

import pytest
import torch
from made_up_evidence import made_up_evidence
from torch import nn

from apd import APDLoss, class_prototypes, observe, resize_labels
from apd.data.scenes import Scenes
from apd.data.specs import SCENES
from apd.models.segmenter import SegOutput
from apd.report.correlations import per_image, relations, seeds_agree
from apd.report.evidence import Evidence
from apd.report.figures import perspective
from apd.report.figures.perspective_evidence import (
    coefficient,
    evidence_table,
    gain_by_distance,
    relation_table,
    relation_words,
    revealed_words,
)
from apd.report.figures.prototypes import apart_over_steps, plane_of, prototype_plane
from apd.report.statistics import paired_difference
from apd.report.trace import Trace, pairwise_cosine

DATA = Scenes(2, height=48, width=64, context_shift=0.5, seed=0, split="val")


def unit(*shape, seed=0):
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return nn.functional.normalize(rows, dim=-1)


@pytest.fixture(scope="module")
def trace():
    present_BK = torch.ones(3, 10, dtype=torch.bool)
    present_BK[1, 4] = present_BK[2, :5] = False
    absent = ~present_BK[:, :, None]
    teacher, student, aligned = (unit(6, 3, 10, 8, seed=i).masked_fill(absent, 0) for i in range(3))
    untrained = unit(3, 10, 8, seed=4).masked_fill(absent, 0)
    return Trace([0, 10, 20, 30, 40, 50], present_BK, teacher, student, untrained, aligned, None, None)


@pytest.fixture(scope="module")
def images():
    return per_image([made_up_evidence(shift, seed) for shift in (0.0, 0.5, 1.0) for seed in range(3)])


def marks_of(shown):
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', shown.html, re.DOTALL)[1])


def test_the_plane_keeps_most_of_what_two_directions_can():
    rows_BKD, present_BK = unit(4, 6, 5), torch.ones(4, 6, dtype=torch.bool)
    present_BK[0, 0] = False
    mean_D, directions_D2, kept = plane_of(rows_BKD, present_BK)
    rows_ND = rows_BKD[present_BK].double()
    assert torch.allclose(mean_D, rows_ND.mean(0))
    assert torch.allclose(directions_D2.T @ directions_D2, torch.eye(2, dtype=torch.float64), atol=1e-9)
    spread = (rows_ND - mean_D).square().sum()
    assert kept == pytest.approx(float(((rows_ND - mean_D) @ directions_D2).square().sum() / spread))
    lengths = torch.linalg.eigvalsh((rows_ND - mean_D).T @ (rows_ND - mean_D))
    assert kept == pytest.approx(float(lengths[-2:].sum() / lengths.sum()))
    with pytest.raises(ValueError, match="2 prototypes: expected at least 3"):
        plane_of(rows_BKD[:1, :2], torch.ones(1, 2, dtype=torch.bool))


def test_every_present_prototype_of_both_networks_can_be_pointed_at_at_every_moment(trace):
    shown = prototype_plane(trace, SCENES, ["A", "B", "C"])
    data = marks_of(shown)
    assert len(data["marks"]) == 4 * 2 * int(trace.present_BK.sum())
    assert "steps 0, 10, 20, 50" in shown.description
    said = {tuple(data["lines"][i] for i in lines) for _, _, lines, _ in data["marks"]}
    between = float((trace.teacher_SBKD[-1, 2, 7] * trace.student_SBKD[-1, 2, 7]).sum())
    assert ("C, fence", "student, step 50", f"cosine of teacher’s and student’s {between:.2f}") in said
    assert not any(line.startswith("B, pavement") for lines in said for line in lines)  # absent there


def test_the_collapse_figure_tells_the_first_and_the_last_mean(trace):
    said = apart_over_steps(trace).description
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
        self.num_classes, self.feature_channels = 10, channels
        self.features = nn.Parameter(torch.randn(1, channels, 12, 16, generator=torch.Generator().manual_seed(seed)))
        self.classifier = nn.Conv2d(channels, 10, 1)

    def forward(self, images):
        features = self.features.expand(len(images), -1, -1, -1)
        return SegOutput(self.classifier(features), features, None)


def test_an_image_is_seen_by_both_networks_through_both_perspectives():
    teacher, student, sample = Fixed(6, 0).eval(), Fixed(4, 1).eval(), DATA[0]
    apd = APDLoss(4, 6, 10, width=8, scale=7.0).eval()
    seen = perspective.seen_by_both(teacher, student, apd, sample, 255)
    assert list(seen.views) == [
        f"{who}, {which} perspective" for who in ("teacher", "student") for which in ("shared", "own")
    ]
    labels_1hw = resize_labels(sample.labels_HW[None].long(), (12, 16))
    with torch.no_grad():
        projected = apd.student_head(student.features)
        expected = observe(projected, *class_prototypes(projected, labels_1hw, 10), scale=7.0)[0]
        assert torch.allclose(seen.views["student, own perspective"], expected)
        shared = seen.views["teacher, shared perspective"]
        assert torch.allclose(shared, teacher.classifier(teacher.features)[0])
    assert torch.equal(seen.labels_hw, labels_1hw[0])

    shown = perspective.shared_and_own(seen, sample, SCENES, SCENES.index("road"))
    valid = seen.labels_hw != 255
    called = shared.masked_fill(~seen.present_K[:, None, None], -1e4).argmax(0)
    right = ((called == seen.labels_hw) & valid).sum() / valid.sum()
    assert f"teacher, shared perspective ({100 * float(right):.0f} % of cells right)" in shown.description
    assert shown.html.count("<img") == 15
    labels, first, *_ = marks_of(shown)["views"]
    assert first["labels"] == called.flatten().tolist()
    assert labels["labels"] == torch.where(valid, seen.labels_hw, -1).flatten().tolist()


def test_cosines_that_are_not_there_stay_empty_and_out_of_the_mean():
    square_KK = torch.full((10, 10), torch.nan)
    square_KK[:3, :3] = 0.25
    said = perspective.cosine_matrices({"some": square_KK, "none": square_KK * torch.nan}, SCENES.class_names)
    assert "some: +0.25; none: +nan" in said.description


def test_a_dot_of_the_scatter_reads_the_image_its_class_and_the_scores(images):
    shown = gain_by_distance([images[0], images[-1]])
    data = marks_of(shown)
    assert len(data["marks"]) == 80
    texts = [[data["lines"][i] for i in lines] for _, _, lines, _ in data["marks"]]
    (told,) = [text for text in texts[40:] if text[0] == "test picture 7"]
    one = images[-1]
    assert told[1] == f"distance {one.numbers['distance'][7]:.3f}"
    assert told[2] == "furthest class: fence"
    assert f"pixel KD {100 * one.scores['pixel_kd']['miou'][7]:.1f}" in told[3]
    assert told[3].endswith(f"gain {100 * one.gain()[7]:+.1f}".replace("-", "−"))
    assert f"teacher {100 * one.scores['teacher']['miou'][7]:.1f}" in told[4]


def test_a_network_that_one_context_shift_lacks_is_passed_over_there():
    some = made_up_evidence(0.5, 0).content
    some = {**some, **{entry: {k: v for k, v in some[entry].items() if k != "student"} for entry in ("runs", "scores")}}
    images = per_image([Evidence(some), made_up_evidence(1.0, 0)])
    assert ["student" in one.scores for one in images] == [False, True]
    data = marks_of(gain_by_distance(images))
    first, last = ([data["lines"][i] for i in data["marks"][place][2]] for place in (0, -1))
    assert (first[4].count("student"), last[4].count("student")) == (0, 1)
    assert "student" not in evidence_table(images[:1]).html
    assert len(str(relation_words(images, method="apd", reference="student")).splitlines()) == 1


def test_the_table_and_the_sentences_tell_the_correlations(images):
    found = relations(images[0], ["distance"])["distance"]
    told = str(relation_words(images)).splitlines()
    assert len(told) == 3
    assert found.verdict in told[0]
    assert coefficient(found.over_images) in told[0]
    assert coefficient(found.over_seeds) in told[0]
    assert f"{abs(seeds_agree(images[0])):.2f}" in told[0]
    table = relation_table(images)
    assert table.html.count("<tr") == 1 + 3 * 4
    assert coefficient(found.over_images) in table.html
    held = relations(images[0], ["distance"], held="teacher")["distance"].over_images
    assert coefficient(held) in table.html


def test_a_coefficient_has_its_sign_and_zero_has_none():
    assert coefficient((0.126, -0.5, 0.004)) == "+0.13\u00a0[−0.50,\u00a00.00]"
    assert coefficient((-0.3, float("nan"), float("nan"))) == "−0.30"
    assert coefficient((float("nan"), float("nan"), float("nan"))) == "–"


def test_another_method_can_be_asked_about_where_it_was_measured(images):
    assert "+ APD without pixel KD" in str(relation_words(images, method="apd_without_kd", reference="student"))
    assert "0 files" in str(relation_words(images, method="elsewhere"))


def test_what_the_own_perspective_adds_is_told_with_its_interval(images):
    one = images[1]
    own, shared = (dict(enumerate(one.numbers[name].tolist())) for name in ("own_right", "shared_right"))
    found = paired_difference(own, shared)
    told = str(revealed_words([one]))
    assert f"**{found.verdict}**" in told
    assert f"{100 * found.mean:+.1f}" in told
    assert "40 images" in told


def test_the_provenance_tells_files_seeds_and_commits(images):
    text = evidence_table(images).description
    assert "0123456789" in text
    assert "0, 1, 2" in text


def test_without_evidence_every_part_says_so():
    for part in (gain_by_distance([]), relation_table([]), relation_words([]), revealed_words([]), evidence_table([])):
        assert "0 files of evidence" in str(part)


def test_one_seed_gives_figures_and_words_without_nan():
    images = per_image([made_up_evidence(1.0, 0)])
    for part in (gain_by_distance(images), relation_table(images), relation_words(images), evidence_table(images)):
        assert "nan" not in str(part)
