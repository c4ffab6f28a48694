"""Detectors are torchvision's, and so are their weights."""

from unittest import mock

import pytest
import torch
from torchvision.models import get_model
from torchvision.models.detection import fasterrcnn_resnet50_fpn, maskrcnn_resnet50_fpn
from torchvision.ops import FrozenBatchNorm2d

from apd.models.detector import BODIES, build_detector, fill_from_imagenet


@pytest.mark.parametrize(
    ("theirs", "masks"), [(fasterrcnn_resnet50_fpn, False), (maskrcnn_resnet50_fpn, True)], ids=["boxes", "masks"]
)
def test_at_the_default_sizes_a_detector_is_torchvisions(theirs, masks):
    with torch.device("meta"):
        nets = build_detector("resnet50", 90, masks=masks), theirs(weights=None, weights_backbone=None, num_classes=91)
    facts = [
        [
            [(name, value.shape) for name, value in net.state_dict().items()],
            net.roi_heads.box_roi_pool.canonical_scale,
            [net.rpn.anchor_generator.sizes, net.rpn.anchor_generator.aspect_ratios],
            [net.rpn._pre_nms_top_n, net.rpn._post_nms_top_n],
            [getattr(net.roi_heads, name) for name in ("score_thresh", "nms_thresh", "detections_per_img")],
            [net.transform.min_size, net.transform.max_size],
        ]
        for net in nets
    ]
    assert facts[0] == facts[1]


@pytest.mark.parametrize("backbone", BODIES)
def test_every_backbone_has_a_pyramid_of_strides_4_to_64_and_is_frozen_in_part_only_with_weights(backbone):
    with torch.device("meta"):
        fresh = build_detector(backbone, 3, width=16)
        pyramid = fresh.eval().backbone(torch.zeros(1, 3, 128, 192))
        tuned = build_detector(backbone, 3, weights="imagenet", fetch=False)
    wanted = {"0": (32, 48), "1": (16, 24), "2": (8, 12), "3": (4, 6), "pool": (2, 3)}
    assert {level: tuple(m.shape[1:]) for level, m in pyramid.items()} == {k: (16, *v) for k, v in wanted.items()}
    assert all(parameter.requires_grad for parameter in fresh.parameters())
    assert not any(isinstance(module, FrozenBatchNorm2d) for module in fresh.modules())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in tuned.modules())
    frozen = [name for name, p in tuned.named_parameters() if not p.requires_grad]
    assert frozen
    assert all(name.startswith("backbone.body.") for name in frozen)


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v3_small"])
def test_imagenet_weights_fill_the_body_and_nothing_else(backbone, monkeypatch):
    state = get_model(backbone).state_dict()
    monkeypatch.setattr("apd.models.detector.fetch_weights", lambda *_: state)
    detector = build_detector(backbone, 3, width=16, box_width=16, weights="imagenet", fetch=False)
    before = detector.rpn.head.cls_logits.weight.clone()
    fill_from_imagenet(detector, backbone)
    theirs = {name.removeprefix("features."): value for name, value in state.items()}
    assert all(torch.equal(value, theirs[name]) for name, value in detector.backbone.body.state_dict().items())
    assert torch.equal(before, detector.rpn.head.cls_logits.weight)
    state = dict(list(state.items())[5:])
    with pytest.raises(RuntimeError, match=f"ImageNet weights of {backbone} do not fit"):
        fill_from_imagenet(detector, backbone)


def test_wrong_settings_and_weights_that_cannot_be_fetched_are_named(monkeypatch):
    unreachable = mock.Mock(side_effect=OSError("no route to host"))
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    lost = r"weights='imagenet' .* could not be fetched \(OSError: no route to host\).*resnet18-.*checkpoints"
    for arguments, error, message in (
        ({"weights": "imagenet"}, RuntimeError, lost),
        ({"backbone": "resnet19"}, ValueError, "backbone='resnet19': expected one of resnet18, resnet50"),
        ({"weights": "imagnet"}, ValueError, "weights='imagnet': expected 'none' or 'imagenet'"),
        ({"rois": 0}, ValueError, "rois=0: expected a positive integer"),
        ({"num_classes": True}, ValueError, "num_classes=True: expected a positive integer"),
        ({"max_size": 700}, ValueError, "max_size=700: expected min_size=800 or more"),
    ):
        with pytest.raises(error, match=message):
            build_detector(**{"backbone": "resnet18", "num_classes": 3} | arguments)
