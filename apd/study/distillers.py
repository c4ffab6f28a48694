"""From a distiller's configuration to its loss module."""

import torch
from torch import nn

from apd.distill import APDLoss
from apd.models.segmenter import Segmenter
from apd.rivals import (
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
from apd.study.distiller_configs import (
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
