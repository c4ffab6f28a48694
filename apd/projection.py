"""The projection head that brings a net's features to the width in which perspectives are compared."""

from torch import Tensor, nn

from apd.validation import WIDEST, check_count


class ProjectionHead(nn.Module):
    """Conv 1×1 - ReLU - conv 1×1 to ``width`` channels, with biases and without normalisation (as released).

    It computes in the precision of its own parameters.

    Args:
        in_channels: channels of the features it reads.
        width: channels of its hidden and of its output map (512 in the released code).

    >>> import torch
    >>> from apd import ProjectionHead
    >>> ProjectionHead(64, 32)(torch.zeros(2, 64, 5, 5)).shape
    torch.Size([2, 32, 5, 5])
    """

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        in_channels = check_count("in_channels", in_channels)
        self.in_channels, width = in_channels, check_count("width", width, WIDEST)
        self.hidden = nn.Conv2d(in_channels, width, kernel_size=1)
        self.out = nn.Conv2d(width, width, kernel_size=1)

    def forward(self, features_BChw: Tensor) -> Tensor:
        """``features_BChw`` to (B, width, h, w)."""
        return self.out(self.hidden(features_BChw.to(self.hidden.weight.dtype)).relu())
