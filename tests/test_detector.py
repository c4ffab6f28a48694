"""Detectors are torchvision's; the tap sees what they do in a training step and changes none of it."""

import pytest
import torch
from torchvision.models.detection import fasterrcnn_resnet50_fpn, maskrcnn_resnet50_fpn
from torchvision.ops import FrozenBatchNorm2d, box_iou

from apd.data.augment_instances import evaluation_instance_batches
from apd.data.instances import as_target
from apd.data.rle import decode
from apd.data.scenes import SceneInstances
from apd.distillers.apd import dense_apd
from apd.distillers.base import NO_BOX
from apd.distillers.review_kd import ReviewKD
from apd.distillers.roi_apd import RoIAPD
from apd.distillers.through_pixels import pyramid_matching, roi_dkd, roi_kd
from apd.evaluation.average_precision import ap_scores
from apd.evaluation.detections import ap_of, detect
from apd.models.detector import BODIES, build_detector
from apd.models.detector_hooks import DetectorTap, pad_maps, teacher_view, training_step
from apd.models.detector_weights import coco_rows, fill_from_coco, fill_from_imagenet

SIZES = dict(min_size=64, max_size=96, smallest_anchor=8, proposals=60, rois=16, detections=10)
CLASSES = 3


def student(**options) -> torch.nn.Module:
    torch.manual_seed(1)
    return build_detector("mobilenet_v3_small", CLASSES, **SIZES | dict(width=16, box_width=32) | options).train()


def teacher(**options) -> torch.nn.Module:
    torch.manual_seed(2)
    return build_detector("resnet18", CLASSES, **SIZES | dict(width=24, box_width=48) | options).eval()


def pictures(count: int = 2, empty: bool = False) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    data = SceneInstances(count, height=64, width=96, context_shift=0.5, seed=0)
    images, samples = next(evaluation_instance_batches(data, count))
    targets = [as_target(sample) for sample in samples]
    if empty:
        targets[0] = {name: value if name == "class_map" else value[:0] for name, value in targets[0].items()}
    return images, targets


def step(module, targets_of=pictures, **options):
    images, targets = targets_of()
    with DetectorTap(module) as tap:
        torch.manual_seed(3)  # which boxes are drawn
        losses, pair = training_step(module, tap, options.get("teacher", teacher()), images, targets)
    return losses, pair, tap


# ---------------------------------------------------------------- detectors


@pytest.mark.parametrize(
    ("theirs", "masks"), [(fasterrcnn_resnet50_fpn, False), (maskrcnn_resnet50_fpn, True)], ids=["boxes", "masks"]
)
def test_at_the_default_sizes_a_detector_is_torchvisions(theirs, masks):
    with torch.device("meta"):
        ours = build_detector("resnet50", 90, masks=masks)
        reference = theirs(weights=None, weights_backbone=None, num_classes=91)
    shapes = [{name: value.shape for name, value in net.state_dict().items()} for net in (ours, reference)]
    assert shapes[0] == shapes[1]
    assert ours.roi_heads.box_roi_pool.canonical_scale == reference.roi_heads.box_roi_pool.canonical_scale
    assert ours.rpn.anchor_generator.sizes == reference.rpn.anchor_generator.sizes
    assert ours.rpn.anchor_generator.aspect_ratios == reference.rpn.anchor_generator.aspect_ratios
    assert [ours.rpn._pre_nms_top_n, ours.rpn._post_nms_top_n] == [
        reference.rpn._pre_nms_top_n,
        reference.rpn._post_nms_top_n,
    ]
    for name in ("score_thresh", "nms_thresh", "detections_per_img"):
        assert getattr(ours.roi_heads, name) == getattr(reference.roi_heads, name)
    assert (ours.transform.min_size, ours.transform.max_size) == ((800,), 1333)


