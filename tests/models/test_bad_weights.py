"""Files of weights that are damaged, hostile or of impossible values: each is refused in a line, nothing is loaded."""

import hashlib
import io
import os
import pickle
import struct
import zipfile
from unittest import mock

import pytest
import torch
from bad_input import refused
from safetensors.torch import save, save_file

from apd.models import build_segmenter, load_weights
from apd.models.backbones import create_deep_resnet
from apd.models.pretrained import LARGEST_FILE, hub_tensors

WEIGHT, VARIANCE, COUNTER = "classifier.weight", "backbone.bn1.running_var", "backbone.bn1.num_batches_tracked"


def network():
    torch.manual_seed(0)
    return build_segmenter("test_efficientnet", 5, head_width=8)


STATE = network().state_dict()
KINDS = (torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn)
VALUES = [  # the changed tensor, what it becomes, and what the message names beside it
    *[(WEIGHT, STATE[WEIGHT].to(kind), f"{kind}, expected torch.float32") for kind in KINDS],
    *[(COUNTER, STATE[COUNTER].to(kind), f"{kind}, expected torch.int64") for kind in (torch.float32, torch.bool)],
    *[(WEIGHT, STATE[WEIGHT] + value, "holds NaN or an infinity") for value in (float("nan"), float("inf"))],
    (WEIGHT, STATE[WEIGHT].double() + 1e300, "holds NaN or an infinity"),  # in float32
    (COUNTER, torch.tensor(-3), "holds -3, expected no value below 0"),
    (VARIANCE, STATE[VARIANCE] - 1.5, "holds -0.5, expected no value below 0"),
    (VARIANCE, STATE[VARIANCE] / 0, "holds NaN or an infinity"),
    ("image_std", STATE["image_std"] * 0, "holds 0, expected values above 0"),
    ("image_std", -STATE["image_std"], "expected values above 0"),
    ("image_mean", STATE["image_mean"] / 0, "holds NaN or an infinity"),
    (WEIGHT, STATE[WEIGHT].flatten(), "is (40,), expected (5, 8, 1, 1)"),
    (WEIGHT, torch.zeros(1).expand(10**12), "is (1000000000000,), expected"),
    (WEIGHT, STATE[WEIGHT].reshape(*[1] * 60, -1), "is (1, 1"),
    (WEIGHT, STATE[WEIGHT].to_sparse(), "is sparse, quantised or without values"),
    (WEIGHT, STATE[WEIGHT].to("meta"), "is sparse, quantised or without values"),
    (WEIGHT, "weights" * 1000, "holds a str under 'classifier.weight'"),
    ("x" * 5000, torch.zeros(1), "is unknown"),
    (7, torch.zeros(1), "holds a Tensor under 7"),
]


@pytest.mark.parametrize(("name", "value", "expected"), VALUES, ids=range(len(VALUES)))
def test_tensors_of_another_kind_or_of_impossible_values_are_named_and_nothing_is_loaded(
    name, value, expected, tmp_path
):
    torch.save({"state_dict": STATE | {name: value}}, file := tmp_path / "weights.pth")
    model = network()
    refused(lambda: load_weights(model, file), RuntimeError, names=(str(file), str(name)[:70], expected))
    assert all(torch.equal(value, STATE[key]) for key, value in model.state_dict().items())


def test_all_that_differs_is_counted_and_the_first_is_named(tmp_path):
    save_file({name: torch.full_like(value, -1) for name, value in STATE.items()}, file := tmp_path / "all.safetensors")
    wrong = [name for name in STATE if name.endswith(("running_var", "num_batches_tracked", "image_std"))]
    refused(lambda: load_weights(network(), file), RuntimeError, names=(f"{len(wrong)} tensors differ, first image",))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_and_variances_of_zero_are_read_and_the_digest_is_that_of_the_file(kind, tmp_path):
    state = {name: value.to(kind) if value.is_floating_point() else value for name, value in STATE.items()}
    state[VARIANCE] = torch.zeros_like(state[VARIANCE], requires_grad=True)  # as published files have some
    torch.save(state, file := tmp_path / "weights.pth")
    digest = load_weights(model := network(), file)
    assert digest == hashlib.sha256(file.read_bytes()).hexdigest()
    assert model.classifier.weight.dtype == torch.float32
    assert not model.state_dict()[VARIANCE].any()
    refused(lambda: load_weights(network(), file, sha256="0" * 64), RuntimeError, names=(digest, "0" * 64))


