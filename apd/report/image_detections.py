"""What a detector gets right in a single picture, and which pictures to show for two detectors: a rule, no looking.

AP is a score of a whole data set. For one picture the findings that the detector is fairly sure of are counted instead.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from apd.data.instances import InstanceSample
from apd.evaluation.average_precision import Detections

LEAST_OVERLAP = 0.5
"""Overlap (intersection over union of boxes) from which a finding is right, that of AP50."""
LEAST_SCORE = 0.5
"""How sure a detector has to be for a finding to be counted and drawn (own choice)."""


class PictureCount(NamedTuple):
    """What was found in one picture.

    Attributes:
        right: things that were found, by their class.
        false: findings that are no thing, or one that was found already.
        missed: things that were not found.
    """

    right: int
    false: int
    missed: int

    @property
    def score(self) -> int:
        """Things found minus false findings."""
        return self.right - self.false


def overlaps(first_N4: Tensor, second_M4: Tensor, *, of_first: bool = False) -> Tensor:
    """(N, M) intersection over union of boxes x0, y0, x1, y1; with `of_first`, over the first box's own area.

    >>> overlaps(torch.tensor([[0.0, 0.0, 2.0, 1.0]]), torch.tensor([[1.0, 0.0, 3.0, 1.0]]))
    tensor([[0.3333]])
    """
    corner = torch.maximum(first_N4[:, None, :2], second_M4[None, :, :2])
    other = torch.minimum(first_N4[:, None, 2:], second_M4[None, :, 2:])
    common_NM = (other - corner).clamp(min=0).prod(2)
    first_N = (first_N4[:, 2:] - first_N4[:, :2]).prod(1)
    second_M = (second_M4[:, 2:] - second_M4[:, :2]).prod(1)
    whole_NM = first_N[:, None].expand_as(common_NM) if of_first else first_N[:, None] + second_M - common_NM
    return common_NM / whole_NM.clamp(min=torch.finfo(common_NM.dtype).tiny)


def count_in_picture(
    truth: InstanceSample,
    found: Detections,
    *,
    least_score: float = LEAST_SCORE,
    least_overlap: float = LEAST_OVERLAP,
) -> PictureCount:
    """Count what one picture's findings get right.

    As COCO matches them: the surest finding first, each takes the free thing of its class that it overlaps most, if by
    `least_overlap`. A finding of which that share lies in a crowd of its class is neither right nor false.

    Args:
        truth: the picture's things.
        found: what a detector found; findings below `least_score` are passed over.
        least_score, least_overlap: see above (default 0.5 each).

    Raises:
        ValueError: a threshold outside 0..1.

    Example:
        >>> box, area, crowd = torch.tensor([[2.0, 2.0, 40.0, 40.0]]), torch.tensor([1444.0]), torch.tensor([False])
        >>> image = torch.zeros(3, 64, 64, dtype=torch.uint8)
        >>> truth = InstanceSample(image, box, torch.tensor([1]), None, crowd, area, "a dog")
        >>> twice = Detections(box.repeat(2, 1), torch.tensor([0.9, 0.8]), torch.tensor([1, 1]), None)
        >>> count_in_picture(truth, twice)
        PictureCount(right=1, false=1, missed=0)
    """
    for name, value in (("least_score", least_score), ("least_overlap", least_overlap)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value}: expected a fraction between 0 and 1")
    surest = found.scores_N.argsort(descending=True, stable=True).tolist()
    order = [i for i in surest if found.scores_N[i] >= least_score]
    same_NM = found.labels_N[:, None] == truth.labels_N[None]
    wanted_NM = torch.where(same_NM & ~truth.crowd_N, overlaps(found.boxes_N4, truth.boxes_N4), -1.0)
    inside_NM = overlaps(found.boxes_N4, truth.boxes_N4, of_first=True)
    in_crowd_N = ((inside_NM >= least_overlap) & same_NM & truth.crowd_N).any(1)
    right = false = 0
    for i in order:
        best = int(wanted_NM[i].argmax()) if wanted_NM.shape[1] else -1
        if best >= 0 and wanted_NM[i, best] >= least_overlap:
            right += 1
            wanted_NM[:, best] = -1.0
        elif not in_crowd_N[i]:
            false += 1
    return PictureCount(right, false, int((~truth.crowd_N).sum()) - right)


def least_middle_most(differences: Sequence[float]) -> dict[str, int]:
    """The pictures with the greatest, the middle and the least difference: a choice that no one made by looking.

    Of equal ones it is the first that has not been named yet; the middle one is the lower median. Fewer than three come
    back only where all pictures of that difference are named.

    Args:
        differences: of two detectors' scores, picture by picture.

    >>> least_middle_most([0, 2, -1, 1, 2])
    {'greatest': 1, 'median': 3, 'least': 2}
    """
    values = list(differences)
    if not values:
        return {}
    ordered = sorted(values)
    wanted = {"greatest": ordered[-1], "median": ordered[(len(ordered) - 1) // 2], "least": ordered[0]}
    chosen: dict[str, int] = {}
    for name, value in wanted.items():
        equal = [place for place, other in enumerate(values) if other == value and place not in chosen.values()]
        if equal:
            chosen[name] = equal[0]
    return chosen
