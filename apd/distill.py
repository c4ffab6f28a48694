"""Adaptive Perspective Distillation as one module: the projection heads, the four terms and their weights."""

from collections.abc import Mapping
from typing import Literal, Self

from torch import Tensor, nn

from apd import losses, perspective, validation
from apd.fields import WIDEST


class ProjectionHead(nn.Module):
    """Conv 1×1 - ReLU - conv 1×1, with biases and without normalisation (as released), in its parameters' precision.

    ``width`` is that of its hidden and of its output map (512 in the released code).
    """

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        in_channels = validation.check_count("in_channels", in_channels)
        self.in_channels, width = in_channels, validation.check_count("width", width, WIDEST)
        self.hidden = nn.Conv2d(in_channels, width, kernel_size=1)
        self.out = nn.Conv2d(width, width, kernel_size=1)

    def forward(self, features_BChw: Tensor) -> Tensor:
        """``features_BChw`` to (B, width, h, w)."""
        return self.out(self.hidden(features_BChw.to(self.hidden.weight.dtype)).relu())


class APDLoss(nn.Module):
    """Adaptive Perspective Distillation between any teacher and any student, in a few lines of a training loop.

    Each net's features pass through its own head to a common width, each image gets one perspective per net
    (:func:`apd.class_prototypes`), and its pixels are observed through it (:func:`apd.observe`). Of the four terms of
    :mod:`apd.losses`, ``regularisation`` trains the teacher's head only, the others the student and its head only, so
    that one ``backward`` fills both sets of parameters with what two separate updates would::

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

    Features are the maps before the classifiers, on any two grids, see ``align_corners``. With autocast off, the
    heads run in their parameters' precision and all else in float32, or in float64 where the inputs are. Memory is
    linear in pixels: beside the heads' activations, a few maps of (B, K, h, w) and (B, K, h, W), and with
    ``upsample_logits`` or ``labels_from="teacher"`` of (B, K, H, W). On a CPU with ``absent="mask"``, K counts only the
    classes that occur, but in ``pixel_kd``.

    Args:
        student_channels, teacher_channels: channels of the two feature maps.
        num_classes: number of classes K.
        width: output channels of the heads (default 512, released code). ``None``: no heads, for equal channels.
        scale: inverse temperature of the observations (default 10, released code).
        scope: ``"image"`` (default, paper): a perspective per image; ``"batch"`` (released code): one per process.
        reduction: of the two KL terms: ``"pixel"`` (default, own choice) or ``"element"`` (released code).
        absent: classes without prototype in the regularisation: ``"mask"`` (default, own choice) leaves them and pixels
            of them out, ``"zero"`` (released code) gives them logit 0 and counts the pixels.
        ignore_index: label of pixels that belong to no class (default 255).
        temperature: of ``pixel_kd`` (default 1, released code).
        upsample_logits: compare logits on the label grid (released code) instead of their own (default, own choice).
        labels_from: ``"truth"`` (default, paper), or ``"teacher"``: its predictions, so that images without labels can
            be distilled; of ``labels`` only size and range count then.
        detach_prototypes: the observation term does not move the student's prototypes (default False, released code).
        align_corners: True: features meet on the finer grid, and a cell takes the label of the pixel where upsampling
            with aligned corners shows it. False (default): on the coarser grid, and the nearest label (released code).
        weights: of the terms by name, each with its default in :data:`apd.losses.DEFAULT_WEIGHTS` (own choice), but 0
            for ``regularisation`` without heads. A term of weight 0 is not computed, and a head that no term trains is
            frozen.

    ``ValueError`` and ``TypeError`` name the argument, its value and what was expected; labels outside 0..K-1 that are
    not ``ignore_index`` are a ``RuntimeError`` (on a GPU: an asynchronous device assertion). All terms but ``pixel_kd``
    can be differentiated once only, and not by ``torch.func``.
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        num_classes: int,
        *,
        width: int | None = 512,
        scale: float = 10.0,
        scope: perspective.Scope = "image",
        reduction: losses.Reduction = "pixel",
        absent: perspective.Absent = "mask",
        ignore_index: int = 255,
        temperature: float = 1.0,
        upsample_logits: bool = False,
        labels_from: Literal["truth", "teacher"] = "truth",
        detach_prototypes: bool = False,
        align_corners: bool = False,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.student_channels = validation.check_count("student_channels", student_channels)
        self.teacher_channels = validation.check_count("teacher_channels", teacher_channels)
        self.num_classes = validation.check_count("num_classes", num_classes)
        if num_classes == 1:
            raise ValueError(f"num_classes=1: one class leaves nothing to distinguish; {validation.BINARY}")
        self.ignore_index = validation.check_ignore_index(ignore_index, num_classes)
        self.scale, self.scope, self.reduction, self.absent = scale, scope, reduction, absent
        self.temperature, self.upsample_logits = temperature, upsample_logits
        self.labels_from, self.detach_prototypes, self.align_corners = labels_from, detach_prototypes, align_corners
        validation.check_choice("scope", scope, ("image", "batch"))
        validation.check_choice("reduction", reduction, ("pixel", "element"))
        validation.check_choice("absent", absent, ("mask", "zero"))
        validation.check_choice("labels_from", labels_from, ("truth", "teacher"))
        validation.check_choice("upsample_logits", upsample_logits, (False, True))
        validation.check_choice("detach_prototypes", detach_prototypes, (False, True))
        validation.check_choice("align_corners", align_corners, (False, True))
        validation.check_positive("scale", scale, most=validation.STEEPEST)
        validation.check_positive("temperature", temperature, least=validation.COLDEST)
        if width is None and student_channels != teacher_channels:
            got = f"student_channels={student_channels} and teacher_channels={teacher_channels}"
            fix = "give a width, so that heads project both to it"
            raise ValueError(f"width=None needs equal channels, got {got}: {fix}")
        self.weights = losses.checked_weights({} if weights is None else weights, has_heads=width is not None)
        self.student_head = nn.Identity() if width is None else ProjectionHead(student_channels, width)
        self.teacher_head = nn.Identity() if width is None else ProjectionHead(teacher_channels, width)
        # Under DDP a parameter that requires a gradient and gets none stalls the reducer.
        self.student_head.requires_grad_(bool(self.weights["alignment"] or self.weights["observation"]))
        self.teacher_head.requires_grad_(bool(self.weights["regularisation"]))

    @classmethod
    def as_released(
        cls, student_channels: int, teacher_channels: int, num_classes: int, *, width: int | None = 512
    ) -> Self:
        """The settings of the authors' released code, where they part from the defaults above."""
        options = {"scope": "batch", "reduction": "element", "absent": "zero", "upsample_logits": True}
        options["weights"] = losses.RELEASED_WEIGHTS if width else losses.RELEASED_WEIGHTS | {"regularisation": 0.0}
        return cls(student_channels, teacher_channels, num_classes, width=width, **options)

    def student_parameters(self) -> list[nn.Parameter]:
        """Trained parameters of the student's head, for the student's optimiser (empty when there are none)."""
        return [parameter for parameter in self.student_head.parameters() if parameter.requires_grad]

    def teacher_parameters(self) -> list[nn.Parameter]:
        """Trained parameters of the teacher's head; the released code gives them an Adam of learning rate 1e-5."""
        return [parameter for parameter in self.teacher_head.parameters() if parameter.requires_grad]

    @perspective.full_precision
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

        Features are (B, C, h, w), logits (B, K, h, w), each net's on its own grid; labels (B, H, W), uint8 or a signed
        integer. Logits may be left out where ``pixel_kd`` has weight 0.
        """
        weights, terms = self.weights, {}
        maps = {"student_features": student_features, "teacher_features": teacher_features}
        for name, value in {"student_logits": student_logits, "teacher_logits": teacher_logits}.items():
            if value is not None:
                maps[name] = value
            elif weights["pixel_kd"]:
                raise ValueError(f"{name} is missing: pass it, or construct with weights={{'pixel_kd': 0}}")
            elif name == "teacher_logits" and self.labels_from == "teacher":
                raise ValueError("teacher_logits is missing: labels_from='teacher' takes its labels from them")
        trained = ["student_features"] if weights["alignment"] or weights["observation"] else []
        trained += ["student_logits"] if weights["pixel_kd"] else []
        ignore_index = self.ignore_index if self.labels_from == "truth" else None  # else every pixel counts
        maps = validation.check_call(self, maps, labels, ignore_index, trained=trained)
        perspective.valid_pixels(labels, self.num_classes, ignore_index=self.ignore_index)  # also those off the grid
        if self.labels_from == "teacher":
            highest, labels = losses.upsample(validation.without_infinities(teacher_logits), labels.shape[1:]).max(1)
        if weights["regularisation"] or weights["alignment"] or weights["observation"]:
            both = maps["student_features"], maps["teacher_features"].detach()
            grid = {"align_corners": self.align_corners}
            student_BChw, teacher_BChw = perspective.match_grids(*both, **grid)
            seen = self._classes_at_hand(labels, perspective.resize_labels(labels, teacher_BChw.shape[2:], **grid))
            how = {"labels_Bhw": seen.labels_Bhw, "num_classes": seen.num_classes, "ignore_index": seen.ignore_index}
            how |= {"scope": self.scope, "scale": self.scale, "absent": self.absent}
            teacher_BKD, present_BK, teacher_BKhw = perspective.observe_itself(self.teacher_head(teacher_BChw), **how)
        if weights["regularisation"]:
            counted = present_BK if self.absent == "mask" else None
            terms["regularisation"] = losses.regularisation_loss(
                teacher_BKhw, seen.labels_BHW, counted, ignore_index=seen.ignore_index
            )
        if weights["alignment"] or weights["observation"]:
            how["detach_prototypes"] = self.detach_prototypes
            student_BKD, _, student_BKhw = perspective.observe_itself(self.student_head(student_BChw), **how)
        if weights["alignment"]:
            terms["alignment"] = losses.alignment_loss(student_BKD, teacher_BKD, present_BK)
        if weights["observation"]:
            terms["observation"] = self._observation(student_BKhw, teacher_BKhw, present_BK, seen)
        if weights["pixel_kd"]:
            options = {"temperature": self.temperature, "upsample_logits": self.upsample_logits}
            options |= {"ignore_index": self.ignore_index, "reduction": self.reduction}
            terms["pixel_kd"] = losses.pixel_kd_loss(maps["student_logits"], maps["teacher_logits"], labels, **options)
        loss = sum(weights[name] * term for name, term in terms.items())
        if self.labels_from == "teacher":  # a NaN is no prediction: the loss must not hide it
            loss = loss + 0.0 * highest.sum()
        return terms | {"loss": loss}

    def extra_repr(self) -> str:
        """What ``print(module)`` says of the settings."""
        names = ("scale", "scope", "reduction", "absent", "ignore_index", "temperature", "upsample_logits")
        names += ("labels_from", "detach_prototypes", "align_corners")
        settings = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{settings}, weights: {', '.join(f'{name}={value:g}' for name, value in self.weights.items())}"

    def _classes_at_hand(self, labels_BHW: Tensor, labels_Bhw: Tensor) -> perspective.CompactLabels:
        """On a CPU, where reading a value costs nothing: only the classes that occur. Elsewhere all of them."""
        if labels_BHW.is_cpu and validation.has_values(labels_BHW) and self.absent == "mask":
            return perspective.occurring_classes(
                labels_BHW, labels_Bhw, self.num_classes, ignore_index=self.ignore_index, scope=self.scope
            )
        return perspective.CompactLabels(labels_BHW, labels_Bhw, self.num_classes, self.ignore_index)

    def _observation(
        self, student_BKhw: Tensor, teacher_BKhw: Tensor, present_BK: Tensor, seen: perspective.CompactLabels
    ) -> Tensor:
        options = {"ignore_index": seen.ignore_index, "reduction": self.reduction}
        return losses.observation_loss(student_BKhw, teacher_BKhw, present_BK, seen.labels_Bhw, **options)
