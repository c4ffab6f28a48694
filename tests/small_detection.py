"""Experiments in detection that train in a second: few scenes of 64 pixels, the smallest networks."""

from dataclasses import replace

from apd.config.detection_config import DetectorConfig, InstanceDataConfig
from apd.config.experiment import Experiment, TeacherConfig, TrainingConfig
from apd.distillers.apd import DenseAPDConfig, RoIAPDConfig
from apd.distillers.on_detectors import PyramidMatchingConfig, ReviewKDConfig, RoIDKDConfig, RoIKDConfig

DATA = InstanceDataConfig(height=64, width=64, train_images=6, evaluation_images=3, scale_min=0.8, scale_max=1.25)
NETWORK = DetectorConfig(
    backbone="mobilenet_v3_small", width=16, box_width=32, smallest_anchor=8, proposals=50, rois=16
)
TRAINING = TrainingConfig(iterations=4, batch_size=2, evaluations=2, head_multiplier=1.0)
TEACHER = TeacherConfig(
    network=replace(NETWORK, width=24, box_width=40), training=replace(TRAINING, iterations=2, evaluations=1)
)
METHODS = {
    "student": (),
    "roi_apd": (RoIAPDConfig(width=8),),
    "dense_apd": (DenseAPDConfig(levels=("0", "1"), width=8),),
    "roi_kd": (RoIKDConfig(),),
    "roi_dkd": (RoIDKDConfig(),),
    "pyramid_matching": (PyramidMatchingConfig(),),
    "review_kd": (ReviewKDConfig(width=8),),
    "several": (RoIAPDConfig(width=8, pixel_kd=0.0), RoIKDConfig(), ReviewKDConfig(width=8)),
}


def small(method="student", *, data=DATA, **training):
    """An experiment of four steps on six scenes; `training` changes fields of the student's training."""
    return Experiment(
        name=f"boxes-{method}",
        data=data,
        network=NETWORK,
        training=replace(TRAINING, **training),
        teacher=TEACHER if method != "student" else None,
        distillers=METHODS[method],
    )
