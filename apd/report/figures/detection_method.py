"""The method between detectors in pictures: a student's boxes, what both nets make of them, and the map of classes."""

from apd.data.instances import IGNORED, InstanceSample, InstanceSpec
from apd.data.instances import class_map as class_map_of
from apd.report.detections import BoxPerspectives
from apd.report.figures.detections import (
    BACKGROUND,
    class_map_picture,
    framed,
    framed_grid,
    grey_for_background,
    thing_colours,
    tinted,
)
from apd.report.figures.perspective import cosine_matrices
from apd.report.figures.scenes import image_picture
from apd.report.figures.style import Drawing, Markdown, key

NAME_OF_BACKGROUND = "background"


def label_names(spec: InstanceSpec) -> list[str]:
    """A detector's labels in words, the background first."""
    return [NAME_OF_BACKGROUND, *spec.class_names]


def boxes_and_map(sample: InstanceSample, seen: BoxPerspectives, spec: InstanceSpec) -> Drawing:
    """A picture's boxes of things with their labels, those of the background, and the map of the dense variant."""
    things, ground = seen.labels_N > 0, seen.labels_N == 0
    plain = image_picture(sample.image_3HW)
    names = label_names(spec)
    cells = []
    for caption, chosen_N, strength in (("boxes of things", things, 0.6), ("boxes of the background", ground, 0.4)):
        labels_N = seen.labels_N[chosen_N]
        boxes_N4, colours = seen.boxes_N4[chosen_N], grey_for_background(labels_N, spec)
        first = {int(label): place for place, label in reversed(list(enumerate(labels_N.tolist()))) if label}
        labels = [names[label] if first.get(label) == i else "" for i, label in enumerate(labels_N.tolist())]
        note = f"{len(labels_N)} of {len(seen.labels_N)}"
        told = f"{caption}: {note}"
        cells.append((framed(plain, boxes_N4, colours, labels, told, strength=strength), caption, note))
    if sample.masks_NHW is not None:
        map_HW = class_map_of(sample.masks_NHW, sample.labels_N, sample.crowd_N)
        share = float(((map_HW != 0) & (map_HW != IGNORED)).float().mean())
        picture = framed(class_map_picture(map_HW, spec), sample.boxes_N4[:0], [], [], "map of classes")
        cells.append((picture, "map of classes", f"things on {100 * share:.0f} % of the pixels, ignored ones white"))
    wanted = ~sample.crowd_N
    palette = thing_colours(spec)
    colours = [palette[int(label)] for label in sample.labels_N[wanted]]
    masks = [] if sample.masks_NHW is None else list(sample.masks_NHW[wanted].numpy())
    truth = framed(
        tinted(sample.image_3HW, masks, colours), sample.boxes_N4[wanted], colours, [""] * len(colours), "truth"
    )
    cells.insert(0, (truth, "picture and its things", f"{len(colours)} to be found"))
    below = key([(NAME_OF_BACKGROUND, BACKGROUND), *zip(spec.class_names, palette, strict=True)])
    return framed_grid(cells, columns=2, least="13rem", below=below)


def both_perspectives(seen: BoxPerspectives, spec: InstanceSpec, *, trained: bool) -> Drawing:
    """Cosines between a picture's prototypes, the teacher's and the student's; labels without a box are left out."""
    told = "" if trained else ", untrained"
    matrices = {f"teacher{told}": seen.teacher_KK, f"student{told}": seen.student_KK}
    return cosine_matrices(matrices, label_names(spec), ~seen.teacher_KK.diagonal().isnan())


def boxes_in_words(seen: BoxPerspectives, spec: InstanceSpec) -> Markdown:
    """How many boxes of each label there are."""
    names = label_names(spec)
    counts = seen.labels_N.bincount(minlength=len(names)).tolist()
    told = ", ".join(f"{name} {count}" for name, count in zip(names, counts, strict=True))
    prototypes = sum(map(bool, counts))
    return Markdown(
        f"The student drew {len(seen.labels_N)} boxes: {told}. {prototypes} prototypes stand for the picture."
    )
