"""What is built from the configuration of a detection experiment: networks and distillers with every setting of it."""

from dataclasses import replace
from unittest import mock

import pytest
import torch
from small_detection import DATA, METHODS, NETWORK, TEACHER, small
from small_experiments import equal

from apd.config.datasets import spec_of
from apd.config.detection_config import DetectorConfig
from apd.distillers.base import DISTILLERS, build_distiller
from apd.fields import ExperimentError
from apd.training.run import task_of
from apd.training.segmentation import build_network


@pytest.fixture(scope="module")
def networks():
    task, cpu = task_of(small("several")), torch.device("cpu")
    return {"student": task.network(NETWORK, 3, cpu, 0), "teacher": task.network(TEACHER.network, 3, cpu, 1)}


def test_a_module_has_every_setting_of_its_configuration(networks):
    def built(method, **settings):
        return build_distiller(DISTILLERS[method](**settings), **networks, seed=3)

    roi = built("roi_apd", width=8, scale=5.0, alignment=3.0, observation=0.5, pixel_kd=0.0, temperature=2.0)
    assert roi.weights == {"regularisation": 1.0, "alignment": 3.0, "observation": 0.5, "pixel_kd": 0.0}
    assert (roi.student_channels, roi.teacher_channels, roi.scale, roi.temperature) == (32, 40, 5.0, 2.0)
    assert next(roi.teacher_head.parameters()).shape[:2] == (8, 40)
    dense = built("dense_apd", levels=("0", "2"), width=8, scale=5.0, observation=0.0)
    assert dense.levels == ("0", "2")
    for level in dense.distillers.values():
        assert level.weights == {"regularisation": 1.0, "alignment": 10.0, "observation": 0.0, "pixel_kd": 0.0}
        assert (level.scale, level.num_classes) == (5.0, 4)
        assert next(level.teacher_head.parameters()).shape[:2] == (8, 24)
    kd = built("roi_kd", weight=3.0, temperature=2.0).distiller
    assert (kd.weights, kd.temperature) == ({"pixel_kd": 3.0}, 2.0)
    dkd = built("roi_dkd", target=2.0, non_target=3.0, temperature=4.0).distiller
    assert (list(dkd.weights.values()), dkd.temperature) == ([2.0, 3.0], 4.0)
    matching = built("pyramid_matching", levels=("1",), weight=3.0)
    assert (matching.levels, matching.distillers["1"].weights) == (("1",), {"fitnet": 3.0})
    review = built("review_kd", levels=("0", "1"), width=8, weight=3.0)
    assert (review.levels, review.weights) == (("0", "1"), {"review_kd": 3.0})
    assert review.reviews["0"].reduced[0].weight.shape[:2] == (8, 16)


def test_heads_and_networks_depend_on_the_seed_alone_and_leave_the_random_state(networks):
    state = torch.get_rng_state()
    one, same, other = (
        build_distiller(METHODS["roi_apd"][0], **networks, seed=seed).student_head.state_dict() for seed in (3, 3, 4)
    )
    assert equal(one, same)
    assert not equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    again = task_of(small()).network(NETWORK, 3, torch.device("cpu"), 0)
    assert equal(networks["student"].state_dict(), again.state_dict())


def test_what_is_there_for_segmentation_only_says_so():
    with pytest.raises(ExperimentError, match="InstanceDataConfig belongs to detection, and what was asked for is"):
        spec_of(small().data)
    with pytest.raises(ExperimentError, match="DetectorConfig belongs to detection, and what was asked for is"):
        build_network(NETWORK, 3, torch.device("cpu"), 0)


def test_a_detector_brings_images_to_the_size_of_the_data():
    data = replace(DATA, height=80, width=96)
    detector = task_of(small(data=data)).network(NETWORK, 3, torch.device("cpu"), 0)
    assert (detector.transform.min_size, detector.transform.max_size) == ((80,), 96)


def test_a_network_that_cannot_be_built_is_an_error_of_the_experiment(monkeypatch):
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", mock.Mock(side_effect=OSError("no route")))
    with pytest.raises(ExperimentError, match=r"this detector cannot be built: .*could not be fetched"):
        task_of(small()).network(DetectorConfig(weights="imagenet"), 1, torch.device("cpu"), 0)
