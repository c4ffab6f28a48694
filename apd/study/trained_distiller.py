"""The distiller of a finished run, with the projection heads that it had trained."""

from torch import nn

from apd.study.checkpoint import CheckpointError, load_newest
from apd.study.experiment import Experiment
from apd.study.folders import run_folder
from apd.study.tasks import task_of


def trained_distiller(experiment: Experiment, student: nn.Module, teacher: nn.Module, method: str = "apd") -> nn.Module:
    """One of the experiment's distillers as it was after the last step, in eval mode.

    Heads are no part of the student and so not of its weights; they are in the run's last checkpoint.

    Args:
        experiment: of a finished run.
        student, teacher: its networks (see `apd.study.train.trained_network`), for their channels and device.
        method: which distiller.

    Raises:
        CheckpointError: the experiment has no such distiller, or its run has no checkpoint of the last step.
    """
    configs = {config.method: config for config in experiment.distillers}
    if method not in configs:
        known = ", ".join(configs) or "none at all"
        raise CheckpointError(f"experiment {experiment.name!r} has no distiller {method!r}: it has {known}")
    folder = run_folder(experiment)
    checkpoint, _ = load_newest(folder / "checkpoints")
    if checkpoint is None or checkpoint["step"] != experiment.training.iterations:
        raise CheckpointError(
            f"{folder / 'checkpoints'} holds no whole checkpoint of the last step; delete {folder} and run "
            "train(experiment) again"
        )
    distiller = task_of(experiment).distiller(configs[method], student, teacher)
    prefix = f"distillers.{method}."
    state = {name.removeprefix(prefix): v for name, v in checkpoint["state"].items() if name.startswith(prefix)}
    distiller.load_state_dict(state)
    return distiller.eval()
