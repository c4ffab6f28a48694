"""From the configuration of a distiller between detectors to its loss module."""

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN

from apd.detection import ReviewKD, RoIAPD, dense_apd, pyramid_matching, roi_dkd, roi_kd
from apd.study.detection_distiller_configs import (
    DenseAPDConfig,
    DetectionDistillerConfig,
    PyramidMatchingConfig,
    ReviewKDConfig,
    RoIAPDConfig,
    RoIDKDConfig,
    RoIKDConfig,
)

_APD_TERMS = ("regularisation", "alignment", "observation")


def build_detection_distiller(
    config: DetectionDistillerConfig, *, student: FasterRCNN, teacher: FasterRCNN, seed: int
) -> nn.Module:
    """The loss module of one distiller, on the student's device, its heads initialised from the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = _module(config, student, teacher)
    return module.to(next(student.parameters()).device)


def _module(config: DetectionDistillerConfig, student: FasterRCNN, teacher: FasterRCNN) -> nn.Module:
    networks = (student, teacher)
    things = student.roi_heads.box_predictor.cls_score.out_features - 1  # the background is no thing
    pyramids = [network.backbone.out_channels for network in networks]
    vectors = [network.roi_heads.box_predictor.cls_score.in_features for network in networks]
    match config:
        case RoIAPDConfig():
            weights = {
                name: getattr(config, name) for name in ("regularisation", "alignment", "observation", "pixel_kd")
            }
            return RoIAPD(
                *vectors,
                things,
                width=config.width,
                scale=config.scale,
                temperature=config.temperature,
                weights=weights,
            )
        case DenseAPDConfig():
            weights = {name: getattr(config, name) for name in _APD_TERMS}
            return dense_apd(
                *pyramids, things, levels=config.levels, width=config.width, scale=config.scale, weights=weights
            )
        case RoIKDConfig():
            return roi_kd(temperature=config.temperature, weight=config.weight)
        case RoIDKDConfig():
            return roi_dkd(target=config.target, non_target=config.non_target, temperature=config.temperature)
        case PyramidMatchingConfig():
            return pyramid_matching(*pyramids, levels=config.levels, weight=config.weight)
        case ReviewKDConfig():
            return ReviewKD(*pyramids, levels=config.levels, width=config.width, weight=config.weight)
    raise TypeError(f"config is a {type(config).__name__}: expected the configuration of a distiller of detectors")
