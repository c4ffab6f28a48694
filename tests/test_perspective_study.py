"""Evidence from finished runs: its numbers are those of the networks, its scores those of the records, and no more."""

from dataclasses import replace

import pytest
import torch
from small_experiments import tiny

from apd import class_prototypes, observe, resize_labels
from apd.config.datasets import build_split
from apd.config.experiment import ExperimentError
from apd.config.identity import fingerprint
from apd.data.batches import evaluation_batches
from apd.distillers.apd import APDConfig
from apd.report import evidence as evidence_module
from apd.report.correlations import backed_by
from apd.report.evidence import main, measure, planned, read_evidence, write_evidence
from apd.report.perspectives import compare_views, distance_to_shared, own_perspectives, scores_by_image
from apd.report.trace import trained_distiller
from apd.training.checkpoint import CheckpointError
from apd.training.run import train, trained_network


def runs_of(seed):
    """The runs of one seed: a plain student beside the same teacher, pixel KD, and APD."""
    student = replace(tiny("pixel_kd", seed=seed), name=f"student-seed{seed}", distillers=())
    return {"student": student, "pixel_kd": tiny("pixel_kd", seed=seed), "apd": tiny("apd", seed=seed)}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("APD_RUNS", str(tmp_path_factory.mktemp("runs")))
        yield {method: train(experiment, progress=False) for method, experiment in runs_of(0).items()}


@pytest.fixture(scope="module")
def evidence(records):
    return measure(runs_of(0))


def test_the_distance_is_that_of_the_teachers_features_without_a_head(evidence):
    experiment = tiny("apd")
    teacher, data = trained_network(experiment.teacher_experiment()), build_split(experiment.data, "val")
    expected = []
    with torch.no_grad():
        for sample in data:
            features = teacher(sample.image_3HW[None] / 255).features
            labels = resize_labels(sample.labels_HW[None].long(), features.shape[2:])
            own, present = class_prototypes(features, labels, 10)
            expected += distance_to_shared(teacher.classifier.weight.flatten(1), own, present).distance_B.tolist()
    assert evidence.number("distance").tolist() == pytest.approx(expected, abs=1e-4, nan_ok=True)


def test_the_views_are_the_observation_that_the_student_was_shown_and_the_classifiers_logits(evidence):
    experiment = tiny("apd")
    student, teacher = trained_network(experiment), trained_network(experiment.teacher_experiment())
    head = trained_distiller(experiment, student, teacher).teacher_head
    (batch,) = evaluation_batches(build_split(experiment.data, "val"), 3)
    with torch.no_grad():
        output = teacher(batch.images_B3HW)
        labels_Bhw = resize_labels(batch.labels_BHW, output.features.shape[2:])
        projected = head(output.features)
        own_BKhw = observe(projected, *class_prototypes(projected, labels_Bhw, 10))
        _, present_BK = class_prototypes(projected, labels_Bhw, 10)
        views = compare_views(own_BKhw, output.logits, present_BK, labels_Bhw)
    for name, expected in zip(("divergence", "disagreement", "own_right", "shared_right"), views, strict=True):
        assert evidence.number(name).tolist() == pytest.approx(expected.tolist(), abs=1e-4, nan_ok=True)


def test_the_scores_are_those_of_the_records(evidence, records):
    found = backed_by([evidence], list(records.values()))
    assert (found.runs, found.recorded) == (3, 3)
    assert found.difference < 0.001
    assert evidence.content["data"]["fingerprint"] == records["apd"].content["data"]["fingerprint"]
    assert evidence.content["runs"]["apd"]["fingerprint"] == fingerprint(tiny("apd"))
    teacher_right = evidence.score("teacher", "right")
    assert teacher_right.shape == (tiny("apd").data.evaluation_images,)


def test_the_numbers_do_not_depend_on_how_images_are_batched(records):
    experiment = tiny("apd")
    student, teacher = trained_network(experiment), trained_network(experiment.teacher_experiment())
    distiller, data = trained_distiller(experiment, student, teacher), build_split(experiment.data, "val")
    one, all_together = (own_perspectives(teacher, distiller, data, batch_size=size) for size in (1, 3))
    assert torch.allclose(one.distance_N, all_together.distance_N, atol=1e-5, equal_nan=True)
    assert torch.equal(one.furthest_N, all_together.furthest_N)
    assert torch.equal(one.furthest_N < 0, one.distance_N.isnan())
    scores = scores_by_image({"teacher": teacher, "student": student}, data)
    assert list(scores) == ["teacher", "student"]
    assert len(scores["teacher"].miou_B) == len(data)


def test_runs_that_cannot_be_compared_are_refused(records):
    with pytest.raises(ExperimentError, match="lack 'pixel_kd'"):
        measure({"student": tiny("student"), "apd": tiny("apd")})
    runs = runs_of(0)
    with pytest.raises(ExperimentError, match=r"pixel_kd: seed = 1, but that of apd is 0"):
        measure(runs | {"pixel_kd": tiny("pixel_kd", seed=1)})
    with pytest.raises(CheckpointError, match="has not finished"):
        measure(runs_of(9))


@pytest.fixture
def two_planned(records, monkeypatch):
    monkeypatch.setattr(evidence_module, "planned", lambda: iter([runs_of(0), runs_of(1)]))


def test_the_command_writes_what_is_finished_once_and_says_what_is_not(two_planned, tmp_path, capsys):
    assert main(["--to", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "1 of 2 files are there" in told
    assert "without finished runs: context0.5-seed1" in told
    path = tmp_path / "context0.5-seed0.json"
    assert read_evidence(path).seed == 0
    before = path.stat().st_mtime_ns
    assert write_evidence(tmp_path) == []
    assert path.stat().st_mtime_ns == before


def test_a_file_of_other_weights_or_of_fewer_runs_is_made_again(two_planned, tmp_path):
    (path,) = write_evidence(tmp_path)
    content = read_evidence(path).content
    content["runs"]["student"]["weights_sha256"] = "0" * 64
    read_evidence(path).__class__(content).save(path)
    assert write_evidence(tmp_path) == [path]
    assert read_evidence(path).content["runs"]["student"]["weights_sha256"] != "0" * 64


def test_a_damaged_file_is_told_and_not_overwritten(two_planned, tmp_path, capsys):
    (tmp_path / "context0.5-seed0.json").write_text("{")
    assert main(["--to", str(tmp_path)]) == 1
    assert "cannot be read as JSON" in capsys.readouterr().err
    assert (tmp_path / "context0.5-seed0.json").read_text() == "{"


def test_the_plan_is_five_seeds_at_five_context_shifts_with_apd_and_what_it_is_compared_with():
    found = list(planned())
    places = [(runs["apd"].data.context_shift, runs["apd"].seed) for runs in found]
    assert len(set(places)) == len(places) == 25
    assert places[:5] == [(shift, 0) for shift in (0.0, 0.25, 0.5, 0.75, 1.0)]  # seed by seed: fair when cut short
    for runs in found:
        assert runs["apd"].distillers == (APDConfig(),)
        assert not runs["student"].distillers
        assert len({replace(run, name="one", distillers=()) for run in runs.values()}) == 1
