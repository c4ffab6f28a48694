"""Adaptive Perspective Distillation as one module: the projection heads, the four terms and their weights."""

import difflib
import math
from collections.abc import Mapping
from typing import Self

from torch import Tensor, nn

from apd.losses import Reduction, alignment_loss, observation_loss, pixel_kd_loss, regularisation_loss
from apd.perspective import (
    Absent,
    Scope,
    check_choice,
    check_labels,
    check_map,
    class_prototypes,
    full_precision,
    match_grids,
    observe,
    resize_labels,
    valid_pixels,
)

DEFAULT_WEIGHTS = {"regularisation": 1.0, "alignment": 10.0, "observation": 1.0, "pixel_kd": 1.0}
"""Own choice, for ``reduction="pixel"``. The released code's weight of 10 in front of its element means is 10 / K or
10 / (classes present) per pixel, about 0.1 to 2 on its data sets, so the two KL terms get 1 here. The alignment does
not depend on the reduction and keeps 10."""

RELEASED_WEIGHTS = {"regularisation": 1.0, "alignment": 10.0, "observation": 10.0, "pixel_kd": 10.0}
"""The released code's, for ``reduction="element"``."""


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
        _check_count("in_channels", in_channels)
        _check_count("width", width)
        self.in_channels = in_channels
        self.hidden = nn.Conv2d(in_channels, width, kernel_size=1)
        self.out = nn.Conv2d(width, width, kernel_size=1)

    def forward(self, features_BChw: Tensor) -> Tensor:
        """``features_BChw`` to (B, width, h, w)."""
        return self.out(self.hidden(features_BChw.to(self.hidden.weight.dtype)).relu())


