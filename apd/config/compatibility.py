"""Whether the parts of an experiment belong to one task, and what a run of detection cannot do."""

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
    detection = experiment.task == "detection"
    data, wanted = type(experiment.data).__name__, "DetectorConfig" if detection else "NetworkConfig"
    networks = {"network": experiment.network}
    if experiment.teacher is not None:
        networks["teacher.network"] = experiment.teacher.network
    for name, network in networks.items():
        if isinstance(network, DetectorConfig) != detection:
            raise ExperimentError(
                f"Experiment.{name} is a {type(network).__name__} beside data = {data}: expected a {wanted}; "
                f"{'segmentation wants a DataConfig' if detection else 'detection wants an InstanceDataConfig'} as data"
            )
    for distiller in experiment.distillers:
        if distiller.task != experiment.task:
            known = ", ".join(sorted(name for name, kind in DISTILLERS.items() if kind.task == experiment.task))
            raise ExperimentError(
                f"Experiment.distillers: {distiller.method} is none for {experiment.task}, the task of data = {data}: "
                f"expected some of {known}"
            )


def require_fit(experiment: Any) -> None:
    """Raise ExperimentError where the experiment's task, or the device, is asked for what it cannot do."""
    (_require_fit_for_detection if experiment.task == "detection" else _require_fit_for_device)(experiment)


def _require_fit_for_device(experiment: Any) -> None:
    """Raise ExperimentError where batches are to be made on the device with what only the loader does."""
    data, trainings = experiment.data, [experiment.training]
    if experiment.teacher is not None:
        trainings.append(experiment.teacher.training)
    for training in trainings:
        told = f"False beside rotation {data.rotation} and blur {data.blur}, which only the loader does"
        require(
            not training.device_augmentation or data.rotation == data.blur == 0, training, "device_augmentation", told
        )


def _require_fit_for_detection(experiment: Any) -> None:
    """Raise ExperimentError where detection is asked for what only segmentation can do."""
    told = "fp32, or auto, which is fp32 here: coordinates of boxes are too coarse in bf16"
    require(experiment.precision != "bf16", experiment, "precision", told)
    told = "the default: a detector looks once at the whole picture"
    require(experiment.inference == WHOLE_IMAGE, experiment, "inference", told)
    networks, trainings = [experiment.network], [experiment.training]
    if experiment.teacher is not None:
        networks.append(experiment.teacher.network)
        trainings.append(experiment.teacher.training)
    for training in trainings:
        told = "1 in detection: torchvision's losses are means over the boxes of a part, not of the batch"
        require(training.accumulation == 1, training, "accumulation", told)
        for switch in ("compile", "cuda_graph"):
            told = "False in detection: its number of boxes varies"
            require(not getattr(training, switch), training, switch, told)
        told = "False in detection: things are cut and dropped with their boxes and masks, which the loader does"
        require(not training.device_augmentation, training, "device_augmentation", told)
        told = "0.4, the default: a detector has no auxiliary head"
        require(training.auxiliary_weight == 0.4, training, "auxiliary_weight", told)
    wants_masks = [network.kind for network in networks if network.kind == "mask_rcnn"]
    wants_masks += [distiller.method for distiller in experiment.distillers if distiller.method == "dense_apd"]
    if wants_masks and experiment.data.name == "coco":
        require(experiment.data.masks, experiment.data, "masks", f"True: {wants_masks[0]} learns from masks")
    for distiller in experiment.distillers:
        if getattr(distiller, "width", 0) is None:
            _require_equal_channels(experiment, type(distiller).__name__, distiller.method)


def _require_equal_channels(experiment: Any, owner: str, method: str) -> None:
    """Of two detectors' features that no heads bring to one width."""
    name = "box_width" if method == "roi_apd" else "width"
    widths = [getattr(network, name) for network in (experiment.network, experiment.teacher.network)]
    if widths[0] != widths[1]:
        raise ExperimentError(
            f"{owner}.width = None: expected features of equal width then, got network.{name} = {widths[0]} and "
            f"teacher.network.{name} = {widths[1]}"
        )
