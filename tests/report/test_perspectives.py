"""Own perspectives against loops over classes and cells; evidence and traces of runs are those of their networks."""

import json
import math
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from chapter_cells import book_script
from safetensors.torch import load_file
from small_experiments import tiny
from torch import nn

from apd import class_prototypes, observe, resize_labels
from apd.config.datasets import build_split
from apd.config.experiment import ExperimentError
from apd.config.identity import fingerprint
from apd.data.batches import evaluation_batches
from apd.data.specs import SCENES
from apd.distillers.base import build_distiller
from apd.evaluation.inference import ConfusionMatrix, scores
from apd.report import perspectives
from apd.report.correlations import Evidence
from apd.report.perspectives import compare_views, distance_to_shared, pairwise_cosine, watch
from apd.training.checkpoint import CheckpointError
from apd.training.run import run_folder, train, trained_distiller, trained_network
from apd.training.segmentation import build_network

maker = book_script("perspective_evidence")
SAMPLES = [build_split(tiny("both").data, "val")[number] for number in (0, 1)]


def close(expected):
    return pytest.approx(expected.tolist() if isinstance(expected, torch.Tensor) else expected, abs=1e-5, nan_ok=True)


@pytest.mark.parametrize("seed", range(4))
def test_the_distance_and_the_cosines_are_the_formula_written_out(seed):
    generator = torch.Generator().manual_seed(seed)
    weights_KC, rows_BKC = torch.randn(5, 7, generator=generator), torch.randn(3, 5, 7, generator=generator)
    # all classes, two, and one
    present_BK = torch.stack([torch.ones(5, dtype=torch.bool), torch.arange(5) < 2, torch.arange(5) == 1])
    prototypes_BKC = nn.functional.normalize(rows_BKC, dim=2) * present_BK[:, :, None]
    found = distance_to_shared(weights_KC, prototypes_BKC, present_BK)
    for b, present_K in enumerate(present_BK):
        here, cosines = present_K.nonzero().flatten().tolist(), {}
        w_KC, p_KC = ((rows - rows[here].mean(0)).numpy() for rows in (weights_KC, prototypes_BKC[b]))
        for j, k in product(here, here) if len(here) > 1 else ():
            cosines[j, k] = float(w_KC[j] @ p_KC[k] / np.linalg.norm(w_KC[j]) / np.linalg.norm(p_KC[k]))
            assert float(found.cosines_BKK[b, j, k]) == close(cosines[j, k])
        expected = 1 - np.mean([cosines[k, k] for k in here]) if cosines else math.nan
        assert float(found.distance_B[b]) == close(expected)
    assert torch.equal(found.cosines_BKK.isnan(), ~(present_BK[:, :, None] & present_BK[:, None]))
    both, everywhere = torch.stack([weights_KC, -weights_KC]), torch.ones(2, 5, dtype=torch.bool)
    assert distance_to_shared(weights_KC, both, everywhere)[0].tolist() == close([0, 2])  # itself, and its mirror image
    # rows without a direction have a cosine of zero
    equal = distance_to_shared(torch.ones(3, 4), torch.randn(1, 3, 4), torch.ones(1, 3, dtype=torch.bool))
    assert equal.distance_B.tolist() == [1.0]


@pytest.mark.parametrize("seed", range(3))
def test_views_are_compared_cell_by_cell_over_present_classes(seed):
    generator = torch.Generator().manual_seed(seed)
    own_BKhw, shared_BKhw = (3 * torch.randn(3, 4, 2, 5, generator=generator) for _ in range(2))
    labels_Bhw = torch.randint(0, 4, (3, 2, 5), generator=generator)
    labels_Bhw[0, 0, :3] = 255
    labels_Bhw[0][labels_Bhw[0] == 2] = 0
    labels_Bhw[2] = 255
    _, present_BK = class_prototypes(own_BKhw, labels_Bhw, 4)
    present_BK[2] = True
    found = compare_views(own_BKhw, shared_BKhw, present_BK, labels_Bhw)
    for b in range(2):
        here_k, valid_hw = present_BK[b].nonzero().flatten().numpy(), (labels_Bhw[b] != 255).numpy()
        own_kN, shared_kN = (values[b].numpy()[here_k][:, valid_hw] for values in (own_BKhw, shared_BKhw))
        own_log_kN, shared_log_kN = (v - np.log(np.exp(v).sum(0)) for v in (own_kN, shared_kN))
        first_N, second_N = here_k[own_kN.argmax(0)], here_k[shared_kN.argmax(0)]
        labels_N, divergence_N = labels_Bhw[b].numpy()[valid_hw], np.exp(own_log_kN) * (own_log_kN - shared_log_kN)
        each = (divergence_N.sum(0), first_N != second_N, first_N == labels_N, second_N == labels_N)
        assert [float(value[b]) for value in found] == close([np.mean(values) for values in each])
    assert all(bool(value[2].isnan()) for value in found)  # no valid cell
    absent = ~present_BK[:, :, None, None]
    same = compare_views(own_BKhw, torch.where(absent, 50.0, own_BKhw) + 2.5, present_BK, labels_Bhw)
    assert same.divergence_B[:2].abs().max() < 1e-5  # a shift changes no softmax, absent classes have no part in it
    one_class = torch.arange(4).expand(3, 4) == 1
    assert all(bool(v.isnan().all()) for v in compare_views(own_BKhw, shared_BKhw, one_class, 0 * labels_Bhw + 1))