class APDLoss(nn.Module):
    """Adaptive Perspective Distillation between any teacher and any student, in five lines of a training loop.

    Each net's features pass through its own head to a common width. From them and the labels, every image gets one
    perspective per net (:func:`apd.class_prototypes`) through which its pixels are observed (:func:`apd.observe`).
    The terms, by name:

    - ``regularisation``: cross-entropy of the teacher's observations against the labels; trains the teacher's head
      and nothing else;
    - ``alignment``: distance between the two nets' prototypes;
    - ``observation``: KL between the two nets' observations;
    - ``pixel_kd``: KL between the two nets' ordinary logits.

    Only the last three reach the student and its head, and they never reach the teacher's head, so one ``backward``
    fills both sets of parameters with what two separate updates would. The five lines::

        distiller = APDLoss(512, 512, num_classes=19).to(device)                                            # line 1
        optimiser.add_param_group({"params": distiller.student_parameters()})                               # line 2
        head_optimiser = torch.optim.Adam(distiller.teacher_parameters(), lr=1e-5)                          # line 3

        for images, labels in batches:
            student_logits, student_features = student(images)
            with torch.no_grad():  # and not inference_mode, under which the teacher's head could not be trained
                teacher_logits, teacher_features = teacher(images)
            loss = task_loss(student_logits, labels)
            loss = loss + distiller(student_features=student_features, teacher_features=teacher_features,
                student_logits=student_logits, teacher_logits=teacher_logits, labels=labels)["loss"]        # line 4
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            head_optimiser.step(), head_optimiser.zero_grad()                                               # line 5

    Features are the maps before the classifiers. Their grids may differ: the coarser wins, the finer is averaged down
    to it. Labels go to the feature grid by the nearest rule. The arithmetic runs in float32 (float64 inputs stay so,
    with ``.double()`` heads) with autocast off. Memory is linear in pixels: beside the heads' activations, a few maps
    of (B, K, h, w), and two of (B, K, H, W) for the regularisation. At inference nothing of this module is needed.

    Args:
        student_channels, teacher_channels: channels of the two feature maps.
        num_classes: K.
        width: output channels of the heads (default 512, released code). ``None`` means no heads: the channels must
            be equal then, and ``regularisation``, having nothing to train, gets no default weight.
        scale: inverse temperature of the observations (default 10, released code).
        scope: ``"image"`` (default, paper): a perspective per image; ``"batch"`` (released code): one per batch and
            process.
        reduction: of the two KL terms: ``"pixel"`` (default, own choice) or ``"element"`` (released code); see
            :mod:`apd.losses`.
        absent: classes without prototype in the regularisation: ``"mask"`` (default, own choice) leaves them and
            pixels of them out, ``"zero"`` (released code) gives them logit 0 and counts the pixels. The observation
            term is over present classes either way.
        ignore_index: label of pixels that belong to no class (default 255).
        temperature: of ``pixel_kd`` (default 1, released code).
        upsample_logits: compare logits on the label grid (released code) instead of their own (default, own choice).
        weights: of the terms by name; names left out keep their default (:data:`DEFAULT_WEIGHTS`, own choice). A term
            of weight 0 is not computed, and a head that no term trains is frozen.

    Raises:
        ValueError, TypeError: at construction and at call, naming the argument, its value and what was expected.
        RuntimeError: labels outside 0..K-1 that are not ``ignore_index`` (on a GPU: asynchronous device assertion).
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        num_classes: int,
        *,
        width: int | None = 512,
        scale: float = 10.0,
        scope: Scope = "image",
        reduction: Reduction = "pixel",
        absent: Absent = "mask",
        ignore_index: int = 255,
        temperature: float = 1.0,
        upsample_logits: bool = False,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        _check_count("student_channels", student_channels)
        _check_count("teacher_channels", teacher_channels)
        _check_count("num_classes", num_classes)
        check_choice("scope", scope, ("image", "batch"))
        check_choice("reduction", reduction, ("pixel", "element"))
        check_choice("absent", absent, ("mask", "zero"))
        for name, value in (("scale", scale), ("temperature", temperature)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}={value}: expected a positive number")
        if width is None and student_channels != teacher_channels:
            raise ValueError(
                f"width=None needs equal channels, got student_channels={student_channels} and "
                f"teacher_channels={teacher_channels}: give a width, so that heads project both to it"
            )
        self.student_channels, self.teacher_channels, self.num_classes = student_channels, teacher_channels, num_classes
        self.scale, self.scope, self.reduction, self.absent = scale, scope, reduction, absent
        self.ignore_index, self.temperature, self.upsample_logits = ignore_index, temperature, upsample_logits
        self.weights = _checked_weights(weights or {}, has_heads=width is not None)
        self.student_head = nn.Identity() if width is None else ProjectionHead(student_channels, width)
        self.teacher_head = nn.Identity() if width is None else ProjectionHead(teacher_channels, width)
        # Under DDP a parameter that requires a gradient and gets none stalls the reducer.
        self.student_head.requires_grad_(bool(self.weights["alignment"] or self.weights["observation"]))
        self.teacher_head.requires_grad_(bool(self.weights["regularisation"]))

    @classmethod
    def as_released(
        cls, student_channels: int, teacher_channels: int, num_classes: int, *, width: int | None = 512
    ) -> Self:
        """The settings of the authors' released code, where they part from the defaults above.

        Prototypes over the batch, element means over all pixels, absent classes at logit 0 in the regularisation,
        logits compared on the label grid, and weight 10 for alignment, observation and pixel distillation.
        """
        weights = {name: value for name, value in RELEASED_WEIGHTS.items() if width or name != "regularisation"}
        return cls(
            student_channels,
            teacher_channels,
            num_classes,
            width=width,
            scope="batch",
            reduction="element",
            absent="zero",
            upsample_logits=True,
            weights=weights,
        )

    def student_parameters(self) -> list[nn.Parameter]:
        """Trained parameters of the student's head, for the student's optimiser (empty when there are none)."""
        return [parameter for parameter in self.student_head.parameters() if parameter.requires_grad]

    def teacher_parameters(self) -> list[nn.Parameter]:
        """Trained parameters of the teacher's head; the released code gives them an Adam of rate 1e-5."""
        return [parameter for parameter in self.teacher_head.parameters() if parameter.requires_grad]

    @full_precision
    def forward(
        self,
        *,
        student_features: Tensor,
        teacher_features: Tensor,
        student_logits: Tensor | None = None,
        teacher_logits: Tensor | None = None,
        labels: Tensor,
    ) -> dict[str, Tensor]:
        """The terms of positive weight, unweighted and by name, and ``"loss"``, their weighted sum.

        Args:
            student_features, teacher_features: (B, C, h, w), each with its own channels and grid. The teacher's are
                detached here.
            student_logits, teacher_logits: (B, K, h, w); may be left out if and only if ``pixel_kd`` has weight 0.
            labels: (B, H, W) class indices, uint8 or a signed integer.
        """
        self._check_maps((student_features, teacher_features, student_logits, teacher_logits))
        check_labels(labels, student_features.shape[0])
        valid_pixels(labels, self.num_classes, ignore_index=self.ignore_index)  # also those the feature grid skips
        weights = self.weights
        terms: dict[str, Tensor] = {}

        if weights["regularisation"] or weights["alignment"] or weights["observation"]:
            student_BChw, teacher_BChw = match_grids(student_features, teacher_features.detach())
            labels_Bhw = resize_labels(labels, teacher_BChw.shape[2:])
            teacher_BDhw = self.teacher_head(teacher_BChw)
            teacher_BKD, present_BK = self._perspective(teacher_BDhw, labels_Bhw)
            if weights["regularisation"] or weights["observation"]:
                teacher_BKhw = self._observe(teacher_BDhw, teacher_BKD, present_BK)
        if weights["regularisation"]:
            counted = present_BK if self.absent == "mask" else None
            terms["regularisation"] = regularisation_loss(teacher_BKhw, labels, counted, ignore_index=self.ignore_index)
        if weights["alignment"] or weights["observation"]:
            student_BDhw = self.student_head(student_BChw)
            student_BKD, _ = self._perspective(student_BDhw, labels_Bhw)
        if weights["alignment"]:
            terms["alignment"] = alignment_loss(student_BKD, teacher_BKD, present_BK)
        if weights["observation"]:
            terms["observation"] = observation_loss(
                self._observe(student_BDhw, student_BKD, present_BK),
                teacher_BKhw,
                present_BK,
                labels_Bhw,
                ignore_index=self.ignore_index,
                reduction=self.reduction,
            )
        if weights["pixel_kd"]:
            terms["pixel_kd"] = pixel_kd_loss(
                student_logits,
                teacher_logits,
                labels,
                temperature=self.temperature,
                ignore_index=self.ignore_index,
                reduction=self.reduction,
                upsample_logits=self.upsample_logits,
            )
        return terms | {"loss": sum(weights[name] * term for name, term in terms.items())}

    def extra_repr(self) -> str:
        """What ``print(module)`` says of the settings."""
        weights = ", ".join(f"{name}={value:g}" for name, value in self.weights.items())
        return f"scope={self.scope!r}, reduction={self.reduction!r}, absent={self.absent!r}, weights: {weights}"

    def _perspective(self, features_BDhw: Tensor, labels_Bhw: Tensor) -> tuple[Tensor, Tensor]:
        return class_prototypes(
            features_BDhw, labels_Bhw, self.num_classes, ignore_index=self.ignore_index, scope=self.scope
        )

    def _observe(self, features_BDhw: Tensor, prototypes_BKD: Tensor, present_BK: Tensor) -> Tensor:
        return observe(features_BDhw, prototypes_BKD, present_BK, scale=self.scale, absent=self.absent)

    def _check_maps(self, maps: tuple[Tensor | None, ...]) -> None:
        expected = (
            ("student_features", self.student_channels, "student_channels"),
            ("teacher_features", self.teacher_channels, "teacher_channels"),
            ("student_logits", self.num_classes, "num_classes"),
            ("teacher_logits", self.num_classes, "num_classes"),
        )
        for value, (name, channels, argument) in zip(maps, expected, strict=True):
            if value is None and name.endswith("logits"):
                if self.weights["pixel_kd"]:
                    raise ValueError(f"{name} is missing: pass it, or construct with weights={{'pixel_kd': 0}}")
                continue
            check_map(name, value)
            if value.shape[1] != channels:
                raise ValueError(
                    f"{name} has {value.shape[1]} channels (shape {tuple(value.shape)}): "
                    f"expected {channels}, the {argument} given at construction"
                )
            if value.shape[0] != maps[0].shape[0]:
                raise ValueError(
                    f"{name} holds {value.shape[0]} images but student_features {maps[0].shape[0]}: "
                    "the batches must agree"
                )


def _check_count(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r}: expected a positive integer")


def _checked_weights(given: Mapping[str, float], *, has_heads: bool) -> dict[str, float]:
    """Defaults overlaid with ``given``; refuses unknown names, values that are no weight, and all zeros."""
    for name, value in given.items():
        if name not in DEFAULT_WEIGHTS:
            near = difflib.get_close_matches(str(name), DEFAULT_WEIGHTS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"weights has no term {name!r}: {hint}the terms are {', '.join(DEFAULT_WEIGHTS)}")
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"weights[{name!r}]={value}: expected a finite number, 0 or greater")
    if not has_heads and given.get("regularisation"):
        raise ValueError(
            f"weights['regularisation']={given['regularisation']} with width=None: this term trains the teacher's "
            "head and there is none; give a width, or weight 0"
        )
    defaults = DEFAULT_WEIGHTS if has_heads else DEFAULT_WEIGHTS | {"regularisation": 0.0}
    weights = {name: float(given.get(name, default)) for name, default in defaults.items()}
    if not any(weights.values()):
        raise ValueError("weights are all 0: nothing would be distilled; give at least one term a positive weight")
    return weights
