"""Segmentation networks: PSPNet and DeepLabV3 heads on dilated backbones, and the files that fill them."""

from apd.models.checkpoints import load_weights
from apd.models.segmenter import Segmenter, SegOutput, build_segmenter

__all__ = ["SegOutput", "Segmenter", "build_segmenter", "load_weights"]
