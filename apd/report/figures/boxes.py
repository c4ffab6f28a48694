"""Detectors: parts of average precision, trials, and images with what was found in them."""

import math
import re
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from apd.data.instances import InstanceSample, InstanceSpec, decode
from apd.evaluation.average_precision import Detections
from apd.evaluation.predict import colours_of
from apd.report.detections import (
    DETECTION_NAMES,
    LEAST_SCORE,
    MAIN_AP,
    Findings,
    count_in_image,
    counted,
    parts_of_ap,
    variant_name,
)
from apd.report.figures.answers import per_cent, trials_table
from apd.report.figures.method import at_quantiles, image_pixels
from apd.report.figures.style import Drawing, Panel, key, panels, rows_table, table
from apd.report.statistics import Comparison, spread
from apd.study.published_recipes import STUDENT_LEARNING_RATE
from apd.training.record import Record

TRIAL = re.compile(r"(\w+?)(?:-rate|_x)([\d.]+)(?:-seed0)?")
"""Label of a trial of a learning rate or of a factor on the weights."""


def by_kind(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """Each comparison by box AP, and by mask AP where its runs have masks."""
    return [comparison.by(score) for comparison in comparisons for score in counted(comparison, MAIN_AP.values())]


def parts_table(comparison: Comparison) -> Drawing:
    """A comparison's AP and its parts, of every variant and of the teacher: mean ± standard deviation, in per cent."""
    kind = next(kind for kind, score in MAIN_AP.items() if score == comparison.score)
    parts = [MAIN_AP[kind], *parts_of_ap(kind, comparison.any_record.class_names)]
    by = {score.name: comparison.by(score) for score in counted(comparison, parts)}
    rows = {
        comparison.names[variant]: {name: per_cent(spread(one.values(variant).values())) for name, one in by.items()}
        for variant in comparison.variants
    }
    if not math.isnan(comparison.teacher_score):
        rows["teacher"] = {name: per_cent(spread([one.teacher_score])) for name, one in by.items()}
    return rows_table(rows, f"{comparison.title}: AP of {kind} in per cent, mean ± standard deviation over seeds")


def detection_trials_table(records: Sequence[Record], *, weights: bool) -> Drawing:
    """Box AP on val of each method, by learning rate or by factor on its weights; the best of a row is marked."""
    found = []
    for record in records:
        trial, rate = TRIAL.fullmatch(record.experiment.name), record.experiment.training.learning_rate
        if trial and not record.experiment.seed:
            by_rate = "-rate" in trial[0]
            if weights and record.experiment.distillers and rate == STUDENT_LEARNING_RATE:
                found.append((trial[1], 1.0 if by_rate else float(trial[2]), record))
            elif not weights and by_rate:
                found.append((trial[1], rate, record))
    names = {"teacher": "teacher"} | DETECTION_NAMES
    named = [(name, value, record) for key, name in names.items() for whose, value, record in found if whose == key]
    return trials_table(named, "weights × {:g}" if weights else "learning rate {:g}", "box AP")


def _panel(sample: InstanceSample, found: Detections | None, spec: InstanceSpec, name: str) -> Panel:
    """The detections that are sure enough, three times as large; None: the objects that have to be found."""
    if found is None:
        kept = ~sample.crowd_N
        boxes_N4, labels_N, masks_NHW = sample.boxes_N4[kept], sample.labels_N[kept], sample.masks_NHW[kept]
        note = f"{len(boxes_N4)} objects"
    else:
        kept = found.scores_N >= LEAST_SCORE
        boxes_N4, labels_N = found.boxes_N4[kept], found.labels_N[kept]
        masks = [decode(found.masks[place], *sample.image_3HW.shape[1:]) for place in kept.nonzero().flatten()]
        masks_NHW = torch.tensor(np.array(masks), dtype=torch.bool)
        note = "{} right, {} false, {} missed".format(*count_in_image(sample, found))
    canvas_3HW, colours = sample.image_3HW.repeat_interleave(3, 1).repeat_interleave(3, 2), colours_of(spec)
    if own := [colours[k] for k in labels_N.tolist()]:
        large_NHW = masks_NHW.repeat_interleave(3, 1).repeat_interleave(3, 2)
        canvas_3HW = draw_segmentation_masks(canvas_3HW, large_NHW, alpha=0.4, colors=own)
        canvas_3HW = draw_bounding_boxes(canvas_3HW, 3 * boxes_N4, colors=own, width=3)
    return Panel([image_pixels(canvas_3HW)], name, note)


def images_side_by_side(findings: Findings) -> Drawing:
    """As each network sees them, and the ground truth: the images with the greatest, median and least difference."""
    chosen = at_quantiles(torch.tensor(findings.differences()), (1.0, 0.5, 0.0))
    networks, dataset, shown = findings.content["runs"], findings.dataset(), []
    for kind, place in zip(("greatest", "median", "least"), chosen, strict=True):
        sample, title = dataset[place], f"{kind} difference, image {place}"
        seen = {variant_name(network): findings.found(network)[place] for network in networks} | {"ground truth": None}
        each = [_panel(sample, found, dataset.spec, name) for name, found in seen.items()]
        above = Drawing(f'<p class="apd-above"><strong>{title}</strong></p>', title)
        shown += [above, panels(each, columns=len(each))]
    below = key(list(zip(dataset.spec.class_names, colours_of(dataset.spec), strict=True)))
    drawn = Drawing("\n".join([d.html for d in shown] + [below]), "\n".join(d.description for d in shown))
    return drawn.captioned(
        "Detections of two students of one seed and of their teacher, in the images with the greatest, the median and "
        "the least gain over the baseline. Gain: in objects detected minus false detections."
    )


def counts_table(findings: Findings) -> Drawing:
    """What the networks get right in all images of a file."""
    sums = {variant_name(network): pd.DataFrame(counts).sum() for network, counts in findings.counts().items()}
    caption = f"detections of a score of {LEAST_SCORE:g} or more in {findings.images} images, seed"
    return table(pd.DataFrame(sums).T, f"{caption} {findings.content['seed']}")
