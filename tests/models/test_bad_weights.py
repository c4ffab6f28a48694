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
from safetensors.torch import save

from apd.models import build_segmenter, load_weights
from apd.models.backbones import create_deep_resnet
from apd.models.pretrained import LARGEST_FILE, hub_tensors


def network():
    torch.manual_seed(0)
    return build_segmenter("test_efficientnet", 5, head_width=8)


STATE = network().state_dict()
WEIGHT, VARIANCE, COUNTER = "classifier.weight", "backbone.bn1.running_var", "backbone.bn1.num_batches_tracked"
W, KINDS = STATE[WEIGHT], (torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn)
SPOILT = {  # what the message says: the tensors that bring it about, by name
    **{f"{kind}, expected torch.float32": [(WEIGHT, W.to(kind))] for kind in KINDS},
    **{f"{kind}, expected torch.int64": [(COUNTER, STATE[COUNTER].to(kind))] for kind in (torch.float32, torch.bool)},
    "holds NaN or an infinity": [(WEIGHT, W / 0), (WEIGHT, W * torch.nan), (WEIGHT, W.double() + 1e300)]
    + [(name, STATE[name] / 0) for name in (VARIANCE, "image_std", "image_mean")],
    ", expected at least": [(VARIANCE, STATE[VARIANCE] - 1.5), (COUNTER, torch.tensor(-3))]
    + [("image_std", STATE["image_std"] * factor) for factor in (0, -1)],
    ", expected (5, 8, 1, 1)": [(WEIGHT, value) for value in (W.flatten(), W[:1, :1].expand(10**6, 10**6, 1, 1))],
    "is sparse, quantised or without values": [(WEIGHT, W.to_sparse()), (WEIGHT, W.to("meta"))],
    "expected tensors by name": [(WEIGHT, "weights" * 1000), (7, W)],
    "is unknown": [("x" * 5000, W)],
}


def saved(content: object, **options) -> bytes:
    torch.save(content, file := io.BytesIO(), **options)
    return file.getvalue()


@pytest.mark.parametrize("message", SPOILT)
def test_tensors_of_another_kind_or_of_impossible_values_are_named_and_the_network_stays_as_it_was(message, tmp_path):
    model, file = network(), tmp_path / "weights.pth"
    for name, value in SPOILT[message]:
        file.write_bytes(saved({"state_dict": STATE | {name: value}}))
        refused(lambda: load_weights(model, file), RuntimeError, names=(str(file), str(name)[:70], message))
    assert all(torch.equal(value, STATE[key]) for key, value in model.state_dict().items())


def test_other_precisions_and_variances_of_zero_are_read_and_the_digest_is_that_of_the_bytes(tmp_path):
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        state = {name: value.to(kind) if value.is_floating_point() else value for name, value in STATE.items()}
        state[VARIANCE] = torch.zeros_like(state[VARIANCE], requires_grad=True)  # as published files have some
        (file := tmp_path / "weights.pth").write_bytes(content := saved(state))
        assert load_weights(model := network(), file) == hashlib.sha256(content).hexdigest()
        assert model.classifier.weight.dtype == torch.float32
        refused(lambda file=file: load_weights(network(), file, sha256="0" * 64), RuntimeError, names=("0" * 64,))


class Hostile:
    def __reduce__(self):
        return pytest.fail, ("the file was executed",)


def archive(content: bytes, **options) -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w", **options) as written:
        written.writestr("archive/data.pkl", content)
    return file.getvalue()


def safe(entry: bytes) -> bytes:
    return struct.pack("<Q", len(entry)) + entry + bytes(4)


ENTRY = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
FILES = [
    *(b"", b"P", b"<!DOCTYPE html>", bytes(10_000), saved(STATE)[:-9999], save(STATE)[:-100], save(STATE) + b"more"),
    *(archive(b""), archive(pickle.dumps([1], 2)), archive(bytes(10**8), compression=zipfile.ZIP_DEFLATED)),
    *(pickle.dumps({"a": Hostile()}), pickle.dumps([1])),
    *(saved({"a": Hostile()}), saved(network()), saved(W), saved({})),
    *(saved(x, _use_new_zipfile_serialization=False) for x in ({"a": Hostile()}, {"a": 1}, STATE | {"a": {}})),
    *(b"\x80\x02" + b"]" * 10**4 + b"a" * (10**4 - 1) + b".", b"\x80\x04\x8e" + struct.pack("<Q", 10**10) + b"."),
    *(struct.pack("<Q", 2**60) + b"{}", b"\xff" * 8 + b"{", safe(b"{'a': 1}"), safe(b'{"\xff": 1}'), safe(b"[1]")),
    *(safe(b'{"a":' * 10**5 + b"1" + b"}" * 10**5), safe(ENTRY), safe(ENTRY.replace(b"F32", b"F33"))),
    *(safe(ENTRY.replace(b"[0,4]", offsets)) for offsets in (b"[0,8]", b"[4,0]", b"[-1,3]")),
    *(safe(ENTRY.replace(b"[1]", shape)) for shape in (b"[1000000000,1000000000]", b"[-1]", b"[1e99]", b"1")),
]


@pytest.mark.parametrize("place", range(len(FILES)))
def test_a_file_that_holds_no_weights_is_refused_in_a_line(place, tmp_path):
    (file := tmp_path / "weights").write_bytes(FILES[place])
    refused(lambda: load_weights(network(), file), RuntimeError, names=(str(file),))
    refused(lambda: create_deep_resnet("resnet18_deep", imagenet=True, weights_file=file), RuntimeError)


def test_what_is_no_regular_file_too_large_or_another_than_torchs_cache_claims_is_refused(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    (tmp_path / "huge").touch()
    os.truncate(tmp_path / "huge", LARGEST_FILE + 1)
    for name in ("pipe", "endless", "huge", ".", "not there", "x" * 5000, "a\0b"):
        refused(lambda path=tmp_path / name: load_weights(network(), path), RuntimeError)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (cached := tmp_path / "hub/checkpoints/net-f37072fd.pth").parent.mkdir(parents=True)
    cached.write_bytes(b"content")
    refused(lambda: hub_tensors(mock.Mock(url=f"https://x.org/{cached.name}"), ""), RuntimeError, names=(str(cached),))
    cached.rename(right := cached.with_name(f"net-{hashlib.sha256(b'content').hexdigest()[:8]}.pth"))
    hub_tensors(entry := mock.Mock(url=f"https://x.org/{right.name}"), "")
    entry.get_state_dict.assert_called_once()
