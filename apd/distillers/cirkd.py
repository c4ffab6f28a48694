"""Cross-image relational distillation (CIRKD): pixels compared with pixels of other images and of earlier batches.

Shape letters as in :mod:`apd.perspective`; further M pixels of a pooled grid, S samples from a memory.
"""

from itertools import count
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apd.distillers.base import IGNORED, DistillerConfig, FeatureDistiller, convolved
from apd.distillers.relations import relation_divergence
from apd.losses import divergence, masked_mean
from apd.perspective import class_prototypes, full_precision, inverse_length


@full_precision
def cross_image_loss(
    student_BChw: Tensor, teacher_BChw: Tensor, valid_Bhw: Tensor, *, temperature: float, most_pixels: int
) -> Tensor:
    """KL between the two nets' similarities of a pixel with all pixels of an image, over all pairs of images.

    Similarities are cosines / T under a softmax over the second image's pixels. The maps are averaged down to at most
    ``most_pixels`` cells an image, over valid pixels. Memory: about seven (B, M, B, M) maps.
    """
    h, w = student_BChw.shape[2:]
    window = next(side for side in count(1) if -(-h // side) * -(-w // side) <= most_pixels)
    weight_B1hw = valid_Bhw[:, None].to(student_BChw.dtype)
    valid_BM = F.avg_pool2d(weight_B1hw, window, ceil_mode=True).flatten(1) > 0

    def similarities(features_BChw: Tensor) -> Tensor:
        # The mean over valid pixels and this mean with zeros among them have the same direction.
        pooled_BCM = F.avg_pool2d(features_BChw * weight_B1hw, window, ceil_mode=True).flatten(2)
        pooled_BCM = pooled_BCM * inverse_length(pooled_BCM, dim=1)
        cosines_BMBM = torch.einsum("acm,bcn->ambn", pooled_BCM, pooled_BCM)
        return (cosines_BMBM / temperature).masked_fill(~valid_BM, torch.finfo(cosines_BMBM.dtype).min)

    divergence_BMBM = divergence(similarities(student_BChw), similarities(teacher_BChw), dim=3)
    return masked_mean(divergence_BMBM.sum(3), valid_BM[:, :, None] & valid_BM.any(1))


@full_precision
def memory_loss(
    student_BDhw: Tensor, teacher_BDhw: Tensor, samples_SD: Tensor, valid_Bhw: Tensor, *, temperature: float
) -> Tensor:
    """KL between the two nets' similarities of a pixel with samples of a memory: mean over valid pixels."""

    def directions(features_BDhw: Tensor) -> Tensor:
        return (features_BDhw * (inverse_length(features_BDhw, dim=1) / temperature)).flatten(2).mT.flatten(0, 1)

    vectors = directions(student_BDhw), directions(teacher_BDhw), samples_SD
    dtype = torch.promote_types(student_BDhw.dtype, teacher_BDhw.dtype)
    divergence_N = relation_divergence(*(vectors_ND.to(dtype) for vectors_ND in vectors))
    return masked_mean(divergence_N, valid_Bhw.flatten())


class RelationHead(nn.Module):
    """Conv 1×1 - batch norm - ReLU - conv 1×1, without biases, of the student's pixels (CIRKD code).

    The norm's statistics are those of the batch's valid pixels (released code: of all pixels of all processes).
    """

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(in_channels, width, kernel_size=1, bias=False)
        self.scale = nn.Parameter(torch.ones(width, 1, 1))
        self.shift = nn.Parameter(torch.zeros(width, 1, 1))
        self.out = nn.Conv2d(width, width, kernel_size=1, bias=False)

    def forward(self, features_BChw: Tensor, valid_Bhw: Tensor) -> Tensor:
        """``features_BChw`` to (B, width, h, w)."""
        values = convolved(self.hidden, features_BChw)
        counted = valid_Bhw[:, None]
        size = counted.sum().clamp(min=1)
        mean = torch.where(counted, values, 0.0).sum((0, 2, 3), keepdim=True) / size
        centred = torch.where(counted, values - mean, 0.0)
        variance = centred.square().sum((0, 2, 3), keepdim=True) / size
        return self.out((centred * (variance + 1e-5).rsqrt() * self.scale + self.shift).relu())


class CIRKDConfig(DistillerConfig):
    """Settings of :class:`apd.CIRKD`, with queues a tenth as long as published, since every checkpoint holds them."""

    method: Literal["cirkd"] = "cirkd"
    batch_pixels: float = 1.0  #: Weight of the relations between pixels of the batch; 0 leaves them out.
    pixel_memory: float = 0.1  #: Weight of the relations with pixels of earlier batches; 0 leaves them out.
    region_memory: float = 0.1  #: Weight of the relations with regions of earlier batches; 0 leaves them out.
    temperature: float = 0.1
    most_pixels: int = 256  #: Pixels of an image, after averaging, in the relations of the batch (own choice).
    pixel_slots: int = 2000  #: Pixels that a class's queue holds (own choice; published: 20 000).
    region_slots: int = 200  #: Regions that a class's queue holds (own choice; published: 2000).
    pixel_samples: int = 4096  #: Pixels of the memory that a step compares with.
    region_samples: int = 1024  #: Regions of the memory that a step compares with.
    new_pixels: int = 16  #: Pixels of a class in an image that a step keeps.
    terms = ("batch_pixels", "pixel_memory", "region_memory")


class CIRKD(FeatureDistiller, config=CIRKDConfig):
    """Cross-image relational knowledge distillation (Yang et al. 2022, code of 2022).

    Three terms compare the two nets' softmax of cosines / T by a KL: of each pixel with the pixels of every image of
    the batch (``batch_pixels``), with teacher pixels of earlier batches (``pixel_memory``) and with their class means
    (``region_memory``). For the memories the student's pixels pass through a head to the teacher's channels. In
    training mode every call writes to them, buffers of one queue a class, before it reads; slots not yet written hold
    random directions, as released. Under DDP each process has its own (the released code gathers from all) only with
    ``broadcast_buffers=False``: by default DDP overwrites them with rank 0's before every forward pass. Ignored pixels
    are in no pair and no queue (the released code counts them in ``batch_pixels``, and queues an image's first pixels
    for a class whatever their labels).

    Defaults are released ones but for ``most_pixels`` (released: all): those of the weights are the Cityscapes scripts'
    (the authors advise 0.01 for the memories on VOC; at 0 there is no queue), and the queues of the class, 20 000 and
    2000 long, are ten times those of its configuration.
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        num_classes: int,
        *,
        pixel_slots: int = 20_000,
        region_slots: int = 2000,
        **settings: Any,
    ) -> None:
        settings |= {"pixel_slots": pixel_slots, "region_slots": region_slots}
        super().__init__(student_channels, teacher_channels, num_classes, **settings)
        has_head = self.pixel_memory or self.region_memory
        self.head = RelationHead(student_channels, teacher_channels) if has_head else None
        self.memories = nn.ModuleDict()
        for kind in ("pixel", "region"):
            sizes = {name: getattr(self, f"{kind}_{name}") for name in ("slots", "samples")}
            if self.weights[f"{kind}_memory"]:
                self.memories[f"{kind}_memory"] = ClassMemory(self.num_classes, self.teacher_channels, **sizes)

    def terms(self, student: Tensor, teacher: Tensor, labels_Bhw: Tensor) -> dict[str, Tensor]:
        valid_Bhw, terms = labels_Bhw != IGNORED, {}
        if self.weights["batch_pixels"]:
            how = {"temperature": self.temperature, "most_pixels": self.most_pixels}
            terms["batch_pixels"] = cross_image_loss(student, teacher, valid_Bhw, **how)
        if self.training:
            self._remember(teacher, labels_Bhw)
        headed = student if self.head is None else self.head(student, valid_Bhw)
        for name, memory in self.memories.items():
            terms[name] = memory_loss(headed, teacher, memory.sample(), valid_Bhw, temperature=self.temperature)
        return terms

    @torch.no_grad()
    def _remember(self, teacher_BDhw: Tensor, labels_Bhw: Tensor) -> None:
        """Queue the class means of each image, and random pixels of each class in each image."""
        if "region_memory" in self.memories:
            means_BKD, present_BK = class_prototypes(teacher_BDhw, labels_Bhw, self.num_classes, ignore_index=IGNORED)
            self.memories["region_memory"].append(means_BKD.transpose(0, 1), present_BK.T)
        if "pixel_memory" in self.memories:
            labels_BN = labels_Bhw.flatten(1)
            classes_K1 = torch.arange(self.num_classes, device=labels_BN.device)[:, None]
            draw_BN = torch.rand(labels_BN.shape, device=labels_BN.device)
            draw_BKN = torch.where(labels_BN[:, None] == classes_K1, draw_BN[:, None], -1.0)
            best_BKU, places_BKU = draw_BKN.topk(min(self.new_pixels, labels_BN.shape[1]), dim=2)
            teacher_BDN = teacher_BDhw.flatten(2)
            teacher_BND = (teacher_BDN * inverse_length(teacher_BDN, dim=1)).mT
            images_B11 = torch.arange(len(labels_BN), device=labels_BN.device)[:, None, None]
            pixels_BKUD = teacher_BND[images_B11, places_BKU]
            found_KM = (best_BKU >= 0).transpose(0, 1).flatten(1)
            self.memories["pixel_memory"].append(pixels_BKUD.transpose(0, 1).flatten(1, 2), found_KM)


class ClassMemory(nn.Module):
    """Queues of ``slots`` unit vectors of length ``width``, one a class, as buffers of fixed size.

    ``samples`` is about how many vectors :meth:`sample` returns: ``samples // num_classes + 1`` of each class, or all.
    """

    def __init__(self, num_classes: int, width: int, *, slots: int, samples: int) -> None:
        super().__init__()
        self.samples = min(samples // num_classes + 1, slots)
        self.register_buffer("vectors", F.normalize(torch.randn(num_classes, slots, width), dim=2))
        self.register_buffer("written", torch.zeros(num_classes, dtype=torch.long))

    @torch.no_grad()
    def append(self, candidates_KMD: Tensor, wanted_KM: Tensor) -> None:
        """Write the wanted candidates of each class, in order, over its oldest vectors, as many as there are slots."""
        slots = self.vectors.shape[1]
        # Wanted ones first, in order; the others would follow them, and write back what their slots hold.
        order_KM = wanted_KM.long().argsort(dim=1, descending=True, stable=True)[:, :slots]
        wanted_KM = wanted_KM.gather(1, order_KM)
        classes_K1 = torch.arange(len(order_KM), device=order_KM.device)[:, None]
        places_KM = (self.written[:, None] + torch.arange(order_KM.shape[1], device=order_KM.device)) % slots
        new_KMD = candidates_KMD[classes_K1, order_KM].to(self.vectors.dtype)
        old_KMD = self.vectors[classes_K1, places_KM]
        self.vectors[classes_K1, places_KM] = torch.where(wanted_KM[:, :, None], new_KMD, old_KMD)
        self.written.add_(wanted_KM.sum(1))

    def sample(self) -> Tensor:
        """Vectors (S, D) of all classes, the same random slots of each."""
        slots = torch.randperm(self.vectors.shape[1], device=self.vectors.device)[: self.samples]
        return self.vectors.index_select(1, slots).flatten(0, 1)