@pytest.mark.parametrize("backbone", BODIES)
def test_every_backbone_has_a_pyramid_of_strides_4_to_64(backbone):
    with torch.device("meta"):
        detector = build_detector(backbone, CLASSES, width=16).eval()
        pyramid = detector.backbone(torch.zeros(1, 3, 128, 192))
    wanted = {"0": (32, 48), "1": (16, 24), "2": (8, 12), "3": (4, 6), "pool": (2, 3)}
    assert {level: tuple(m.shape[2:]) for level, m in pyramid.items()} == wanted
    assert {m.shape[1] for m in pyramid.values()} == {16}


def test_without_weights_everything_is_trained_and_with_them_batch_norm_and_first_stages_are_frozen():
    with torch.device("meta"):
        for backbone in BODIES:
            fresh = build_detector(backbone, CLASSES)
            assert all(parameter.requires_grad for parameter in fresh.parameters())
            assert not any(isinstance(module, FrozenBatchNorm2d) for module in fresh.modules())
            tuned = build_detector(backbone, CLASSES, weights="imagenet", fetch=False)
            assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in tuned.modules())
            frozen = [name for name, p in tuned.named_parameters() if not p.requires_grad]
            assert frozen
            assert all(name.startswith("backbone.body.") for name in frozen)


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v3_small"])
def test_imagenet_weights_fill_the_body_and_nothing_else(backbone):
    from torchvision.models import get_model

    state = get_model(backbone).state_dict()
    detector = build_detector(backbone, CLASSES, **SIZES, width=16, weights="imagenet", fetch=False)
    before = detector.rpn.head.cls_logits.weight.clone()
    fill_from_imagenet(detector, backbone, lambda weights, what: state)
    body = detector.backbone.body.state_dict()
    theirs = {name.removeprefix("features."): value for name, value in state.items()}
    assert all(torch.equal(value, theirs[name]) for name, value in body.items())
    assert torch.equal(before, detector.rpn.head.cls_logits.weight)
    with pytest.raises(RuntimeError, match=f"ImageNet weights of {backbone} do not fit"):
        fill_from_imagenet(detector, backbone, lambda weights, what: dict(list(state.items())[5:]))


def test_coco_weights_give_each_class_its_own_rows():
    torch.manual_seed(0)
    whole = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    detector = build_detector("resnet50", 2, masks=False, weights="coco", class_names=("dog", "person"), fetch=False)
    fill_from_coco(detector, "resnet50", ("dog", "person"), lambda weights, what: whole.state_dict())
    rows = [0, 18, 1]
    ours, theirs = detector.roi_heads.box_predictor, whole.roi_heads.box_predictor
    assert torch.equal(ours.cls_score.weight, theirs.cls_score.weight[rows])
    assert torch.equal(ours.bbox_pred.bias.view(3, 4), theirs.bbox_pred.bias.view(91, 4)[rows])
    assert torch.equal(detector.roi_heads.box_head.fc6.weight, whole.roi_heads.box_head.fc6.weight)
    assert {m.eps for m in detector.modules() if isinstance(m, FrozenBatchNorm2d)} == {0.0}
    with pytest.raises(ValueError, match="COCO has no class 'persom'; did you mean 'person'"):
        fill_from_coco(detector, "resnet50", ("dog", "persom"))
    with pytest.raises(ValueError, match="1 class_names for a detector of 2 classes"):
        fill_from_coco(detector, "resnet50", ("dog",))
    with pytest.raises(ValueError, match="COCO has no class 'N/A'"):
        coco_rows(["__background__", "N/A"], ["N/A"])
    narrow = build_detector("resnet50", 2, masks=False, width=64, weights="coco", fetch=False)
    with pytest.raises(RuntimeError, match="leave width and box_width at their defaults"):
        fill_from_coco(narrow, "resnet50", ("dog", "person"), lambda weights, what: whole.state_dict())