class Hostile:
    """What ends the test when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("the file was executed",)


def archive(content: bytes, **options) -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w", **options) as written:
        written.writestr("archive/data.pkl", content)
    return file.getvalue()


def saved(content: object, **options) -> bytes:
    torch.save(content, file := io.BytesIO(), **options)
    return file.getvalue()


def safe(entry: bytes) -> bytes:
    return struct.pack("<Q", len(entry)) + entry + bytes(4)


WHOLE, SAFE = saved(STATE), save(STATE)
ENTRY = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
FILES = [
    *(b"", b"P", b"<!DOCTYPE html>", bytes(10_000), WHOLE[: len(WHOLE) // 2], SAFE[:-100], SAFE + b"more"),
    *(archive(b""), archive(pickle.dumps([1], 2)), archive(bytes(10**8), compression=zipfile.ZIP_DEFLATED)),
    *(pickle.dumps({"a": Hostile()}), saved({"a": Hostile()}), saved(network()), saved(torch.zeros(3)), saved({})),
    *(pickle.dumps([1]), b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b"."),
    *(b"\x80\x04\x8e" + struct.pack("<Q", 10**10) + b".", struct.pack("<Q", 2**60) + b"{}", b"\xff" * 8 + b"{"),
    *(safe(b"{'a': 1}"), safe(b'{"\xff": 1}'), safe(b'{"a":' * 10**5 + b"1" + b"}" * 10**5), safe(b"[1]"), safe(ENTRY)),
    *(safe(ENTRY.replace(*change)) for change in ((b"F32", b"F33"), (b"4]", b"8]"), (b"[0,4]", b"[4,0]"))),
    *(safe(ENTRY.replace(b"[1]", shape)) for shape in (b"[1000000000,1000000000]", b"[-1]", b"[1e99]", b"1")),
]


@pytest.mark.parametrize("place", range(len(FILES)))
def test_a_file_that_holds_no_weights_is_refused_in_a_line(place, tmp_path):
    (file := tmp_path / "weights").write_bytes(FILES[place])
    refused(lambda: load_weights(network(), file), RuntimeError, names=(str(file),))
    deep = {"imagenet": True, "weights_file": file}
    refused(lambda: create_deep_resnet("resnet18_deep", **deep), RuntimeError, names=(str(file),))


@pytest.mark.parametrize("name", ["pipe", "dangling", "endless", "huge", ".", "not there", "x" * 5000, "a\0b"])
def test_what_is_no_regular_file_or_too_large_is_refused_before_it_is_read(name, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "endless").symlink_to("/dev/zero")
    (tmp_path / "huge").touch()
    os.truncate(tmp_path / "huge", LARGEST_FILE + 1)
    refused(lambda: load_weights(network(), tmp_path / name), RuntimeError)


def test_a_damaged_file_in_torchs_cache_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (cached := tmp_path / "hub" / "checkpoints" / "net-f37072fd.pth").parent.mkdir(parents=True)
    cached.write_bytes(WHOLE)
    refused(lambda: hub_tensors(mock.Mock(url=f"https://x.org/{cached.name}")), RuntimeError, names=(str(cached),))
    cached.rename(right := cached.with_name(f"net-{hashlib.sha256(WHOLE).hexdigest()[:8]}.pth"))
    hub_tensors(entry := mock.Mock(url=f"https://x.org/{right.name}"))
    entry.get_state_dict.assert_called_once()
