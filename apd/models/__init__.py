"""Segmentation networks: PSPNet heads on dilated timm backbones."""

from apd.models.segmenter import Segmenter, SegOutput, build_segmenter

__all__ = ["SegOutput", "Segmenter", "build_segmenter"]
