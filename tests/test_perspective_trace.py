"""Watching a run leaves it as it is; what is noted are the prototypes of its networks; and what collapse looks like."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from small_experiments import tiny

from apd import class_prototypes, resize_labels
from apd.config.datasets import build_split
from apd.config.experiment import ExperimentError
from apd.distillers.base import build_distiller
from apd.report.trace import pairwise_cosine, trained_distiller, watch
from apd.training.run import run_folder, train, trained_network
from apd.training.segmentation import build_network


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("APD_RUNS", str(tmp_path_factory.mktemp("runs")))
        train(tiny("both"), progress=False)
        yield


@pytest.fixture(scope="module")
def samples():
    data = build_split(tiny("both").data, "val")
    return [data[0], data[1]]


@pytest.fixture(scope="module")
def trace(runs, samples):
    return watch(tiny("both"), samples, every=2, device="cpu")


def test_a_watched_run_ends_where_the_unwatched_one_does(runs, trace):
    experiment = tiny("both")
    weights = load_file(run_folder(experiment) / "weights.safetensors")
    found = trace.student.state_dict()
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    student, teacher = trained_network(experiment), trained_network(experiment.teacher_experiment())
    heads = trained_distiller(experiment, student, teacher).state_dict()
    assert all(torch.equal(trace.distiller.state_dict()[name], value) for name, value in heads.items())


def test_the_moments_are_the_first_the_last_and_those_asked_for(trace, runs, samples):
    assert trace.steps == [0, 2, 4, 6]
    assert watch(tiny("both"), samples, every=4, device="cpu").steps == [0, 4, 6]
    assert trace.teacher_SBKD.shape == trace.student_SBKD.shape == (4, 2, 10, 8)


def test_the_prototypes_noted_are_those_of_the_networks(runs, samples, trace):
    experiment = tiny("both")
    images_B3HW = torch.stack([s.image_3HW for s in samples]) / 255
    labels_BHW = torch.stack([s.labels_HW for s in samples]).long()
    teacher = trained_network(experiment.teacher_experiment())
    student = build_network(experiment.network, 10, torch.device("cpu"), seed=experiment.seed)
    config = next(c for c in experiment.distillers if c.method == "apd")
    drawn = build_distiller(config, student=student, teacher=teacher, ignore_index=255, seed=experiment.seed)
    with torch.no_grad():
        by_teacher, by_student = teacher(images_B3HW).features, trace.student(images_B3HW).features
        labels_Bhw = resize_labels(labels_BHW, by_teacher.shape[2:])
        for projected, found in (
            (trace.distiller.teacher_head(by_teacher), trace.teacher_SBKD[-1]),
            (trace.distiller.student_head(by_student), trace.student_SBKD[-1]),
            (drawn.teacher_head(by_teacher), trace.teacher_SBKD[0]),
            (drawn.teacher_head(by_teacher), trace.untrained_BKD),
            (drawn.teacher_head(by_teacher), trace.aligned_SBKD[0]),
        ):
            expected, present = class_prototypes(projected, labels_Bhw, 10)
            assert torch.allclose(found, expected, atol=1e-5)
            assert torch.equal(trace.present_BK, present)


def test_the_pair_that_alignment_trains_comes_together_and_the_runs_own_head_does_not(runs, samples):
    experiment = tiny("apd", iterations=40)
    config = replace(experiment.distillers[0], teacher_head_rate=0.02)  # far in few steps
    found = watch(replace(experiment, distillers=(config,)), samples, every=40, device="cpu")
    drawn, aligned, trained = (
        float(pairwise_cosine(value, found.present_BK).nanmean())
        for value in (found.untrained_BKD, found.aligned_SBKD[-1], found.teacher_SBKD[-1])
    )
    assert aligned > 0.99
    assert trained < drawn < aligned


def test_what_cannot_be_watched_is_refused(runs, samples):
    with pytest.raises(ExperimentError, match="has no distiller 'apd' with heads"):
        watch(tiny("pixel_kd"), samples)
    with pytest.raises(ValueError, match="0 samples, every=10"):
        watch(tiny("apd"), [])
    with pytest.raises(ValueError, match="2 samples, every=0"):
        watch(tiny("apd"), samples, every=0)


def test_the_mean_cosine_is_over_all_pairs_of_different_classes():
    rows_BKD = torch.nn.functional.normalize(torch.randn(3, 5, 4), dim=2)
    present_BK = torch.rand(3, 5) < 0.7
    present_BK[0], present_BK[2] = True, torch.arange(5) == 3
    rows_BKD = rows_BKD * present_BK[:, :, None]
    found = pairwise_cosine(rows_BKD, present_BK)
    for b in range(2):
        here = torch.nonzero(present_BK[b]).flatten().tolist()
        pairs = [float(rows_BKD[b, j] @ rows_BKD[b, k]) for j in here for k in here if j != k]
        assert float(found[b]) == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    assert math.isnan(found[2])
    assert torch.equal(pairwise_cosine(rows_BKD.expand(2, -1, -1, -1), present_BK)[1, :2], found[:2])
