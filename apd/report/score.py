"""The scores by which methods are compared: each a number that is read off a record.

Segmentation has one, mIoU. Detection has the average precision (AP) of boxes and that of masks, and parts of each: by
the overlap that is asked for, by the size of things, by class.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from apd.evaluation.average_precision import APScores
from apd.training.record import Record

Kind = Literal["boxes", "masks"]
KINDS: tuple[Kind, ...] = ("boxes", "masks")


class Score(NamedTuple):
    """A number of a record, as a fraction.

    Attributes:
        name: as figures and tables call it.
        of: the student's, after the last step; NaN where the data hold nothing that it could be counted on, or the run
            does not tell.
        of_teacher: the same of the teacher's; NaN where a run has no teacher.
    """

    name: str
    of: Callable[[Record], float]
    of_teacher: Callable[[Record], float]


def _teacher_miou(record: Record) -> float:
    return math.nan if record.teacher_scores is None else record.teacher_scores.miou


MIOU = Score("mIoU", lambda record: record.scores.miou, _teacher_miou)
"""Mean intersection over union of the evaluation split."""


def miou_on(split: str) -> Score:
    """mIoU of a split that was scored beside the evaluation split; a record holds no teacher's there.

    >>> miou_on("test_out_of_place").name
    'mIoU on test_out_of_place'
    """
    return Score(f"mIoU on {split}", lambda record: record.scores_on(split).miou, lambda _: math.nan)


def ap_score(kind: Kind, name: str, of: Callable[[APScores], float]) -> Score:
    """A score that is read off AP.

    Args:
        kind: whether boxes or masks are compared with the truth.
        name: of the score.
        of: reads it from the scores of one network.
    """

    def read(ap: dict[str, APScores] | None) -> float:
        return of(ap[kind]) if ap and kind in ap else math.nan

    return Score(name, lambda record: read(record.ap), lambda record: read(record.teacher_ap))


BOX_AP = ap_score("boxes", "box AP", lambda ap: ap.ap)
MASK_AP = ap_score("masks", "mask AP", lambda ap: ap.ap)
MAIN_AP: dict[Kind, Score] = {"boxes": BOX_AP, "masks": MASK_AP}
"""The mean over ten overlaps and all classes, COCO's main score."""


def parts_of_ap(kind: Kind, class_names: Sequence[str]) -> list[Score]:
    """AP at two overlaps, by size of the things, and class by class.

    >>> [score.name for score in parts_of_ap("boxes", ["car"])]
    ['AP50', 'AP75', 'small', 'medium', 'large', 'car']
    """
    parts = [
        ap_score(kind, "AP50", lambda ap: ap.ap50),
        ap_score(kind, "AP75", lambda ap: ap.ap75),
        ap_score(kind, "small", lambda ap: ap.small),
        ap_score(kind, "medium", lambda ap: ap.medium),
        ap_score(kind, "large", lambda ap: ap.large),
    ]
    return parts + [ap_score(kind, name, lambda ap, k=k: float(ap.ap_K[k])) for k, name in enumerate(class_names)]
