"""Distillation between detectors: every distiller is called with a :class:`~apd.models.detector_view.DetectorPair`.

Like those for segmentation it returns its unweighted terms by name and ``"loss"``, their weighted sum, and tells its
parameters by ``student_parameters`` and ``teacher_parameters``. The boxes of a picture are a set of pixels, and a level
of the pyramid is a feature map, so that most of them are distillers for pixels, handed the right tensors.
"""

from apd.detection.review_kd import ReviewKD
from apd.detection.roi_apd import RoIAPD
from apd.detection.through_pixels import OnPyramid, OnRoIs, dense_apd, pyramid_matching, roi_dkd, roi_kd

__all__ = ["OnPyramid", "OnRoIs", "ReviewKD", "RoIAPD", "dense_apd", "pyramid_matching", "roi_dkd", "roi_kd"]
