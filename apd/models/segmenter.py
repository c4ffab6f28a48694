"""The segmentation network: backbone, head (PSPNet's or DeepLabV3's), classifier, an auxiliary head for training."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import Conv2dNormActivation as ConvBNReLU

from apd.fields import one_line
from apd.models import pretrained
from apd.models.backbones import Backbone, Dilation, Weights, create_backbone

Head = Literal["psp", "aspp"]

SMALLEST_SIDE = 32
CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"  # as on the Hugging Face hub
ARCHITECTURES = ["apd.models.Segmenter"]
PSP_BINS = (1, 2, 3, 6)  # as published
ASPP_REACH = 288  # image pixels from a cell to the outermost taps: 36 cells of stride 8 (as published)


class PyramidPooling(nn.Module):
    """The PSPNet head up to its feature map: pool at several grid sizes, upsample, concatenate, merge.

    A branch has a quarter of the channels, batch norm and ReLU, and is upsampled with `align_corners=True` (as
    published). A batch of one image in training mode is torch's ValueError: a norm of 1×1 has one value per channel.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        width = in_channels // 4
        self.branches = nn.ModuleList(ConvBNReLU(in_channels, width, 1) for _ in PSP_BINS)
        self.merge = ConvBNReLU(in_channels + width * len(PSP_BINS), out_channels, 3)

    def forward(self, features_BChw: Tensor) -> Tensor:
        """Backbone map `B in_channels h w` → merged map `B out_channels h w`."""
        maps = [features_BChw]
        for grid, branch in zip(PSP_BINS, self.branches, strict=True):
            pooled = branch(F.adaptive_avg_pool2d(features_BChw, grid))
            wide = pooled.float() if pooled.is_cuda else pooled  # CUDA sums this gradient in the map's own format
            wide = F.interpolate(wide, size=features_BChw.shape[-2:], mode="bilinear", align_corners=True)
            maps.append(wide.to(pooled.dtype))
        return self.merge(torch.cat(maps, dim=1))


class AtrousPooling(nn.Module):
    """The DeepLabV3 head up to its feature map: convolutions at several distances, concatenated and merged.

    Its branches, with batch norm and ReLU: the image's mean through a 1×1 convolution, a 1×1 convolution, and a 3×3
    convolution at each dilation, in cells (as published at output stride 8, see :func:`aspp_dilations`). As of
    :class:`PyramidPooling`, a batch of one image in training mode is torch's ValueError.
    """

    def __init__(self, in_channels: int, out_channels: int, *, dilations: Sequence[int] = (12, 24, 36)) -> None:
        super().__init__()
        self.image_pool = ConvBNReLU(in_channels, out_channels, 1)
        around = [ConvBNReLU(in_channels, out_channels, 3, dilation=dilation) for dilation in dilations]
        self.branches = nn.ModuleList([ConvBNReLU(in_channels, out_channels, 1), *around])
        self.merge = ConvBNReLU((2 + len(dilations)) * out_channels, out_channels, 3)

    def forward(self, features_BChw: Tensor) -> Tensor:
        """Backbone map `B in_channels h w` → merged map `B out_channels h w`."""
        pooled_BC11 = self.image_pool(F.adaptive_avg_pool2d(features_BChw, 1))
        maps = [pooled_BC11.expand(-1, -1, *features_BChw.shape[-2:]), *(b(features_BChw) for b in self.branches)]
        return self.merge(torch.cat(maps, dim=1))


