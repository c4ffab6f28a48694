"""Heads compute what slow versions written by hand do, and refuse what batch norm cannot train on."""

import itertools
import math

import pytest
import torch
from torch import nn

from apd.models.heads import AtrousPooling, AuxiliaryHead, PyramidPooling


def with_random_norms(module: nn.Module) -> nn.Module:
    """Fresh batch norms are identities in eval mode, which would hide mistakes."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 2.0)
            nn.init.normal_(norm.weight, 1.0, 0.1)
            nn.init.normal_(norm.bias, 0.0, 0.1)
    return module.double().eval()


def normed(convolved: torch.Tensor, norm: nn.BatchNorm2d) -> torch.Tensor:
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    shifted = (convolved - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
    return shifted.clamp_min(0)


def at_single_cells(maps: torch.Tensor, branch: nn.Sequential) -> torch.Tensor:
    return normed(torch.einsum("bchw,oc->bohw", maps, branch[0].weight[:, :, 0, 0]), branch[1])


def around(values: torch.Tensor, branch: nn.Sequential, dilation: int) -> torch.Tensor:
    weight, (height, width) = branch[0].weight, values.shape[2:]
    total = torch.zeros(2, weight.shape[0], height, width, dtype=torch.float64)
    for row, column, i, j in itertools.product(range(height), range(width), range(3), range(3)):
        y, x = row + (i - 1) * dilation, column + (j - 1) * dilation
        if 0 <= y < height and 0 <= x < width:
            total[:, :, row, column] += values[:, :, y, x] @ weight[:, :, i, j].T
    return normed(total, branch[1])


@pytest.mark.parametrize("grid_hw", [(5, 7), (10, 13), (2, 3), (1, 1)])
def test_pyramid_pooling_equals_a_slow_one_written_by_hand(grid_hw):
    head = with_random_norms(PyramidPooling(8, 6))
    maps, (height, width) = torch.randn(2, 8, *grid_hw, dtype=torch.float64), grid_hw
    pieces = [maps]
    for bins, branch in zip((1, 2, 3, 6), head.branches, strict=True):
        pooled = torch.empty(2, 8, bins, bins, dtype=torch.float64)
        for row, column in itertools.product(range(bins), range(bins)):
            top, bottom = row * height // bins, math.ceil((row + 1) * height / bins)
            left, right = column * width // bins, math.ceil((column + 1) * width / bins)
            pooled[:, :, row, column] = maps[:, :, top:bottom, left:right].mean((2, 3))
        reduced = at_single_cells(pooled, branch)
        grown = torch.empty(2, 2, height, width, dtype=torch.float64)
        for row, column in itertools.product(range(height), range(width)):
            # corners aligned: the first and last cell of both grids lie on each other
            y, x = row * (bins - 1) / max(height - 1, 1), column * (bins - 1) / max(width - 1, 1)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, bins - 1), min(x0 + 1, bins - 1)
            upper = reduced[:, :, y0, x0] * (1 - (x - x0)) + reduced[:, :, y0, x1] * (x - x0)
            lower = reduced[:, :, y1, x0] * (1 - (x - x0)) + reduced[:, :, y1, x1] * (x - x0)
            grown[:, :, row, column] = upper * (1 - (y - y0)) + lower * (y - y0)
        pieces.append(grown)
    with torch.no_grad():
        torch.testing.assert_close(head(maps), around(torch.cat(pieces, dim=1), head.merge, 1))


@pytest.mark.parametrize("grid_hw", [(5, 7), (9, 4), (1, 1)])
def test_atrous_pooling_equals_a_slow_one_written_by_hand(grid_hw):
    head = with_random_norms(AtrousPooling(6, 4, dilations=(1, 2, 3)))
    maps = torch.randn(2, 6, *grid_hw, dtype=torch.float64)
    pieces = [at_single_cells(maps.mean((2, 3), keepdim=True), head.image_pool).expand(2, 4, *grid_hw)]
    pieces.append(at_single_cells(maps, head.branches[0]))
    pieces += [around(maps, branch, dilation) for dilation, branch in zip((1, 2, 3), head.branches[1:], strict=True)]
    with torch.no_grad():
        torch.testing.assert_close(head(maps), around(torch.cat(pieces, dim=1), head.merge, 1))


@pytest.mark.parametrize("head", [PyramidPooling(8, 4), AtrousPooling(8, 4)])
def test_a_training_batch_of_one_image_is_refused_unless_the_norms_are_in_eval_mode(head):
    maps = torch.rand(1, 8, 3, 4)
    with pytest.raises(
        ValueError, match=f"{type(head).__name__}: got a batch of 1 image in training mode, expected at"
    ):
        head(maps)
    for norm in head.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
    assert head(maps).shape == head.eval()(maps).shape == (1, 4, 3, 4)


def test_too_few_channels_for_four_branches_are_refused():
    with pytest.raises(ValueError, match="in_channels: got 3, expected at least 4"):
        PyramidPooling(3, 8)


def test_the_auxiliary_head_drops_channels_only_in_training():
    head, maps = AuxiliaryHead(4, 3, width=8, dropout=0.5), torch.randn(2, 4, 3, 3)
    head.layers[1].eval()
    assert not torch.equal(head(maps), head(maps))
    assert torch.equal(head.eval()(maps), head(maps))
