"""Segmentation heads: PSPNet's pyramid pooling, DeepLabV3's atrous pooling, and the auxiliary head beside either."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PSP_BINS = (1, 2, 3, 6)  # as published
ASPP_REACH = 288  # image pixels from a cell to the outermost taps: 36 cells of stride 8 (as published)


def conv_bn_relu(in_channels: int, out_channels: int, kernel_size: int, *, dilation: int = 1) -> nn.Sequential:
    """Convolution without bias, batch norm, ReLU; the size of the map is kept (`kernel_size` must be odd)."""
    padding = dilation * (kernel_size // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class PyramidPooling(nn.Module):
    """The PSPNet head up to its feature map: pool at several grid sizes, upsample, concatenate, merge.

    A branch averages the map to `bin × bin`, applies a 1×1 convolution to `in_channels // 4` channels with batch norm
    and ReLU, and is upsampled bilinearly with `align_corners=True` (as published); a 3×3 convolution merges all. A
    batch of one image in training mode is a ValueError: batch norm has one value per channel of a 1×1 grid.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        if in_channels < 4:
            raise ValueError(f"in_channels: got {in_channels}, expected at least 4 (each branch keeps a quarter)")
        width = in_channels // 4
        self.branches = nn.ModuleList(conv_bn_relu(in_channels, width, 1) for _ in PSP_BINS)
        self.merge = conv_bn_relu(in_channels + width * len(PSP_BINS), out_channels, 3)

    def forward(self, features_BChw: Tensor) -> Tensor:
        """Backbone map `B in_channels h w` → merged map `B out_channels h w`."""
        maps = [features_BChw]
        for grid, branch in zip(PSP_BINS, self.branches, strict=True):
            if grid == 1:
                _check_batch(self, branch, features_BChw)
            pooled = branch(F.adaptive_avg_pool2d(features_BChw, grid))
            maps.append(F.interpolate(pooled, size=features_BChw.shape[-2:], mode="bilinear", align_corners=True))
        return self.merge(torch.cat(maps, dim=1))


class AtrousPooling(nn.Module):
    """The DeepLabV3 head up to its feature map: convolutions at several distances, concatenated and merged.

    Its branches, with batch norm and ReLU: the image's mean through a 1×1 convolution, a 1×1 convolution, and a 3×3
    convolution at each dilation, in cells (as published at output stride 8, see :func:`aspp_dilations`).
    """

    def __init__(self, in_channels: int, out_channels: int, *, dilations: Sequence[int] = (12, 24, 36)) -> None:
        super().__init__()
        self.image_pool = conv_bn_relu(in_channels, out_channels, 1)
        around = [conv_bn_relu(in_channels, out_channels, 3, dilation=dilation) for dilation in dilations]
        self.branches = nn.ModuleList([conv_bn_relu(in_channels, out_channels, 1), *around])
        self.merge = conv_bn_relu((2 + len(dilations)) * out_channels, out_channels, 3)

    def forward(self, features_BChw: Tensor) -> Tensor:
        """Backbone map `B in_channels h w` → merged map `B out_channels h w`."""
        _check_batch(self, self.image_pool, features_BChw)
        pooled_BC11 = self.image_pool(F.adaptive_avg_pool2d(features_BChw, 1))
        maps = [pooled_BC11.expand(-1, -1, *features_BChw.shape[-2:]), *(b(features_BChw) for b in self.branches)]
        return self.merge(torch.cat(maps, dim=1))


def aspp_dilations(reach: int, output_stride: int) -> tuple[int, int, int]:
    """Dilations in cells whose outermost taps lie a third, two thirds and all of `reach` image pixels away."""
    return tuple(max(1, round(reach * part / (3 * output_stride))) for part in (1, 2, 3))


def _check_batch(head: nn.Module, pooled_branch: nn.Sequential, features_BChw: Tensor) -> None:
    if pooled_branch[1].training and features_BChw.shape[0] == 1:
        why = "on a 1×1 grid batch norm has one value per channel. Drop a last batch of one, or use eval mode"
        raise ValueError(f"{type(head).__name__}: got a batch of 1 image in training mode, expected at least 2: {why}")


class AuxiliaryHead(nn.Module):
    """Second classifier, on an earlier stage: 3×3 convolution, batch norm, ReLU, channel dropout, 1×1 convolution."""

    def __init__(self, in_channels: int, num_classes: int, *, width: int = 256, dropout: float = 0.1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *conv_bn_relu(in_channels, width, 3), nn.Dropout2d(dropout), nn.Conv2d(width, num_classes, 1)
        )

    def forward(self, features_BChw: Tensor) -> Tensor:
        """Stage map `B in_channels h w` → logits `B K h w`."""
        return self.layers(features_BChw)
