"""What an experiment is: a frozen configuration. A wrong value fails at construction, with field and expectation."""

import hashlib
import itertools
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

from apd.config.detection_config import DetectorConfig, InstanceDataConfig, require_fit, require_images
from apd.config.inference_options import SMALLEST_SIDE, WHOLE_IMAGE, InferenceOptions, least_side
from apd.distillers.base import DistillerConfig
from apd.fields import LARGEST, LONGEST_SIDE, SMALLEST, WIDEST, ExperimentError, require, require_range, require_types

TaskName = Literal["segmentation", "detection"]
_PUBLISHED = Literal["cityscapes", "ade20k", "pascal_context_59", "pascal_context_60", "coco"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, at which size, and how they are augmented in training."""

    name: Literal["scenes", "camvid", "labelmefacade", _PUBLISHED, "folder"] = "scenes"
    """Data set: the built-in scenes, a published one found through APD_DATA, or a folder of your own."""
    folder: str = ""  #: Folder only: where dataset.yaml lies; a relative path is looked for below APD_DATA first.
    height: int = 96  #: Rows of an image after loading; with height and width 0 every image keeps its own size.
    width: int = 128  #: Columns of an image after loading.
    long_side: int = 0
    """Longest side of an image in evaluation, whose labels keep their size (released: 512 or 2048); 0 leaves it."""
    labelled_share: float = 1.0  #: Share of the training images that keep their labels, evenly spaced in their order.
    unlabelled: bool = False
    """Train, by the teacher alone, on images without labels too: those that dataset.yaml names, and those whose labels
    labelled_share takes away, which are left out otherwise. The teacher itself learns from the labelled ones."""
    evaluation_split: Literal["val", "test", "test_out_of_place", "night"] = "val"
    """Split of the final scores; intermediate ones use val. The last two: labelmefacade only, scored with its test."""
    crop_height: int = 96  #: Rows of a training crop.
    crop_width: int = 96  #: Columns of a training crop.
    scale_min: float = 0.5  #: Smallest random scale (released recipes: 0.5).
    scale_max: float = 2.0  #: Largest random scale (released recipes: 2).
    flip: float = 0.5  #: Probability of a horizontal flip.
    jitter: float = 0.0  #: Strength of brightness, contrast and saturation jitter; 0 switches it off.
    rotation: float = 0.0  #: Largest rotation in degrees, of every other image on average (released recipes: 10).
    blur: float = 0.0  #: Probability of a Gaussian blur (released recipes: 0.5, from their base semseg).
    context_shift: float = 0.5  #: Scenes only: how far light, palette and texture differ between images, 0 to 1.
    train_images: int = 200  #: Scenes only: images in the training split.
    evaluation_images: int = 100  #: Scenes only: images in val and in test.
    world: int = 0  #: Scenes only: seed of the data set itself; the experiment's seed never changes the data.

    def __post_init__(self) -> None:
        require_types(self)
        require_range(32, LONGEST_SIDE, self, "crop_height", "crop_width")
        for name in ("height", "width", "long_side"):
            legal = 32 <= getattr(self, name) <= LONGEST_SIDE or getattr(self, name) == 0
            require(legal, self, name, f"an integer >= 32, or 0, at most {LONGEST_SIDE}")
        require((self.height == 0) == (self.width == 0), self, "width", f"0 only together with height {self.height}")
        require(self.name != "scenes" or self.height > 0, self, "height", "an integer >= 32: scenes have no own size")
        require(self.name != "folder" or bool(self.folder), self, "folder", "the path of a folder with a dataset.yaml")
        require_images(self)
        require(0 <= self.rotation <= 180, self, "rotation", "degrees between 0 and 180")
        require(0 <= self.blur <= 1, self, "blur", "a probability between 0 and 1")
        require(0 < self.labelled_share <= 1, self, "labelled_share", "a share above 0, at most 1")
        own = self.name == "labelmefacade" or self.evaluation_split in ("val", "test")
        require(own, self, "evaluation_split", f"val or test: {self.name} has no other")


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """A segmentation network: backbone, head and classifier."""

    backbone: str = "mobilenetv2_050"  #: resnet{18,50,101}_deep (as published), or a timm backbone that can be dilated.
    head: Literal["psp", "aspp"] = "psp"  #: Head between backbone and classifier: PSPNet's or DeepLabV3's.
    head_width: int = 128  #: Channels of the feature map before the classifier (paper: 512).
    output_stride: Literal[4, 8, 16] = 16  #: Stride of the feature map (paper: 8; 4 where the backbone can).
    fit_sides: bool = False  #: Resize images to sides of output_stride · k + 1, such as released crops have (713, 473).
    weights: Literal["none", "imagenet", "torchvision"] = "none"
    """Initial weights of the backbone: random, ImageNet's from an offline package or timm, or torchvision's."""
    dropout: float = 0.1  #: Channel dropout before the classifier (paper: 0.1).
    dilation: Literal["one_conv", "all_convs"] = "one_conv"
    """Deep-stem ResNets only: dilate one 3x3 convolution of a block (released code) or all (there, with 60 classes)."""
    aspp_reach: int = 288  #: Head aspp only: pixels to the outermost taps (released code: 36 cells of stride 8).
    weights_file: str = ""  #: With a builder: initial weights; deep-stem ResNets of imagenet: in place of timm's.
    builder: str = ""
    """package.module:function or nets.py:function: called with the number of classes, it returns any network."""
    features: str = ""  #: Builder only: path of the module whose map the classifier reads; empty where it is known.
    logits: str = ""  #: Builder only: path of the module that returns logits, on any grid; empty where it is known.
    auxiliary: tuple[str, ...] = ()  #: Builder only: paths of further logits in training, each at auxiliary_weight.
    builder_sha256: str = ""  #: Of the builder's file as the experiment is made; filled in by itself.

    def __post_init__(self) -> None:
        require_types(self)
        file, _, function = self.builder.rpartition(":")
        if self.builder:
            there = not file.endswith(".py") or bool(self.builder_sha256) or Path(file).is_file()
            expected = "package.module:function, or nets.py:function of a file that is there"
            require(bool(file) and function.isidentifier() and there, self, "builder", expected)
            if file.endswith(".py") and not self.builder_sha256:
                object.__setattr__(self, "builder_sha256", hashlib.sha256(Path(file).read_bytes()).hexdigest())
        paths = ("features", "logits", "auxiliary")
        for f in fields(self)[:-1]:  # all but the digest
            if f.name not in ("builder", "weights_file") and bool(self.builder) != (f.name in paths):
                expected = f"{f.default!r}, the default, {'beside' if self.builder else 'without'} a builder"
                require(getattr(self, f.name) == f.default, self, f.name, expected)
        require_range(4, WIDEST, self, "head_width", "aspp_reach")
        require(0 <= self.dropout < 1, self, "dropout", "0 <= dropout < 1")
        least, none = 3 * self.output_stride, f"288, the default: the head {self.head} has none"
        wide, expected = self.aspp_reach >= least, f"at least {least}, three times output_stride"
        require(self.head != "aspp" or wide, self, "aspp_reach", expected)
        require(self.head == "aspp" or self.aspp_reach == 288, self, "aspp_reach", none)
        right = not self.weights_file or bool(self.builder) or self.weights == "imagenet"
        require(right, self, "weights_file", f"weights = 'imagenet' beside it, not {self.weights!r}")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Optimiser and schedule of one network. Defaults without a remark are those of the released code."""

    iterations: int = 1000  #: Optimiser steps.
    epochs: int = 0  #: In place of iterations: passes over the training images, rounded up to whole steps.
    batch_size: int = 8  #: Images in one optimiser step, of all processes and accumulated parts together.
    optimiser: Literal["sgd", "adamw"] = "sgd"  #: Of student and heads: SGD with momentum, or AdamW (own choice).
    learning_rate: float = 0.01  #: Of the backbone; schedule and warm-up scale it from step to step.
    head_multiplier: float = 10.0  #: Learning rate of heads and classifier, as a multiple of the backbone's.
    momentum: float = 0.9  #: SGD's; no part of AdamW, with which it stays at its default.
    weight_decay: float = 1e-4  #: Of every parameter: as an L2 penalty with SGD, decoupled with AdamW.
    schedule: Literal["poly", "steps"] = "poly"  #: Falling as (1 - t/T)^power, or to a tenth at each milestone.
    power: float = 0.9  #: Exponent of the poly schedule; no part of steps, with which it stays at its default.
    milestones: tuple[int, ...] = ()  #: Schedule steps only: iterations at which the learning rate falls, in order.
    warmup: int = 0  #: Iterations over which the learning rate rises evenly to the schedule's (released code: none).
    auxiliary_weight: float = 0.4  #: Weight of the cross-entropy of the auxiliary head, or of each.
    class_weights: Literal["none", "balanced"] | tuple[float, ...] = "none"
    """Of the cross-entropies: none, balanced (inverse to a class's share of the training pixels), or one a class."""
    label_smoothing: float = 0.0  #: Share of a target that is spread evenly over all classes.
    added_loss: Literal["none", "focal", "dice", "lovasz"] = "none"  #: Added to the cross-entropy; extra `losses`.
    added_loss_weight: float = 1.0  #: Its weight.
    clip_norm: float | None = None  #: Largest norm of the gradient of the student and its heads; None: no limit.
    ema_decay: float | None = None  #: Decay of an average of the weights that is evaluated instead; None: off.
    evaluations: int = 4  #: How often the student is scored on val during training (own choice).
    keep: Literal["last", "best"] = "last"  #: The last weights, or those best on val, whose score is then optimistic.
    patience: int = 0  #: Keep best only: end after so many evaluations without a better one; 0: go on to the end.
    accumulation: int = 1  #: Parts that a batch is divided into to save memory; batch norm sees one part.
    gradient_checkpointing: bool = False  #: Compute the student's blocks again in the backward pass, to save memory.
    compile: bool = False  #: Train through torch.compile; needs a compiler, and minutes at the start.
    cuda_graph: bool = False  #: One GPU only: record forward and backward pass once, and replay them as a CUDA graph.
    channels_last: bool = True  #: Whether images and weights lie in memory channels last.
    fused: bool = False  #: Whether an optimiser step is one kernel for many parameters.
    pinned_memory: bool = False  #: GPU only: copy batches from page-locked memory, without waiting for the GPU.
    device_augmentation: bool = False  #: Segmentation only: augment on the device, without rotation or blur.

    def __post_init__(self) -> None:
        require_types(self)
        require_range(1, 10**8, self, "iterations", "accumulation")
        require_range(0, 10**4, self, "epochs", "evaluations", "patience")
        expected = f"1000, the default, beside epochs {self.epochs}: give one of the two"
        require(not self.epochs or self.iterations == 1000, self, "iterations", expected)
        require(self.keep == "last" or self.evaluations > 0, self, "evaluations", "at least 1 beside keep best")
        require(self.keep == "best" or not self.patience, self, "patience", "0, the default: it needs keep best")
        require(0 <= self.label_smoothing < 1, self, "label_smoothing", "0 <= label_smoothing < 1")
        weights = self.class_weights
        several = isinstance(weights, str) or (min(weights, default=-1) >= 0 < max(weights, default=0))
        require(several, self, "class_weights", "none, balanced, or a number >= 0 for each class, one of them above 0")
        expected = "at least 2: batch norm cannot train on one pooled vector; at most 65536"
        require(2 <= self.batch_size <= 2**16, self, "batch_size", expected)
        require_range(SMALLEST, LARGEST, self, "learning_rate", "head_multiplier", "added_loss_weight")
        require_range(0, LARGEST, self, "weight_decay", "power", "auxiliary_weight")
        require(0 <= self.momentum < 1, self, "momentum", "0 <= momentum < 1")
        whole = self.batch_size % self.accumulation == 0 and self.batch_size >= 2 * self.accumulation
        require(whole, self, "accumulation", f"equal parts, of at least 2 images, of batch_size {self.batch_size}")
        expected = "False beside compile, accumulation above 1, and added_loss focal or lovasz: it records a whole step"
        single = not self.compile and self.accumulation == 1 and self.added_loss in ("none", "dice")
        require(single or not self.cuda_graph, self, "cuda_graph", expected)
        expected = "False beside compile and cuda_graph, which plan memory themselves"
        planned = self.compile or self.cuda_graph
        require(not (self.gradient_checkpointing and planned), self, "gradient_checkpointing", expected)
        require(self.clip_norm is None or self.clip_norm > 0, self, "clip_norm", "None or a number > 0")
        require(self.ema_decay is None or 0 < self.ema_decay < 1, self, "ema_decay", "None or a number in (0, 1)")
        for owner, value, part in (("optimiser", "adamw", "momentum"), ("schedule", "steps", "power")):
            unused = getattr(self, owner) != value or getattr(self, part) == 0.9
            require(unused, self, part, f"0.9, the default: the {owner} {value} has none")
        end, steps = 10**8 if self.epochs else self.iterations, self.schedule == "steps"
        expected = f"at least one iteration, increasing, above 0 and below iterations {end}"
        expected = expected if steps else "(), the default: the schedule poly has none"
        increasing = all(earlier < later for earlier, later in itertools.pairwise((0, *self.milestones, end)))
        right = bool(self.milestones) and increasing if steps else not self.milestones
        require(right, self, "milestones", expected)
        require(0 <= self.warmup < end, self, "warmup", f"an integer from 0 to below iterations {end}")


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The teacher: its network, and either the training that makes it or a file with its weights."""

    network: NetworkConfig | DetectorConfig = field(default_factory=NetworkConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)  #: On the same data; skipped with `weights_file`.
    seed: int = 0
    weights_file: str = ""  #: To load strictly instead of training: weights of a run, or a released checkpoint.
    expected_miou: float = 0.0  #: Least mIoU of the teacher on the evaluation split, a fraction; below it, no run.
    expected_ap: float = 0.0  #: The same for a detector, by its mean box AP.

    def __post_init__(self) -> None:
        require_types(self)
        require(0 <= self.seed < 2**63, self, "seed", "an integer from 0 to 2^63 - 1")
        detects = isinstance(self.network, DetectorConfig)
        own, other = ("expected_ap", "expected_miou") if detects else ("expected_miou", "expected_ap")
        require(0 <= getattr(self, own) <= 1, self, own, "a fraction between 0 and 1")
        expected = f"0, the default: for a {type(self.network).__name__} set {own}"
        require(getattr(self, other) == 0, self, other, expected)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A full configuration. `name` is a label and does not enter the fingerprint."""

    name: str = "experiment"  #: Label of the run's folder.
    seed: int = 0  #: Initial weights, order of images, augmentation and dropout.
    data: DataConfig | InstanceDataConfig = field(default_factory=DataConfig)  #: Its class decides the task.
    network: NetworkConfig | DetectorConfig = field(default_factory=NetworkConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Autocast: auto is bf16 where the device multiplies it natively, fp32 elsewhere, and for detectors everywhere."""
    teacher: TeacherConfig | None = None
    distillers: tuple[DistillerConfig, ...] = ()  #: Distillation losses added to the task loss.
    inference: InferenceOptions = WHOLE_IMAGE  #: How an image is shown to the network for the final scores.

    def __post_init__(self) -> None:
        require_types(self)
        require(0 <= self.seed < 2**63, self, "seed", "an integer from 0 to 2^63 - 1")
        legal = 0 < len(self.name.encode()) <= 200 and all(c.isalnum() or c in "-_." for c in self.name)
        require(legal, self, "name", "letters, digits, '-', '_' and '.' only: it names a folder; at most 200 bytes")
        if self.task == "segmentation" and self.data.height:  # else images have sizes of their own
            size = self.data.height, self.data.width
            least, whole = (least_side(self.data, options, *size) for options in (self.inference, WHOLE_IMAGE))
            expected = f"a longest side that leaves the other at least {SMALLEST_SIDE} pixels, got {whole}"
            require(whole >= SMALLEST_SIDE, self.data, "long_side", expected)
            expected = f"scales and a window with sides of at least {SMALLEST_SIDE} pixels, got {least}"
            require(least >= SMALLEST_SIDE, self, "inference", expected)
        if self.distillers and self.teacher is None:
            raise ExperimentError("Experiment.teacher = None: distillers need a teacher; set Experiment.teacher")
        if self.task == "segmentation":
            expected = "False without a distiller: from images without labels a student learns by its teacher alone"
            require(not self.data.unlabelled or bool(self.distillers), self.data, "unlabelled", expected)
        methods = [d.method for d in self.distillers]
        require(len(set(methods)) == len(methods), self, "distillers", "each method at most once")
        require_fit(self)

    @property
    def task(self) -> TaskName:
        """What the network predicts: "segmentation" or "detection", by the class of `data`."""
        return "detection" if isinstance(self.data, InstanceDataConfig) else "segmentation"

    def teacher_experiment(self) -> "Experiment":
        """The experiment whose run is this one's teacher: same labels, no distillers, one for all `inference`."""
        if self.teacher is None:
            raise ExperimentError("Experiment.teacher = None: this experiment has no teacher")
        own = {name: getattr(self.teacher, name) for name in ("seed", "network", "training")}
        data = self.data if self.task == "detection" else replace(self.data, unlabelled=False)
        alone = {"teacher": None, "distillers": (), "inference": WHOLE_IMAGE}
        whose = self.data.name == "folder" and as_label(Path(self.data.folder).name)
        return replace(self, name=f"{whose or self.data.name}-teacher", data=data, **own, **alone)


def as_label(name: str) -> str:
    """A name as part of a run's label: what is no letter, figure, dot or underscore becomes an underscore."""
    return re.sub(r"[^\w.]+", "_", name)
