"""A memory of vectors from earlier batches: one queue a class, of fixed length, without a host synchronisation."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ClassMemory(nn.Module):
    """Queues of unit vectors, one a class, as buffers of fixed size (checkpoints hold them; it compiles).

    Slots not yet written hold random directions, drawn from the global generator at construction.

    Args:
        num_classes: K queues.
        width: D, length of a vector.
        slots: length of a queue.
        samples: how many vectors :meth:`sample` returns, about: ``samples // K + 1`` of each class, or all.

    >>> import torch
    >>> from apd.rivals.class_memory import ClassMemory
    >>> memory = ClassMemory(2, 1, slots=3, samples=6)
    >>> memory.append(torch.tensor([[[5.0], [6.0]], [[7.0], [8.0]]]), torch.tensor([[True, True], [False, True]]))
    >>> memory.written
    tensor([2, 1])
    >>> memory.vectors[1, 0]
    tensor([8.])
    """

    vectors: Tensor
    written: Tensor

    def __init__(self, num_classes: int, width: int, *, slots: int, samples: int) -> None:
        super().__init__()
        self.samples = min(samples // num_classes + 1, slots)
        self.register_buffer("vectors", F.normalize(torch.randn(num_classes, slots, width), dim=2))
        self.register_buffer("written", torch.zeros(num_classes, dtype=torch.long))

    @torch.no_grad()
    def append(self, candidates_KMD: Tensor, wanted_KM: Tensor) -> None:
        """Write the wanted candidates of each class, in order, over its oldest vectors.

        Where more are wanted than a queue is long, the first ones are written.
        """
        slots = self.vectors.shape[1]
        # Wanted ones first, in order; the others would follow them, and write back what their slots hold.
        order_KM = wanted_KM.long().argsort(dim=1, descending=True, stable=True)[:, :slots]
        wanted_KM = wanted_KM.gather(1, order_KM)
        classes_K1 = torch.arange(len(order_KM), device=order_KM.device)[:, None]
        places_KM = (self.written[:, None] + torch.arange(order_KM.shape[1], device=order_KM.device)) % slots
        new_KMD = candidates_KMD[classes_K1, order_KM].to(self.vectors.dtype)
        self.vectors[classes_K1, places_KM] = torch.where(
            wanted_KM[:, :, None], new_KMD, self.vectors[classes_K1, places_KM]
        )
        self.written.add_(wanted_KM.sum(1))

    def sample(self) -> Tensor:
        """Vectors (S, D) of all classes, the same random slots of each."""
        slots = torch.randperm(self.vectors.shape[1], device=self.vectors.device)[: self.samples]
        return self.vectors.index_select(1, slots).flatten(0, 1)
