"""Detections: what is right in single images, files of such findings, and comparisons by average precision."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from torchvision.ops import box_area, box_iou

from apd.data.instances import InstanceSample
from apd.data.scenes import SceneInstances
from apd.evaluation.average_precision import APScores, Detections
from apd.report.statistics import Comparison, Score, compare
from apd.training.record import Measured, Record

LEAST_OVERLAP = 0.5
"""Overlap (intersection over union of boxes) from which a detection is right, that of AP50."""
LEAST_SCORE = 0.5
"""How sure a detector has to be for a detection to be counted and drawn (own choice)."""
BASELINE, TEACHER = "student", "teacher"


class ImageCount(NamedTuple):
    """Objects found in one image, detections that are no object or one found already, and objects missed."""

    right: int
    false: int
    missed: int

    @property
    def score(self) -> int:
        """Objects found minus false detections."""
        return self.right - self.false


def count_in_image(truth: InstanceSample, found: Detections) -> ImageCount:
    """Count what the detections of one image get right, those of a score below LEAST_SCORE passed over.

    As COCO matches them: the surest first, each takes the free object of its class that it overlaps most, if by
    LEAST_OVERLAP. A detection of which that share lies in a crowd of its class is neither right nor false.
    """
    same_NM = found.labels_N[:, None] == truth.labels_N[None]
    overlaps_NM = box_iou(found.boxes_N4, truth.boxes_N4).nan_to_num(0.0)
    wanted_NM = torch.where(same_NM & ~truth.crowd_N, overlaps_NM, -1.0)
    corner_NM2 = torch.maximum(found.boxes_N4[:, None, :2], truth.boxes_N4[:, :2])
    common_NM = (torch.minimum(found.boxes_N4[:, None, 2:], truth.boxes_N4[:, 2:]) - corner_NM2).clamp(min=0).prod(2)
    inside_NM = common_NM / box_area(found.boxes_N4)[:, None]
    in_crowd_N = ((inside_NM >= LEAST_OVERLAP) & same_NM & truth.crowd_N).any(1)
    right = false = 0
    for i in found.scores_N.argsort(descending=True, stable=True).tolist():
        if found.scores_N[i] < LEAST_SCORE:
            break
        best = int(wanted_NM[i].argmax()) if wanted_NM.shape[1] else -1
        if best >= 0 and wanted_NM[i, best] >= LEAST_OVERLAP:
            right += 1
            wanted_NM[:, best] = -1.0
        elif not in_crowd_N[i]:
            false += 1
    return ImageCount(right, false, int((~truth.crowd_N).sum()) - right)


class Findings(Measured):
    """Detections of several detectors in the same scenes."""

    maker: ClassVar[str] = "detection_findings.py"
    folder: ClassVar[str] = "detection-findings"

    def check(self) -> None:
        """Raise where an entry is missing or does not fit another."""
        for network in self.content["runs"]:
            if len(found := self.found(network)) != self.images:
                raise ValueError(f"found.{network} is of {len(found)} images, but data.pictures = {self.images}")
            for place, each in enumerate(found):
                if len({len(part) for part in each if part is not None}) != 1:
                    expected = "boxes, scores, labels and masks must be equally many"
                    raise ValueError(f"found.{network}[{place}]: {expected}")
        if self.dataset().fingerprint() != self.content["data"]["fingerprint"]:
            raise ValueError("data.fingerprint is not that of today's scenes: another generator drew them")

    def dataset(self) -> SceneInstances:
        """The scenes, drawn anew."""
        return SceneInstances(**self.content["data"]["scenes"])

    @property
    def images(self) -> int:
        """How many images of the split there are detections of, from its first."""
        return self.content["data"]["pictures"]

    def found(self, network: str) -> list[Detections]:
        """One network's detections, image by image."""
        size = [self.content["data"]["scenes"][side] for side in ("height", "width")]
        return [
            Detections(
                torch.tensor(each["boxes"], dtype=torch.float32).reshape(-1, 4),
                torch.tensor(each["scores"], dtype=torch.float32),
                torch.tensor(each["labels"], dtype=torch.int64),
                None if each["masks"] is None else [{"size": size, "counts": counts} for counts in each["masks"]],
            )
            for each in self.content["found"][network]
        ]

    def counts(self) -> dict[str, list[ImageCount]]:
        """What each network gets right in each image: the baseline first, the teacher last."""
        dataset = self.dataset()
        samples = [dataset[place] for place in range(self.images)]
        return {
            network: [count_in_image(*both) for both in zip(samples, self.found(network), strict=True)]
            for network in self.content["runs"]
        }

    def differences(self) -> list[int]:
        """By image, the score of the distilled student minus that of the baseline."""
        counts = self.counts()
        (distilled,) = counts.keys() - {BASELINE, TEACHER}
        return [one.score - other.score for one, other in zip(counts[distilled], counts[BASELINE], strict=True)]


