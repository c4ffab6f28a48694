"""Labels renumbered so that only the classes that occur have a number: what is absent then costs nothing."""

from typing import NamedTuple

import torch
from torch import Tensor

from apd.perspective import Scope, valid_pixels


class SeenClasses(NamedTuple):
    """Labels on the label grid and on the feature grid, how many classes they name, and the label to ignore."""

    labels_BHW: Tensor
    labels_Bhw: Tensor
    num_classes: int
    ignore_index: int


def occurring_classes(
    labels_BHW: Tensor, labels_Bhw: Tensor, num_classes: int, *, ignore_index: int = 255, scope: Scope = "image"
) -> SeenClasses:
    """Renumber the classes of each image (with ``scope="batch"``: of the batch) that occur on the feature grid.

    Their numbers, from 0, keep the order of the classes. Pixels of a class that occurs on the label grid only, which
    has no prototype, become ignored. The number of classes is the largest that an image has, at least 1: a shape that
    depends on values, so a GPU would have to be waited for.

    Returns:
        Labels of both grids as int64, with -1 for what is ignored.

    >>> import torch
    >>> from apd.occurring import occurring_classes
    >>> occurring_classes(torch.tensor([[[7, 3, 255]]]), torch.tensor([[[7, 3, 255]]]), 19).labels_BHW
    tensor([[[ 1,  0, -1]]])
    """
    valid_Bhw = valid_pixels(labels_Bhw, num_classes, ignore_index=ignore_index)
    valid_BHW = valid_pixels(labels_BHW, num_classes, ignore_index=ignore_index)
    places_BN = torch.where(valid_Bhw, labels_Bhw.long(), num_classes).flatten(1)
    present_BK = torch.zeros(len(places_BN), num_classes + 1, dtype=torch.bool, device=labels_Bhw.device)
    present_BK.scatter_(1, places_BN, True)
    present_BK = present_BK[:, :num_classes]
    if scope == "batch":
        present_BK = present_BK.any(0, keepdim=True).expand_as(present_BK)
    number_BK = torch.where(present_BK, present_BK.cumsum(1) - 1, -1)
    number_BK = torch.cat([number_BK, torch.full_like(number_BK[:, :1], -1)], dim=1)  # the last entry: ignored
    fine_BN = torch.where(valid_BHW, labels_BHW.long(), num_classes).flatten(1)
    return SeenClasses(
        number_BK.gather(1, fine_BN).view_as(labels_BHW),
        number_BK.gather(1, places_BN).view_as(labels_Bhw),
        max(1, int(present_BK.sum(1).max())),
        -1,
    )
