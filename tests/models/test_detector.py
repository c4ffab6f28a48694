"""Detectors are torchvision's; the tap sees a step and changes nothing of it; the teacher sees the same boxes."""

from contextlib import nullcontext
from operator import attrgetter
from unittest import mock

import pytest
import torch
from small_experiments import copied, equal
from torchvision.models import get_model
from torchvision.models.detection import fasterrcnn_resnet50_fpn, maskrcnn_resnet50_fpn
from torchvision.ops import FrozenBatchNorm2d, box_iou

from apd.data.batches import evaluation_instance_batches
from apd.data.instances import as_target
from apd.data.scenes import SceneInstances
from apd.distillers.apd import RoIAPD
from apd.distillers.base import NO_BOX
from apd.distillers.on_detectors import roi_kd
from apd.models.detector import BODIES, build_detector, fill_from_imagenet
from apd.models.detector_hooks import DetectorTap, teacher_view, training_step

SIZES = dict(min_size=64, max_size=96, smallest_anchor=8, proposals=60, rois=16, detections=10)
CLASSES = 3


@pytest.mark.parametrize(("theirs", "masks"), [(fasterrcnn_resnet50_fpn, False), (maskrcnn_resnet50_fpn, True)])
def test_at_the_default_sizes_a_detector_is_torchvisions(theirs, masks):
    with torch.device("meta"):
        nets = build_detector("resnet50", 90, masks=masks), theirs(weights=None, weights_backbone=None, num_classes=91)
    facts = attrgetter(
        *("roi_heads.box_roi_pool.canonical_scale", "rpn.anchor_generator.sizes", "rpn.anchor_generator.aspect_ratios"),
        *("rpn._pre_nms_top_n", "rpn._post_nms_top_n", "transform.min_size", "transform.max_size"),
        *("roi_heads.score_thresh", "roi_heads.nms_thresh", "roi_heads.detections_per_img"),
    )
    ours, theirs = ([facts(net), [(name, value.shape) for name, value in net.state_dict().items()]] for net in nets)
    assert ours == theirs


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
    monkeypatch.setattr("apd.models.detector.hub_tensors", lambda *_: state)
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
    lost = r"weights='imagenet' .*resnet18-.* failed: OSError: no route to host.*checkpoints/.*weights='none'"
    for arguments, error, message in (
        ({"weights": "imagenet"}, RuntimeError, lost),
        ({"backbone": "resnet19"}, ValueError, "backbone='resnet19': expected one of 'resnet18', 'resnet50'"),
        ({"weights": "imagnet"}, ValueError, "weights='imagnet': expected one of 'none', 'imagenet'"),
        ({"rois": 0}, ValueError, "rois=0: expected a positive integer"),
        ({"num_classes": True}, ValueError, "num_classes=True: expected a positive integer"),
        ({"max_size": 700}, ValueError, "max_size=700: expected min_size=800 or more"),
    ):
        with pytest.raises(error, match=message):
            build_detector(**{"backbone": "resnet18", "num_classes": 3} | arguments)


def student(**options):
    torch.manual_seed(1)
    return build_detector("mobilenet_v3_small", CLASSES, **SIZES | dict(width=16, box_width=32) | options).train()


def teacher(classes=CLASSES, **options):
    torch.manual_seed(2)
    return build_detector("resnet18", classes, **SIZES | dict(width=24, box_width=48) | options).eval()


def batch():
    data = SceneInstances(2, height=64, width=96, context_shift=0.5, seed=0)
    images, samples = next(evaluation_instance_batches(data, 2))
    return images, [as_target(sample) for sample in samples]


def step(module, frozen=None, images_and_targets=None):
    images, targets = images_and_targets or batch()
    with DetectorTap(module) as tap:
        torch.manual_seed(3)  # which boxes are drawn
        losses, pair = training_step(module, tap, frozen or teacher(), images, targets)
    return losses, pair, tap


def is_as_before(module):
    tapped = any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    replaced = type(module.rpn.fg_bg_sampler) is not type(module.roi_heads.fg_bg_sampler)
    return not (tapped or replaced or "select_training_samples" in vars(module.roi_heads))