# Detection: the variants are those that the records' labels name, as in `roi_apd_and_review_kd-seed2`.

Kind = Literal["boxes", "masks"]


def ap_score(kind: Kind, name: str, of: Callable[[APScores], float]) -> Score:
    """A score that is read off the average precision of boxes or of masks (`kind`) by `of`."""

    def read(ap: dict[str, APScores] | None) -> float:
        return of(ap[kind]) if ap and kind in ap else math.nan

    return Score(name, lambda r: read(r.ap), lambda r: read(r.teacher_ap))


MAIN_AP: dict[Kind, Score] = {
    "boxes": (BOX_AP := ap_score("boxes", "box AP", lambda ap: ap.ap)),
    "masks": (MASK_AP := ap_score("masks", "mask AP", lambda ap: ap.ap)),
}
"""The mean over ten overlaps and all classes, COCO's main score."""


def parts_of_ap(kind: Kind, class_names: Sequence[str]) -> list[Score]:
    """AP at two overlaps, by size of the objects, and class by class."""
    fields = ("AP50", "AP75", "small", "medium", "large")
    parts = [ap_score(kind, name, lambda ap, name=name: getattr(ap, name.lower())) for name in fields]
    return parts + [ap_score(kind, name, lambda ap, k=k: float(ap.ap_K[k])) for k, name in enumerate(class_names)]


DETECTION_NAMES = {"student": "baseline", "roi_kd": "KD of boxes", "roi_dkd": "DKD of boxes"}
DETECTION_NAMES |= {"pyramid_matching": "pyramid matching", "review_kd": "ReviewKD"}
DETECTION_NAMES |= {"roi_apd": "APD of boxes", "dense_apd": "APD of masks"}
"""What stands in figures and tables for the distillers between detectors."""


def variant_name(variant: str) -> str:
    """What a variant is called: `roi_apd_and_review_kd` has two distillers; one without a name keeps its key."""
    return " + ".join(DETECTION_NAMES.get(part, part.replace("_", " ")) for part in variant.split("_and_"))


def detection_names(records: Iterable[Record]) -> dict[str, str]:
    """The variants that the records' labels name, with their names, in the order of figures, combinations last."""
    order = {part: place for place, part in enumerate(DETECTION_NAMES)}
    parts = {v: v.split("_and_") for v in sorted({record.experiment.name.split("-")[0] for record in records})}
    ordered = sorted(parts, key=lambda v: (len(parts[v]), [order.get(part, len(order)) for part in parts[v]]))
    return {variant: variant_name(variant) for variant in ordered}


def detection_comparisons(records: Sequence[Record]) -> list[Comparison]:
    """Comparisons by box AP, as of :func:`apd.report.statistics.compare`, one for each data configuration."""
    return [comparison.by(BOX_AP) for comparison in compare(records, detection_names(records))]


def counted(comparison: Comparison, scores: Iterable[Score]) -> list[Score]:
    """Those of some scores that the runs have: not of masks where there are none, nor of sizes that do not occur."""
    runs = [record for records in comparison.variants.values() for record in records.values()]
    return [score for score in scores if any(not math.isnan(score.of(record)) for record in runs)]