def test_weights_that_cannot_be_fetched_are_told_with_address_and_folder(monkeypatch):
    import torchvision.models._api

    def unreachable(*arguments, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", unreachable)
    message = r"weights='imagenet' .* could not be fetched \(OSError: no route to host\).*resnet18-.*checkpoints"
    with pytest.raises(RuntimeError, match=message):
        build_detector("resnet18", CLASSES, weights="imagenet")
    with pytest.raises(RuntimeError, match=r"weights='coco' .*maskrcnn_resnet50_fpn_coco-.* or use weights='none'"):
        build_detector("resnet50", 1, weights="coco", class_names=("dog",))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "resnet19"}, "backbone='resnet19': expected one of resnet18, resnet50"),
        ({"num_classes": 0}, "num_classes=0: expected a positive integer"),
        ({"rois": 1.5}, "rois=1.5: expected a positive integer"),
        ({"weights": "imagnet"}, "weights='imagnet': expected 'none', 'imagenet' or 'coco'"),
        ({"min_size": 80, "max_size": 64}, "max_size=64: expected min_size=80 or more"),
        ({"weights": "coco"}, "torchvision has them for 'resnet50'"),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_detector(**{"backbone": "resnet18", "num_classes": 3} | arguments)


# ---------------------------------------------------------------- the tap


