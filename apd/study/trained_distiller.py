"""The distiller of a finished run, with the projection heads that it had trained."""

from torch import nn

from apd.models.segmenter import Segmenter
from apd.study.build import spec_of
from apd.study.checkpoint import CheckpointError, load_newest
from apd.study.distillers import build_distiller
from apd.study.experiment import Experiment
from apd.study.folders import run_folder


def trained_distiller(experiment: Experiment, student: Segmenter, teacher: Segmenter, method: str = "apd") -> nn.Module:
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
    distiller = build_distiller(
        configs[method],
        student=student,
        teacher=teacher,
        ignore_index=spec_of(experiment.data).ignore_index,
        seed=experiment.seed,
    )
    prefix = f"distillers.{method}."
    state = {name.removeprefix(prefix): v for name, v in checkpoint["state"].items() if name.startswith(prefix)}
    distiller.load_state_dict(state)
    return distiller.eval()