def test_an_images_scores_are_those_of_a_confusion_matrix_of_its_own(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    labels_BHW, prediction_BHW = torch.randint(0, 10, (2, 3, 8, 8), generator=generator)
    labels_BHW[0, :, ::3] = 255
    labels_BHW[1] = 255
    batches = [([prediction_BHW], labels_BHW, []), ([prediction_BHW[:1]], labels_BHW[:1] % 3, [])]
    monkeypatch.setattr(perspectives, "predict_dataset", lambda networks, dataset: batches)
    found = perspectives.scores_by_image({"one": None}, SimpleNamespace(spec=SCENES))["one"]
    shown = [*zip(prediction_BHW, labels_BHW, strict=True), (prediction_BHW[0], labels_BHW[0] % 3)]
    for place, (predicted_HW, labels_HW) in enumerate(shown):
        matrix = ConfusionMatrix(10)
        matrix.update(predicted_HW, labels_HW)
        expected, in_labels = scores(matrix.matrix_KK), matrix.matrix_KK.sum(1) > 0
        assert float(found.miou_B[place]) == pytest.approx(float(expected.iou[in_labels].mean()), nan_ok=True)
        assert float(found.right_B[place]) == pytest.approx(expected.aacc, nan_ok=True)
        assert int(found.valid_B[place]) == int((labels_HW != 255).sum())
    assert found.miou_B.isnan().tolist() == [False, True, False, False]
    assert found.valid_B.dtype == torch.int64


def runs_of(seed):
    """The runs of one seed: a plain student beside the same teacher, pixel KD, and APD."""
    student = replace(tiny("pixel_kd", seed=seed), name=f"student-seed{seed}", distillers=())
    return {"student": student, "pixel_kd": tiny("pixel_kd", seed=seed), "apd": tiny("apd", seed=seed)}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("APD_RUNS", str(tmp_path_factory.mktemp("runs")))
        train(tiny("both"), progress=False)
        yield {method: train(experiment, progress=False) for method, experiment in runs_of(0).items()}


@pytest.fixture(scope="module")
def evidence(records):
    return maker.measure(runs_of(0))


def test_the_numbers_are_those_of_the_teachers_features_and_of_what_the_student_was_shown(evidence):
    experiment = tiny("apd")
    student, teacher = trained_network(experiment), trained_network(experiment.teacher_experiment())
    head = trained_distiller(experiment, student, teacher).teacher_head
    (batch,) = evaluation_batches(build_split(experiment.data, "val"), 3)
    with torch.no_grad():
        output = teacher(batch.images_B3HW)
        labels_Bhw = resize_labels(batch.labels_BHW, output.features.shape[2:])
        without_head, present_BK = class_prototypes(output.features, labels_Bhw, 10)
        distance_B, _ = distance_to_shared(teacher.classifier.weight.flatten(1), without_head, present_BK)
        projected = head(output.features)
        own_BKhw = observe(projected, *class_prototypes(projected, labels_Bhw, 10))
        views = compare_views(own_BKhw, output.logits, present_BK, labels_Bhw)
    names = ("distance", "divergence", "disagreement", "own_right", "shared_right")
    for name, expected in zip(names, (distance_B, *views), strict=True):
        assert evidence.number(name).tolist() == pytest.approx(expected.tolist(), abs=1e-4, nan_ok=True)


def test_the_scores_are_those_of_the_records(evidence, records):
    valid = np.array(evidence.content["valid"])
    for network, record in records.items():
        right = float((evidence.score(network, "right") * valid).sum() / valid.sum())
        assert right == pytest.approx(record.scores.aacc, abs=0.001)
    assert evidence.content["data"]["fingerprint"] == records["apd"].content["data"]["fingerprint"]
    assert evidence.content["runs"]["apd"]["fingerprint"] == fingerprint(tiny("apd"))


def test_runs_that_cannot_be_compared_are_refused(records):
    with pytest.raises(ExperimentError, match="lack 'pixel_kd'"):
        maker.measure({"student": tiny("student"), "apd": tiny("apd")})
    with pytest.raises(ExperimentError, match=r"pixel_kd: seed = 1, but that of apd is 0"):
        maker.measure(runs_of(0) | {"pixel_kd": tiny("pixel_kd", seed=1)})
    with pytest.raises(CheckpointError, match="has not finished"):
        maker.measure(runs_of(9))


def test_the_command_writes_finished_runs_once_and_again_with_other_weights(records, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(maker, "planned", lambda: iter([runs_of(0), runs_of(1)]))
    assert maker.main(["--to", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "1 of 2 files are there" in said
    assert "without finished runs: context0.5-seed1" in said
    path = tmp_path / "context0.5-seed0.json"
    assert maker.write_evidence(tmp_path) == []
    content = Evidence.read(path).content
    content["runs"]["student"]["weights_sha256"] = "0" * 64
    path.write_text(json.dumps(content))
    assert maker.write_evidence(tmp_path) == [path]
    assert Evidence.read(path).content["runs"]["student"]["weights_sha256"] != "0" * 64
    path.write_text("{")
    assert maker.main(["--to", str(tmp_path)]) == 1
    assert "cannot be read as JSON" in capsys.readouterr().err
    assert path.read_text() == "{"


@pytest.fixture(scope="module")
def trace(records):
    return watch(tiny("both"), SAMPLES, every=4, device="cpu")


def test_a_watched_run_ends_where_the_unwatched_one_does(trace):
    experiment = tiny("both")
    weights, found = load_file(run_folder(experiment) / "weights.safetensors"), trace.student.state_dict()
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    student, teacher = trained_network(experiment), trained_network(experiment.teacher_experiment())
    heads = trained_distiller(experiment, student, teacher).state_dict()
    assert all(torch.equal(trace.distiller.state_dict()[name], value) for name, value in heads.items())
    assert trace.steps == [0, 4, 6]
    assert trace.teacher_SBKD.shape == trace.student_SBKD.shape == (3, 2, 10, 8)


def test_the_prototypes_noted_are_those_of_the_networks(trace):
    experiment = tiny("both")
    images_B3HW = torch.stack([s.image_3HW for s in SAMPLES]) / 255
    labels_BHW = torch.stack([s.labels_HW for s in SAMPLES]).long()
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


def test_the_pair_that_alignment_trains_comes_together_and_the_runs_own_head_does_not(records):
    experiment = tiny("apd", iterations=40)
    config = replace(experiment.distillers[0], teacher_head_rate=0.02)  # far in few steps
    found = watch(replace(experiment, distillers=(config,)), SAMPLES, every=40, device="cpu")
    drawn, aligned, trained = (
        float(pairwise_cosine(value, found.present_BK).nanmean())
        for value in (found.untrained_BKD, found.aligned_SBKD[-1], found.teacher_SBKD[-1])
    )
    assert aligned > 0.99
    assert trained < drawn < aligned
    with pytest.raises(ExperimentError, match="has no distiller 'apd' with heads"):
        watch(tiny("pixel_kd"), SAMPLES)


def test_the_mean_cosine_is_over_all_pairs_of_different_classes():
    rows_BKD = nn.functional.normalize(torch.randn(3, 5, 4), dim=2)
    present_BK = torch.rand(3, 5) < 0.7
    present_BK[0], present_BK[1, :2], present_BK[2] = True, True, torch.arange(5) == 3
    rows_BKD = rows_BKD * present_BK[:, :, None]
    found = pairwise_cosine(rows_BKD, present_BK)
    for b in range(2):
        here = torch.nonzero(present_BK[b]).flatten().tolist()
        pairs = [float(rows_BKD[b, j] @ rows_BKD[b, k]) for j in here for k in here if j != k]
        assert float(found[b]) == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    assert math.isnan(found[2])
    assert torch.equal(pairwise_cosine(rows_BKD.expand(2, -1, -1, -1), present_BK)[1, :2], found[:2])
