"""Whether the parts of an experiment belong to one task, and what a run of a task cannot do."""

from typing import Any, Literal

from apd.config.detection import DetectorConfig, InstanceDataConfig
from apd.config.inference import WHOLE_IMAGE
from apd.distillers.base import DISTILLERS
from apd.fields import ExperimentError, require

TaskName = Literal["segmentation", "detection"]


def task_of_data(data: object) -> TaskName:
    """The task that data are for."""
    return "detection" if isinstance(data, InstanceDataConfig) else "segmentation"


def require_one_task(experiment: Any) -> None:
    """Raise ExperimentError unless data, networks and distillers are all for segmentation, or all for detection."""
    data, detection = type(experiment.data).__name__, experiment.task == "detection"
    wanted = "a DetectorConfig; segmentation wants a DataConfig as data"
    if not detection:
        wanted = "a NetworkConfig; detection wants an InstanceDataConfig as data"
    for name, owner in {"network": experiment, "teacher.network": experiment.teacher}.items():
        if owner is not None and isinstance(owner.network, DetectorConfig) != detection:
            found = type(owner.network).__name__
            raise ExperimentError(f"Experiment.{name} is a {found} beside data = {data}: expected {wanted}")
    for distiller in experiment.distillers:
        if distiller.task != experiment.task:
            known = ", ".join(sorted(name for name, kind in DISTILLERS.items() if kind.task == experiment.task))
            raise ExperimentError(
                f"Experiment.distillers: {distiller.method} is none for {experiment.task}, the task of data = {data}: "
                f"expected some of {known}"
            )


_NOT_IN_DETECTION = (
    ("accumulation", 1, "1 in detection: torchvision's losses are means over the boxes of a part, not of the batch"),
    ("compile", False, "False in detection: its number of boxes varies"),
    ("cuda_graph", False, "False in detection: its number of boxes varies"),
    (
        "device_augmentation",
        False,
        "False in detection: objects are cut and dropped with their boxes and masks, which the loader does",
    ),
    ("auxiliary_weight", 0.4, "0.4, the default: a detector has no auxiliary head"),
)
"""Fields of a training, the only value that detection can use, and what is expected."""


def require_fit(experiment: Any) -> None:
    """Raise ExperimentError where the experiment's task, or the device, is asked for what it cannot do."""
    data, teacher, detection = experiment.data, experiment.teacher, experiment.task == "detection"
    for training in [experiment.training] + ([teacher.training] if teacher is not None else []):
        if detection:
            for name, only, expected in _NOT_IN_DETECTION:
                require(getattr(training, name) == only, training, name, expected)
        elif data.rotation or data.blur:
            expected = f"False beside rotation {data.rotation} and blur {data.blur}, which only the loader does"
            require(not training.device_augmentation, training, "device_augmentation", expected)
    if detection:
        expected = "fp32, or auto, which is fp32 here: coordinates of boxes are too coarse in bf16"
        require(experiment.precision != "bf16", experiment, "precision", expected)
        expected = "the default: a detector sees the whole image, once"
        require(experiment.inference == WHOLE_IMAGE, experiment, "inference", expected)
        kinds = [network.kind for network in (experiment.network, teacher and teacher.network) if network]
        methods = [distiller.method for distiller in experiment.distillers]
        with_masks = [name for name in (*kinds, *methods) if name in ("mask_rcnn", "dense_apd")]
        if with_masks and data.name == "coco":
            require(data.masks, data, "masks", f"True: {with_masks[0]} learns from masks")
    for distiller in experiment.distillers:
        if getattr(distiller, "width", 0) is None:  # no heads bring features to one width
            name = {"apd": "head_width", "roi_apd": "box_width"}.get(distiller.method, "width")
            widths = [getattr(network, name) for network in (experiment.network, teacher.network)]
            if widths[0] != widths[1]:
                raise ExperimentError(
                    f"{type(distiller).__name__}.width = None: expected features of equal width then, got "
                    f"network.{name} = {widths[0]} and teacher.network.{name} = {widths[1]}"
                )
