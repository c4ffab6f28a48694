"""Networks of any library as student or teacher: made by a function of the user's and read at two of their modules."""

import hashlib
import importlib
import inspect
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from apd.fields import did_you_mean
from apd.hooks import FeatureTap
from apd.models.segmenter import SegOutput, check_images
from apd.validation import check_grids, check_map

KNOWN_PATHS = {
    "segmentation_models_pytorch.SegmentationModel": ("decoder", "segmentation_head.0"),
    "torchvision.DeepLabV3": ("classifier.3", "classifier"),
    "torchvision.FCN": ("classifier.2", "classifier"),
    "torchvision.LRASPP": ("classifier.cbr", "classifier"),
    "transformers.SegformerForSemanticSegmentation": ("decode_head.activation", "decode_head.classifier"),
}
"""Paths of features and logits by library and class, subclasses included."""
_resized = partial(F.interpolate, mode="bilinear", align_corners=False)


class CustomSegmenter(nn.Module):
    """A network of any library behind the interface of :class:`~apd.models.Segmenter`; see :func:`build_custom`.

    Images are normalised by the network's own `image_mean` and `image_std`, else as timm says of a part, else by
    ImageNet's, and enlarged to multiples of 14, 32 or 64 where it asks for that; the maps are made smaller by as much.
    """

    def __init__(self, network: nn.Module, num_classes: int, features: str, logits: str, *auxiliary: str) -> None:
        super().__init__()
        self.network, self.num_classes, self.paths = network, num_classes, (features, logits, *auxiliary)
        self._taps: list[FeatureTap] = []
        of_timm = (getattr(module, "pretrained_cfg", None) for module in network.modules())
        known = next((cfg for cfg in of_timm if isinstance(cfg, dict) and cfg.get("mean")), {})
        for name, default in (("mean", IMAGENET_DEFAULT_MEAN), ("std", IMAGENET_DEFAULT_STD)):
            values = torch.as_tensor(getattr(network, f"image_{name}", known.get(name, default)))
            if values.min() < 0 or values.max() > 1:
                raise ValueError(f"image_{name} = {values.tolist()}: expected it of images in [0, 1]; divide by 255")
            self.register_buffer(f"image_{name}", values.detach().float().clone().reshape(1, 3, 1, 1))
        self.open_taps()
        self.feature_channels = self._try_out()

    def open_taps(self) -> None:
        """Listen at the paths; anew where a module was replaced, as by another kind of batch norm."""
        for tap in self._taps:
            tap.close()
        self._taps = [FeatureTap(self.network, path).open() for path in self.paths]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.open_taps()  # those of a copy are closed

    def forward(self, images_B3HW: Tensor) -> SegOutput:
        """Images `B 3 H W`, floating point in [0, 1] → :class:`~apd.models.SegOutput`, each map on its own grid."""
        check_images(images_B3HW)
        size = images_B3HW.shape[2:]
        sides = [-(-side // self.multiple) * self.multiple for side in size]
        if any(side % self.multiple for side in size):
            images_B3HW = _resized(images_B3HW, sides)
        self.network((images_B3HW - self.image_mean) / self.image_std)
        maps = [tap.take() for tap in (self._taps if self.training else self._taps[:2])]
        if any(side % self.multiple for side in size):  # cells as wide as high again
            maps = [_resized(m, [-(-n * a // b) for n, a, b in zip(m.shape[2:], size, sides)]) for m in maps]
        return SegOutput(maps[1], maps[0], tuple(maps[2:]) or None)

    def _try_out(self) -> int:
        """Run on zeros, find `multiple`, freeze what has no part in the two maps, and return the features' channels."""
        images = torch.zeros(1, 3, 65, 97)
        self.eval()
        for self.multiple in (1, 14, 32, 64):
            try:
                output = self(images)
                break
            except Exception:  # whatever it raises at a size that it does not take
                if self.multiple == 64:
                    raise
        maps = [output.features, output.logits]
        if self.paths[2:]:  # a network may have them in training alone
            copies = {name: buffer.clone() for name, buffer in self.named_buffers()}
            maps += functional_call(self.train(), copies, images.repeat(2, 1, 1, 1)).aux
        for path, name, found in zip(self.paths, ("features", "logits", *["auxiliary"] * len(maps)), maps):
            check_map(where := f"{name} {path!r}", found)
            check_grids({where: found, "labels": images[:, 0].expand(len(found), -1, -1)})
            if min(found.shape[2:]) < 2 or not found.isfinite().all():
                raise ValueError(f"{where} are {tuple(found.shape)} for 65×97 zeros: expected 2×2 or more, all finite")
            if (channels := found.shape[1]) != self.num_classes and name != "features":
                fix = "build the network for so many, or name another module by --network.logits"
                if (channels, self.num_classes) == (1, 2):
                    fix = "the two of one sigmoid channel z are apd.two_channel_logits(z)"
                expected = f"expected {self.num_classes}, the number of classes; {fix}"
                raise ValueError(f"{where} have {channels} channels: {expected}")
        # a part that gets no gradient, such as an auxiliary classifier, would be waited for by several ranks
        total, trained = sum(found.sum() for found in maps), [p for p in self.parameters() if p.requires_grad]
        for parameter, part in zip(trained, torch.autograd.grad(total, trained, allow_unused=True) if trained else ()):
            parameter.requires_grad_(part is not None)
        self.train()
        return output.features.shape[1]

    def head_parameters(self) -> list[nn.Parameter]:
        """Those of the children that the paths lead through, or, where these are all, of the module of the logits."""
        named, starts = dict(self.network.named_parameters()), tuple(f"{path.split('.')[0]}." for path in self.paths)
        if all(name.startswith(starts) for name in named):
            starts = f"{self.paths[1]}."
        return [parameter for name, parameter in named.items() if name.startswith(starts)]

    def backbone_parameters(self) -> list[nn.Parameter]:
        """All others, which take the base learning rate."""
        heads = set(self.head_parameters())
        return [parameter for parameter in self.network.parameters() if parameter not in heads]


def build_custom(
    builder: str, num_classes: int, *auxiliary: str, features: str = "", logits: str = "", builder_sha256: str = ""
) -> CustomSegmenter:
    """The network that `builder` returns, "package.module:function" or "nets.py:function", read at two paths or more.

    The function gets the number of classes as its `num_classes` or `classes`. Paths of :data:`KNOWN_PATHS` may be left
    out. The network is on the CPU and in training mode, and parameters that no map depends on are frozen. ValueError:
    something is wrong with it, a path, or the maps of zeros; a file of another sha256 is a warning.
    """
    where, _, name = builder.rpartition(":")
    try:
        with _neighbours(where), torch.device("cpu"), torch.enable_grad():
            module = _module_of(where, builder_sha256) if where.endswith(".py") else importlib.import_module(where)
            if not callable(build := getattr(module, name, None)):
                raise ValueError(f"{where} has no function {name!r}{did_you_mean(name, vars(module).keys() - {name})}")
            words = [word for word in ("num_classes", "classes") if word in inspect.signature(build).parameters]
            network = build(**dict.fromkeys(words[:1], num_classes))
            if not isinstance(network, nn.Module):
                raise ValueError(f"it returned a {type(network).__name__}, expected a torch.nn.Module")
            kinds = [f"{kind.__module__.split('.')[0]}.{kind.__name__}" for kind in type(network).__mro__]
            known = next((KNOWN_PATHS[kind] for kind in kinds if kind in KNOWN_PATHS), ("", ""))
            if not all(paths := (features or known[0], logits or known[1])):
                children = ", ".join(dict(network.named_children()))
                flags = "features and logits (--network.features, --network.logits, of a teacher --teacher.network.…)"
                raise ValueError(f"give both paths, {flags}, of {kinds[0]}: in or below {children:.200}")
            return CustomSegmenter(network.cpu(), num_classes, *paths, *auxiliary)
    except (Exception, SystemExit) as error:
        said = " ".join((str(error) if isinstance(error, ValueError | OSError) else repr(error)).split())
        lines = [f" (line {at.lineno})" for at in traceback.extract_tb(error.__traceback__) if at.filename == where]
        raise ValueError(f"builder {builder!r}: {said:.400}{''.join(lines[-1:])}") from error


@contextmanager
def _neighbours(where: str) -> Iterator[None]:
    """Modules beside a file are found, as a script's, and forgotten: another file has its own of the same names."""
    own, before = [str(Path(where).absolute().parent)] if where.endswith(".py") else [], set(sys.modules)
    try:
        with patch.object(sys, "path", [*own, *sys.path, os.getcwd()]):  # as `python -m` has it
            yield
    finally:
        for name in set(sys.modules) - before if own else ():
            file, beside = str(getattr(sys.modules[name], "__file__", "")), os.path.join(*own, name.partition(".")[0])
            if file.startswith((f"{beside}.py", f"{beside}{os.sep}")):
                del sys.modules[name]


def _module_of(path: str, sha256: str) -> ModuleType:
    """What a file defines, as it is now."""
    content, module = Path(path).read_bytes(), ModuleType(f"apd_builder_{Path(path).stem}")
    if sha256 not in ("", hashlib.sha256(content).hexdigest()):
        warnings.warn(f"{path} is not as it was when the experiment was made; its network may be another", stacklevel=3)
    sys.modules[module.__name__] = module  # where its classes are looked up
    exec(compile(content, path, "exec"), vars(module))
    return module