def test_listening_changes_neither_losses_nor_gradients_and_leaves_nothing_behind():
    images, targets = pictures()
    results = []
    for listen in (False, True):
        module = student()
        torch.manual_seed(3)
        if listen:
            with DetectorTap(module):
                losses = module(images, targets)
        else:
            losses = module(images, targets)
        sum(losses.values()).backward()
        results.append((losses, [parameter.grad for parameter in module.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    assert "select_training_samples" not in vars(module.roi_heads)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_what_the_tap_sees_is_what_the_task_loss_is_made_of():
    losses, pair, tap = step(student())
    labels, logits = pair.labels_B1N, pair.student.logits_BK1N
    task = torch.nn.functional.cross_entropy(logits, labels, ignore_index=NO_BOX)
    torch.testing.assert_close(task, losses["loss_classifier"])
    assert (labels > 0).any()
    assert (labels == 0).any()
    for place, target in enumerate(pictures()[1]):
        overlaps = box_iou(target["boxes"], tap.boxes[place])
        best, which = overlaps.max(0)
        matched = torch.where(best >= 0.5, target["labels"][which], 0)
        assert torch.equal(labels[place, 0, : len(matched)], matched)
        assert (best == 1).any()  # truth is among the boxes
    assert pair.student.vectors_BC1N.shape == (2, 32, 1, 16)
    assert pair.teacher.vectors_BC1N.shape == (2, 48, 1, 16)


def test_the_teachers_view_is_its_own_head_on_its_own_pyramid_at_the_students_boxes():
    frozen = teacher()
    _, pair, tap = step(student(), teacher=frozen)
    images, _ = pictures()
    for place in range(2):
        resized, _ = frozen.transform([images[place]])
        pyramid = frozen.backbone(resized.tensors)
        pooled = frozen.roi_heads.box_roi_pool(pyramid, [tap.boxes[place]], resized.image_sizes)
        vectors = frozen.roi_heads.box_head(pooled)
        torch.testing.assert_close(pair.teacher.vectors_BC1N[place, :, 0].T, vectors, rtol=1e-4, atol=1e-5)
        logits = frozen.roi_heads.box_predictor(vectors)[0]
        torch.testing.assert_close(pair.teacher.logits_BK1N[place, :, 0].T, logits, rtol=1e-4, atol=1e-5)
    assert not pair.teacher.logits_BK1N.requires_grad
    assert all(not value.requires_grad for value in pair.teacher.pyramid.values())


def test_boxes_move_along_where_the_teacher_resizes_the_pictures_differently():
    frozen = teacher(min_size=128, max_size=192)
    _, pair, tap = step(student(), teacher=frozen)
    images, _ = pictures()
    twice = [2 * boxes for boxes in tap.boxes]
    wanted = teacher_view(frozen, images, twice, [(128, 192)] * 2)
    torch.testing.assert_close(pair.teacher.vectors_BC1N, wanted.vectors_BC1N)
    assert pair.teacher.image_sizes == [(128, 192)] * 2
    assert RoIAPD(32, 48, CLASSES, width=8)(pair)["loss"] > 0


def test_pictures_of_different_sizes_share_a_batch_and_padding_belongs_to_nothing():
    images, targets = pictures()
    narrow = {name: targets[0][name][..., :48] for name in ("masks", "class_map")}
    narrow["masks"] = narrow["masks"][:1]
    targets[0] = narrow | {"boxes": torch.tensor([[4.0, 4.0, 30.0, 30.0]]), "labels": targets[0]["labels"][:1]}
    images[0] = images[0][..., :48]
    _, pair, tap = step(student(), lambda: (images, targets))
    height, width = pair.student.image_sizes[0]
    assert tap.padded_size == (96, 96)  # 64 x 48 becomes 96 x 72 under min_size 64 and max_size 96
    assert (height, width) == pair.student.image_sizes[0]
    assert pair.class_map_BHW.shape == pair.inside_BHW.shape == (2, *tap.padded_size)
    for place, (rows, columns) in enumerate(pair.student.image_sizes):
        assert (pair.inside_BHW[place, :rows, :columns] == 0).all()
        assert (pair.inside_BHW[place] == 0).sum() == rows * columns
        assert (pair.class_map_BHW[place][pair.inside_BHW[place] != 0] == NO_BOX).all()
        assert (pair.class_map_BHW[place, :rows, :columns] >= 0).any()


def test_a_picture_without_things_takes_part():
    _, pair, _ = step(student(), lambda: pictures(empty=True))
    assert set(pair.labels_B1N[0].unique().tolist()) <= {0, NO_BOX}
    assert RoIAPD(32, 48, CLASSES, width=8)(pair)["loss"].isfinite()


def test_targets_without_a_class_map_are_enough_for_boxes():
    images, targets = pictures()
    for target in targets:
        del target["class_map"], target["masks"]
    _, pair, _ = step(student(masks=False), lambda: (images, targets), teacher=teacher(masks=False))
    assert pair.class_map_BHW is None
    assert roi_kd()(pair)["loss"] > 0


def test_one_tap_inside_another_and_a_step_that_fails_leave_the_detector_as_it_was():
    module = student()
    images, targets = pictures()
    with DetectorTap(module) as outer:
        with pytest.raises(ValueError, match="masks key"), DetectorTap(module):
            module(images, [{name: t[name] for name in ("boxes", "labels")} for t in targets])
        module(images, targets)
        assert len(outer.boxes) == 2
    assert "select_training_samples" not in vars(module.roi_heads)


def test_asking_too_early_or_of_the_wrong_thing_is_told():
    module = student()
    with DetectorTap(module) as tap, pytest.raises(RuntimeError, match="has not run in training mode"):
        _ = tap.view
    with DetectorTap(module.eval()) as tap:
        module(pictures()[0])
        with pytest.raises(RuntimeError, match="has not run in training mode"):
            _ = tap.boxes
    with pytest.raises(TypeError, match="detector is a Linear: expected a Faster or Mask R-CNN"):
        DetectorTap(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"teacher is in training mode: call teacher\.eval\(\) first"):
        step(student(), teacher=teacher().train())
    with pytest.raises(ValueError, match="student is in eval mode"):
        step(student().eval())
    torch.manual_seed(0)
    other = build_detector("resnet18", 5, **SIZES, width=24, box_width=48).eval()
    with pytest.raises(ValueError, match="the student has 4 logits and the teacher 6"):
        step(student(), teacher=other)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ValueError, match=r"boxes are torch.bfloat16, too coarse .* without autocast"),
    ):
        step(student())


def test_label_maps_are_resized_by_the_nearest_rule_and_padded():
    maps = [torch.arange(12).view(3, 4), torch.full((2, 2), 7)]
    padded = pad_maps(maps, [(6, 2), (2, 2)], (6, 3))
    assert padded[0].tolist() == [[0, 2, -1], [0, 2, -1], [4, 6, -1], [4, 6, -1], [8, 10, -1], [8, 10, -1]]
    assert padded[1, :2, :2].tolist() == [[7, 7], [7, 7]]
    assert (padded[1] == -1).sum() == 14


# ---------------------------------------------------------------- training and evaluation


@pytest.mark.parametrize(
    "build",
    [
        lambda: RoIAPD(32, 48, CLASSES, width=16),
        lambda: dense_apd(16, 24, CLASSES, width=16),
        lambda: roi_kd(),
        lambda: roi_dkd(),
        lambda: pyramid_matching(16, 24),
        lambda: ReviewKD(16, 24, width=16),
    ],
    ids=["roi_apd", "dense_apd", "roi_kd", "roi_dkd", "pyramid_matching", "review_kd"],
)
def test_a_few_steps_bring_the_student_nearer_to_the_teacher(build):
    torch.manual_seed(0)
    module, frozen, distiller = student(), teacher(), build()
    before = [value.clone() for value in frozen.state_dict().values()]
    optimiser = torch.optim.Adam([*module.parameters(), *distiller.parameters()], lr=1e-3)
    images, targets = pictures()
    distances = []
    with DetectorTap(module) as tap:
        for _ in range(8):
            torch.manual_seed(3)
            _, pair = training_step(module, tap, frozen, images, targets)
            loss = distiller(pair)["loss"]
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            distances.append(loss.item())
    assert sum(distances[-2:]) < 0.9 * sum(distances[:2])
    assert all(torch.equal(a, b) for a, b in zip(before, frozen.state_dict().values(), strict=True))


def test_detections_are_told_in_the_pictures_own_pixels_with_classes_from_zero():
    detector, (images, _) = teacher(min_size=128, max_size=192), pictures()
    found, raw = detect(detector, images), detector(images)
    assert sum(len(picture.labels_N) for picture in found) > 0
    for picture, theirs in zip(found, raw, strict=True):
        assert torch.equal(picture.boxes_N4, theirs["boxes"])
        assert torch.equal(picture.labels_N, theirs["labels"] - 1)
        masks = [decode(mask, 64, 96) for mask in picture.masks]
        assert all((ours == (m[0] >= 0.5).numpy()).all() for ours, m in zip(masks, theirs["masks"], strict=True))
    assert detect(build_detector("resnet18", 3, masks=False, **SIZES, width=16).eval(), images)[0].masks is None
    with pytest.raises(ValueError, match=r"training mode: call detector\.eval\(\)"):
        detect(detector.train(), images)


def test_average_precision_of_a_detector_leaves_its_mode_as_it_was():
    data = SceneInstances(3, height=64, width=96, context_shift=0.5, seed=0)
    module = student()
    tables = ap_of(module, data, batch_size=2)
    assert sorted(tables) == ["boxes", "masks"]
    assert module.training
    wanted = sum((~sample.crowd_N).sum() for sample in data)
    assert all(table.things_K.sum() == wanted for table in tables.values())
    assert 0 <= ap_scores(tables["boxes"]).ap < 0.1
    assert list(ap_of(student(masks=False), data)) == ["boxes"]


def test_a_network_to_be_filled_from_a_file_has_the_eps_that_coco_weights_were_trained_with():
    """No file of weights holds it, so a network that comes back from one would be another."""
    filled = build_detector("resnet50", 2, weights="coco", fetch=False)
    assert {module.eps for module in filled.modules() if isinstance(module, FrozenBatchNorm2d)} == {0.0}
    plain = build_detector("resnet18", 2, weights="imagenet", width=16, box_width=16, fetch=False)
    assert {module.eps for module in plain.modules() if isinstance(module, FrozenBatchNorm2d)} == {1e-5}
