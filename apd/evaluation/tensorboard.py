"""A run's curves and some of its predictions in the files that TensorBoard shows."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from apd.config.experiment import ExperimentError
from apd.data.augment import nearest
from apd.data.batches import unit_range
from apd.data.instances import InstanceSample
from apd.evaluation.average_precision import detect
from apd.evaluation.inference import predict_labels
from apd.evaluation.predict import drawn, overlay
from apd.fields import imported

IMAGES, LONGEST = 3, 1024  # predictions that are shown each time, and pixels of their longer side (own choice)


def require_tensorboard() -> Any:
    """The module torch.utils.tensorboard; ExperimentError says how to install what it needs."""
    return imported("torch.utils.tensorboard", "--tensorboard", "tensorboard", ExperimentError)


class Board:
    """Writes into `folder`, from where `step` steps are done: what was written of later ones is no longer shown."""

    def __init__(self, folder: Path, step: int) -> None:
        self.writer = require_tensorboard().SummaryWriter(folder, purge_step=step + 1)

    def _points(self, step: int, values: Mapping[str, float]) -> None:
        """One event for all curves: a call of add_scalar for each would cost a small network's step some per cent."""
        from torch.utils.tensorboard.summary import Summary

        points = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self.writer.file_writer.add_summary(Summary(value=points), step)

    def log_line(self, entry: Mapping[str, float]) -> None:
        """Terms, learning rate and seconds of a step, as a line of the run's log holds them."""
        groups = {"learning_rate": "schedule", "seconds": "time", "core_seconds": "time"}
        values = {f"{groups.get(name, 'loss')}/{name}": value for name, value in entry.items() if name != "step"}
        self._points(int(entry["step"]) + 1, values)

    def validation(self, step: int, score: str, value: float, network: nn.Module, dataset: Any) -> None:
        """The score on val after `step` steps, and what the network, in eval mode, finds in the first images."""
        self._points(step, {f"val/{score}": value})
        for name, image_HW3 in shown(network, dataset):
            self.writer.add_image(f"val/{name}", image_HW3, step, dataformats="HWC")


@torch.no_grad()
def shown(network: nn.Module, dataset: Any) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """The first images by name: labels left and prediction right, both laid over the image, or drawn detections."""
    device = next(network.parameters()).device
    for sample in (dataset[place] for place in range(min(IMAGES, len(dataset)))):
        pixels_HW3, image_3HW = sample.image_3HW.permute(1, 2, 0).numpy(), unit_range(sample.image_3HW).to(device)
        if isinstance(sample, InstanceSample):
            found_HW3 = np.asarray(drawn(pixels_HW3, detect(network, [image_3HW])[0], dataset.spec))
        else:
            labels_1HW = nearest(sample.labels_HW[None].byte(), image_3HW.shape[1:])  # images may be made smaller
            both_HW = torch.cat([labels_1HW, predict_labels(network, image_3HW[None]).byte().cpu()], 2)[0].numpy()
            found_HW3 = np.asarray(overlay(Image.fromarray(np.tile(pixels_HW3, (1, 2, 1))), both_HW, dataset.spec))
        every = -(-max(found_HW3.shape) // LONGEST)
        yield sample.name, found_HW3[::every, ::every]
