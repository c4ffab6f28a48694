"""From a distiller's configuration to its loss module."""

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN

from apd.distill import APDLoss
from apd.distillers import (
    CIRKD,
    CWD,
    DIST,
    DKD,
    I2CKD,
    IFVD,
    LSKD,
    MGD,
    AttentionTransfer,
    FitNet,
    InterClassDistance,
    PairwiseSimilarity,
    PixelKD,
)
from apd.distillers.configs import (
    APDConfig,
    AttentionTransferConfig,
    CIRKDConfig,
    CWDConfig,
    DISTConfig,
    DistillerConfig,
    DKDConfig,
    FitNetConfig,
    I2CKDConfig,
    IDDConfig,
    IFVDConfig,
    LSKDConfig,
    MGDConfig,
    PixelKDConfig,
    SKDConfig,
)
from apd.distillers.detection_configs import (
    DenseAPDConfig,
    DetectionDistillerConfig,
    PyramidMatchingConfig,
    ReviewKDConfig,
    RoIAPDConfig,
    RoIDKDConfig,
    RoIKDConfig,
)
from apd.distillers.review_kd import ReviewKD
from apd.distillers.roi_apd import RoIAPD
from apd.distillers.through_pixels import dense_apd, pyramid_matching, roi_dkd, roi_kd
from apd.models.segmenter import Segmenter


def build_distiller(
    config: DistillerConfig, *, student: Segmenter, teacher: Segmenter, ignore_index: int, seed: int
) -> nn.Module:
    """The loss module of one distiller, on the student's device, its heads initialised from the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = _module(
            config, (student.feature_channels, teacher.feature_channels, student.num_classes), ignore_index
        )
    return module.to(next(student.parameters()).device)


def _module(config: DistillerConfig, sizes: tuple[int, int, int], ignore_index: int) -> nn.Module:
    """The module of a configuration; ``sizes`` are the student's and the teacher's channels and the classes."""
    match config:
        case PixelKDConfig():
            return PixelKD(
                temperature=config.temperature,
                weight=config.weight,
                reduction=config.reduction,
                upsample_logits=config.upsample_logits,
                ignore_index=ignore_index,
            )
        case APDConfig():
            return APDLoss(
                *sizes,
                width=config.width,
                scale=config.scale,
                scope=config.scope,
                reduction=config.reduction,
                absent=config.absent,
                ignore_index=ignore_index,
                temperature=config.temperature,
                upsample_logits=config.upsample_logits,
                labels_from=config.labels_from,
                detach_prototypes=config.detach_prototypes,
                weights={
                    "regularisation": config.regularisation,
                    "alignment": config.alignment,
                    "observation": config.observation,
                    "pixel_kd": config.pixel_kd,
                },
            )
        case FitNetConfig():
            return FitNet(*sizes, weight=config.weight, ignore_index=ignore_index)
        case AttentionTransferConfig():
            return AttentionTransfer(*sizes, weight=config.weight, ignore_index=ignore_index)
        case SKDConfig():
            return PairwiseSimilarity(*sizes, weight=config.weight, pool=config.pool, ignore_index=ignore_index)
        case IFVDConfig():
            return IFVD(*sizes, weight=config.weight, ignore_index=ignore_index)
        case CWDConfig():
            return CWD(
                *sizes,
                logits=config.logits,
                features=config.features,
                temperature=config.temperature,
                ignore_index=ignore_index,
            )
        case CIRKDConfig():
            return CIRKD(
                *sizes,
                batch_pixels=config.batch_pixels,
                pixel_memory=config.pixel_memory,
                region_memory=config.region_memory,
                temperature=config.temperature,
                most_pixels=config.most_pixels,
                pixel_slots=config.pixel_slots,
                region_slots=config.region_slots,
                pixel_samples=config.pixel_samples,
                region_samples=config.region_samples,
                new_pixels=config.new_pixels,
                ignore_index=ignore_index,
            )
        case DISTConfig():
            return DIST(
                inter=config.inter, intra=config.intra, temperature=config.temperature, ignore_index=ignore_index
            )
        case MGDConfig():
            return MGD(*sizes, weight=config.weight, masked=config.masked, ignore_index=ignore_index)
        case DKDConfig():
            return DKD(
                target=config.target,
                non_target=config.non_target,
                temperature=config.temperature,
                ignore_index=ignore_index,
            )
        case LSKDConfig():
            return LSKD(weight=config.weight, temperature=config.temperature, ignore_index=ignore_index)
        case I2CKDConfig():
            return I2CKD(*sizes, weight=config.weight, margin=config.margin, ignore_index=ignore_index)
        case IDDConfig():
            return InterClassDistance(*sizes, weight=config.weight, ignore_index=ignore_index)
    raise TypeError(f"config is a {type(config).__name__}: expected the configuration of a distiller")


# From the configuration of a distiller between detectors to its loss module.

_APD_TERMS = ("regularisation", "alignment", "observation")


def build_detection_distiller(
    config: DetectionDistillerConfig, *, student: FasterRCNN, teacher: FasterRCNN, seed: int
) -> nn.Module:
    """The loss module of one distiller, on the student's device, its heads initialised from the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = _module_detection_distillers(config, student, teacher)
    return module.to(next(student.parameters()).device)


def _module_detection_distillers(
    config: DetectionDistillerConfig, student: FasterRCNN, teacher: FasterRCNN
) -> nn.Module:
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