def test_the_tap_changes_neither_losses_nor_gradients_and_leaves_nothing_behind():
    results = []
    for tap in (lambda _: nullcontext(), DetectorTap):
        module = student()
        torch.manual_seed(3)
        with tap(module):
            losses = module(*batch())
        sum(losses.values()).backward()
        results.append((losses, [parameter.grad for parameter in module.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    assert is_as_before(module)
    with DetectorTap(module) as outer:
        with pytest.raises(ValueError, match="masks key"), DetectorTap(module):
            module(batch()[0], [{name: t[name] for name in ("boxes", "labels")} for t in batch()[1]])
        module(*batch())
        assert len(outer.boxes) == 2
    assert is_as_before(module), "after one tap inside another and a step that fails"


def test_what_the_tap_sees_is_what_the_task_loss_is_made_of():
    losses, pair, tap = step(student())
    labels = pair.labels_B1N
    task = torch.nn.functional.cross_entropy(pair.student.logits_BK1N, labels, ignore_index=NO_BOX)
    torch.testing.assert_close(task, losses["loss_classifier"])
    assert {0, NO_BOX} < set(labels.unique().tolist()) | {NO_BOX}
    for place, target in enumerate(batch()[1]):
        best, which = box_iou(target["boxes"], tap.boxes[place]).max(0)
        matched = torch.where(best >= 0.5, target["labels"][which], 0)
        assert torch.equal(labels[place, 0, : len(matched)], matched)
        assert (best == 1).any()  # ground truth is among the boxes
    assert (pair.student.vectors_BC1N.shape, pair.teacher.vectors_BC1N.shape) == ((2, 32, 1, 16), (2, 48, 1, 16))


def test_the_teachers_view_is_its_own_head_on_its_own_pyramid_at_the_students_boxes_and_leaves_it_as_it_was():
    frozen = teacher()
    before = copied(frozen)
    _, pair, tap = step(student(), frozen)
    for place, (image, boxes) in enumerate(zip(batch()[0], tap.boxes, strict=True)):
        resized, _ = frozen.transform([image])
        pooled = frozen.roi_heads.box_roi_pool(frozen.backbone(resized.tensors), [boxes], resized.image_sizes)
        vectors = frozen.roi_heads.box_head(pooled)
        own = pair.teacher.vectors_BC1N[place, :, 0].T, pair.teacher.logits_BK1N[place, :, 0].T
        torch.testing.assert_close(own, (vectors, frozen.roi_heads.box_predictor(vectors)[0]), rtol=1e-4, atol=1e-5)
    assert not any(value.requires_grad for value in (pair.teacher.logits_BK1N, *pair.teacher.pyramid.values()))
    assert equal(copied(frozen), before)


def test_boxes_move_along_where_the_teacher_resizes_the_images_differently():
    frozen = teacher(min_size=51, max_size=192)
    _, pair, tap = step(student(), frozen)
    assert pair.teacher.image_sizes == [(51, 76)] * 2, "the two sides by different factors"
    factors = torch.tensor([76 / 96, 51 / 64] * 2)
    wanted = teacher_view(frozen, batch()[0], [factors * boxes for boxes in tap.boxes], [(51, 76)] * 2)
    torch.testing.assert_close(pair.teacher.vectors_BC1N, wanted.vectors_BC1N)


def test_images_of_different_sizes_share_a_batch_and_padding_belongs_to_nothing():
    images, targets = batch()
    narrow = {name: targets[0][name][..., :48] for name in ("masks", "class_map")}
    narrow["masks"] = narrow["masks"][:1]
    targets[0] = narrow | {"boxes": torch.tensor([[4.0, 4.0, 30.0, 30.0]]), "labels": targets[0]["labels"][:1]}
    images[0] = images[0][..., :48]
    _, pair, tap = step(student(), None, (images, targets))
    assert tap.padded_size == (96, 96)  # 64 x 48 becomes 96 x 72 under min_size 64 and max_size 96
    assert pair.class_map_BHW.shape == pair.inside_BHW.shape == (2, *tap.padded_size)
    for place, (rows, columns) in enumerate(pair.student.image_sizes):
        assert (pair.inside_BHW[place, :rows, :columns] == 0).all()
        assert (pair.inside_BHW[place] == 0).sum() == rows * columns
        assert (pair.class_map_BHW[place][pair.inside_BHW[place] != 0] == NO_BOX).all()
        assert (pair.class_map_BHW[place, :rows, :columns] >= 0).any()


def test_an_image_without_objects_and_targets_without_a_class_map_take_part():
    images, targets = batch()
    targets[0] = {name: value if name == "class_map" else value[:0] for name, value in targets[0].items()}
    _, pair, _ = step(student(), None, (images, targets))
    assert set(pair.labels_B1N[0].unique().tolist()) <= {0, NO_BOX}
    assert RoIAPD(32, 48, CLASSES, width=8)(pair)["loss"].isfinite()
    for target in targets:
        del target["class_map"], target["masks"]
    _, pair, _ = step(student(masks=False), teacher(masks=False), (images, targets))
    assert pair.class_map_BHW is None
    assert roi_kd()(pair)["loss"] > 0


def test_asking_too_early_or_of_the_wrong_thing_is_refused():
    module = student()
    with DetectorTap(module.eval()) as tap:
        module(batch()[0])
        for name in ("view", "boxes"):
            with pytest.raises(RuntimeError, match="has not run in training mode"):
                getattr(tap, name)
    with pytest.raises(TypeError, match="detector is a Linear: expected a Faster or Mask R-CNN"):
        DetectorTap(torch.nn.Linear(1, 1))
    for one, other, message in (
        (student(), teacher().train(), r"teacher is in training mode: call teacher\.eval\(\) first"),
        (student().eval(), teacher(), "student is in eval mode"),
        (student(), teacher(classes=5), "the student has 4 logits and the teacher 6"),
    ):
        with pytest.raises(ValueError, match=message):
            step(one, other)
    coarse = r"boxes are torch.bfloat16, too coarse .* without autocast"
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match=coarse):
        step(student())