def fitted_side(side: int, stride: int) -> int:
    """The nearest side of the form stride · k + 1."""
    return (side - 1 + stride // 2) // stride * stride + 1


def aspp_dilations(reach: int, output_stride: int) -> tuple[int, int, int]:
    """Dilations in cells whose outermost taps lie a third, two thirds and all of `reach` image pixels away."""
    return tuple(max(1, round(reach * part / (3 * output_stride))) for part in (1, 2, 3))


class AuxiliaryHead(nn.Module):
    """Second classifier, on an earlier stage: 3×3 convolution, batch norm, ReLU, channel dropout, 1×1 convolution."""

    def __init__(self, in_channels: int, num_classes: int, *, width: int = 256, dropout: float = 0.1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *ConvBNReLU(in_channels, width, 3), nn.Dropout2d(dropout), nn.Conv2d(width, num_classes, 1)
        )

    def forward(self, features_BChw: Tensor) -> Tensor:
        """Stage map `B in_channels h w` → logits `B K h w`."""
        return self.layers(features_BChw)


class SegOutput(NamedTuple):
    """Logits `B K h w`, at the output stride, features `B C h w`, and auxiliary heads' logits in training mode.

    The features are the head's map *before* dropout and classifier (own choice; in the released code after dropout).
    """

    logits: Tensor
    features: Tensor
    aux: Tensor | tuple[Tensor, ...] | None


class Segmenter(nn.Module):
    """Images in [0, 1] → class logits and the features that they come from; see :func:`~apd.models.build_segmenter`.

    The images' normalisation lies in the state dict: a checkpoint is complete. `head` makes `width` features of the
    backbone's last map; an auxiliary head makes logits of the one before. Images must be floating-point `B 3 H W` in
    [0, 1], with sides of at least 32 pixels, else a TypeError or ValueError; the values are checked on the CPU only,
    since a check would make a GPU wait. With `side_stride` above 1, they are resized to sides of side_stride · k + 1.
    """

    config: Mapping[str, Any] = {}
    """What `config.json` holds: under `network` the arguments of :func:`~apd.models.build_segmenter`."""

    def __init__(
        self, backbone: Backbone, head: nn.Module, num_classes: int, *, width: int, dropout: float, side_stride: int = 1
    ) -> None:
        super().__init__()
        self.feature_channels, self.num_classes, self.side_stride = width, num_classes, side_stride
        self.register_buffer("image_mean", torch.tensor(backbone.mean, dtype=torch.float32).reshape(1, 3, 1, 1))
        self.register_buffer("image_std", torch.tensor(backbone.std, dtype=torch.float32).reshape(1, 3, 1, 1))
        # the order of these lines is that of the random draws and of the state dict, on which records rest
        aux_head = AuxiliaryHead(backbone.aux_channels, num_classes, width=width // 2, dropout=dropout)
        self.backbone, self.head = backbone.network, head
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(width, num_classes, 1)
        self.aux_head = aux_head

    def forward(self, images_B3HW: Tensor) -> SegOutput:
        """Images `B 3 H W`, floating point in [0, 1] → :class:`~apd.models.SegOutput`."""
        check_images(images_B3HW)
        if self.side_stride > 1:
            size = tuple(fitted_side(side, self.side_stride) for side in images_B3HW.shape[2:])
            images_B3HW = F.interpolate(images_B3HW, size, mode="bilinear", align_corners=True)
        early_BChw, late_BChw = self.backbone((images_B3HW - self.image_mean) / self.image_std)[-2:]
        features_BChw = self.head(late_BChw)
        logits_BKhw = self.classifier(self.dropout(features_BChw))
        return SegOutput(logits_BKhw, features_BChw, self.aux_head(early_BChw) if self.training else None)

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Parameters that start from pre-training and take the base learning rate."""
        return list(self.backbone.parameters())

    def head_parameters(self) -> list[nn.Parameter]:
        """All other parameters: head, classifier and auxiliary head (ten times the learning rate as published)."""
        return [p for part in (self.head, self.classifier, self.aux_head) for p in part.parameters()]

    def save_pretrained(self, folder: str | Path, *, about: Mapping[str, Any] | None = None, card: str = "") -> None:
        """Write `config.json`, with `about` in it, and `model.safetensors`; `card` as `README.md` where there is none.

        The layout is that of the Hugging Face hub: `hf upload NAME FOLDER` publishes it.
        """
        if not self.config:
            raise ValueError("this network was not made by build_segmenter: save its state_dict() instead")
        tensors = {name: value.cpu().contiguous() for name, value in self.state_dict().items()}
        constants = {name: tensors[name].flatten().tolist() for name in ("image_mean", "image_std")}
        config = {**self.config, **(about or {}), "architectures": ARCHITECTURES, **constants}
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, WEIGHTS_FILE).write_bytes(save(tensors, {"format": "pt"}))
        Path(folder, CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if card and not Path(folder, CARD_FILE).exists():
            Path(folder, CARD_FILE).write_text(card, encoding="utf-8")

    @classmethod
    def from_pretrained(cls, source: str | Path, **download: Any) -> "Segmenter":
        """The network, in eval mode, of such a folder, or of a repository on the Hugging Face hub.

        `download` goes to `huggingface_hub.snapshot_download`, such as `revision`. A RuntimeError says what is wrong.
        """
        at, known = Path(source).expanduser(), [CONFIG_FILE, WEIGHTS_FILE]
        try:
            if not at.is_dir():
                from huggingface_hub import snapshot_download

                at = Path(snapshot_download(str(source), allow_patterns=known, **download))
            config = json.loads((at := at / CONFIG_FILE).read_text(encoding="utf-8"))
            if config.get("architectures") != ARCHITECTURES:
                raise ValueError(f"it is of {config.get('architectures')}, expected {ARCHITECTURES}")
            # the file's weights follow, and a config can make nothing be downloaded
            model = build_segmenter(**config["network"] | {"weights": "none", "weights_file": ""}).eval()
            model.config, at = config, at.with_name(WEIGHTS_FILE)
            model.load_state_dict(pretrained.match_tensors(pretrained.read_tensors(at)[0], model.state_dict()))
        except Exception as error:  # of a library, the network, or whatever a wrong value in the config leads to
            expected = f"expected a folder with {' and '.join(known)}, or a repository's name on the Hugging Face hub"
            raise RuntimeError(
                one_line(f"{at!s:.200}: no network can be made of it ({error!r:.400}); {expected}")
            ) from error
        return model


def check_images(images_B3HW: Tensor) -> None:
    """Raise unless the images are floating-point `B 3 H W` in [0, 1] of sides from 32 on."""
    if not isinstance(images_B3HW, Tensor):
        raise TypeError(f"images: got a {type(images_B3HW).__name__}, expected a tensor (batch, 3, height, width)")
    if not images_B3HW.is_floating_point():
        fix = "for uint8 use images.float() / 255"
        raise TypeError(f"images: got {images_B3HW.dtype}, expected floating point in [0, 1]; {fix}")
    shape = tuple(images_B3HW.shape)
    if len(shape) != 4 or shape[1] != 3:
        raise ValueError(f"images: got shape {shape}, expected (batch, 3, height, width)")
    if min(shape[2:]) < SMALLEST_SIDE:
        raise ValueError(f"images: got {shape[2]}×{shape[3]} pixels, expected sides of at least {SMALLEST_SIDE}")
    if images_B3HW.is_cpu and images_B3HW.numel() and not torch.compiler.is_compiling():
        low, high = torch.aminmax(images_B3HW.detach())
        if not (low >= -0.01 and high <= 1.01):  # written so that NaN is refused; the margin is for resampling
            fix = "divide 8-bit values by 255 and do not subtract a mean: the network does that itself"
            raise ValueError(f"images: got values from {low:.4g} to {high:.4g}, expected [0, 1]; {fix}")


def build_segmenter(
    backbone: str,
    num_classes: int,
    *,
    head: Head = "psp",
    head_width: int = 512,
    output_stride: int = 8,
    weights: Weights = "none",
    dropout: float = 0.1,
    dilation: Dilation = "one_conv",
    aspp_reach: int = ASPP_REACH,
    fit_sides: bool = False,
    weights_file: str | Path = "",
) -> Segmenter:
    """PSPNet or DeepLabV3 on a dilated backbone; random values come from torch's global generator.

    The auxiliary head reads the last stage but one and is half as wide as the head (256 beside 512 as published).

    Args:
        backbone: see :func:`~apd.models.backbones.create_backbone`, with `output_stride`, `weights`, `dilation` and
            `weights_file`; heads always start at random.
        num_classes: classes K, at least 2.
        head: "psp" (PSPNet) or "aspp" (DeepLabV3).
        head_width: channels of the features before the classifier, at least 2 (512 as published).
        dropout: channel dropout before both classifiers, in [0, 1) (0.1 as published).
        aspp_reach: of the head "aspp", in pixels of the image; see :func:`~apd.models.segmenter.aspp_dilations`.
        fit_sides: resize images to sides of `output_stride` · k + 1, such as the published 713. At others, logits that
            are upsampled with aligned corners are off by up to a stride at the right and lower edge.

    An argument out of its range is a ValueError, ImageNet weights that cannot be obtained or do not fit a RuntimeError.

    Example:
        >>> student = build_segmenter("mobilenetv2_050", 11, head_width=128, output_stride=16).eval()
        >>> output = student(torch.rand(1, 3, 160, 208))
        >>> output.logits.shape, output.features.shape, output.aux
        (torch.Size([1, 11, 10, 13]), torch.Size([1, 128, 10, 13]), None)
    """
    three = f"at least three times output_stride={output_stride}, so that the three dilations differ"
    for name, value, allowed, expected in (
        ("num_classes", num_classes, num_classes >= 2, "at least 2"),
        ("head", head, head in get_args(Head), "'psp' or 'aspp'"),
        ("head_width", head_width, head_width >= 2, "at least 2"),
        ("dropout", dropout, 0 <= dropout < 1, "a probability in [0, 1)"),
        ("aspp_reach", aspp_reach, head == "psp" or aspp_reach >= 3 * output_stride, three),
    ):
        if not allowed:
            raise ValueError(f"{name}: got {value!r}, expected {expected}")
    choices = {"output_stride": output_stride, "weights": weights, "dilation": dilation, "weights_file": weights_file}
    made = create_backbone(backbone, **choices)
    if head == "psp":
        pooling = PyramidPooling(made.channels, head_width)
    else:
        pooling = AtrousPooling(made.channels, head_width, dilations=aspp_dilations(aspp_reach, output_stride))
    sizes = {"width": head_width, "dropout": dropout, "side_stride": output_stride if fit_sides else 1}
    model = Segmenter(made, pooling, num_classes, **sizes)
    network = {"backbone": backbone, "num_classes": num_classes, "head": head, "head_width": head_width}
    network |= {"output_stride": output_stride, "dropout": dropout, "dilation": dilation, "aspp_reach": aspp_reach}
    model.config = {"network": network | ({"fit_sides": True} if fit_sides else {})}
    return model
