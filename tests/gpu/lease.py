"""The parts of `tests/gpu/lease.sh` that are more than a command: packing, measurements, and what comes back.

`python -m tests.gpu.lease PART [NAME]` is how the script calls it.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from shutil import rmtree

import filelock
import torch
from PIL import Image

from apd.config.identity import fingerprint
from apd.data.image_folder import find_data
from apd.fields import UserError
from apd.models.pretrained import OFFLINE_WEIGHTS, offline_file
from apd.study.campaign import Ledger, existing_records
from apd.study.campaigns import CAMPAIGNS, experiments_of, untrained_teacher
from apd.study.parallel import side_by_side
from apd.training.distributed import ALONE, choose_device
from apd.training.record import read_record, records_folder, repository
from apd.training.run import run_folder, runs_folder
from book.figures import speed as speed_table

LEASE = Path(".lease")
CALL_BYTES = 63 << 20  # 64 MiB travel with a call, the working tree among them
BACK_BYTES, BACK_FILES = 15 << 20, 4  # a file that comes back, and how many: 8 files, 64 MiB in all
QUALITY = 95  # of the JPEG files in place of CamVid's PNG files, which are four times as large
LAST_SECONDS = 60.0  # kept for the last checkpoints (20), the ends of the workers, and packing what goes back
DATA_FOLDERS = {"camvid": "CamVid", "labelmefacade": "LabelMeFacade"}
TOY = bool(os.environ.get("LEASE_TOY"))
SECONDS = 0.001 if TOY else float(os.environ.get("LEASE_MEASURE", "0.5"))  # of every measurement
PROCESSES = (1, 2) if TOY else (1, 2, 4)


# before the lease


def pack(name):
    """Lay what campaign `name` needs into `.lease/1`, `.lease/2` and so on; each fits beside the working tree."""
    rmtree(LEASE, ignore_errors=True)
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        add(archive, "COMMIT", commit().encode())
        for source, place in needed(experiments_of(name)):
            content = source.read_bytes()
            if place.suffix == ".jpg" and source.suffix == ".png":
                packed = io.BytesIO()
                with Image.open(source) as image:
                    image.convert("RGB").save(packed, "jpeg", quality=QUALITY, optimize=True)
                content = packed.getvalue()
            add(archive, place, content)
    tree = tree_bytes()
    for number, piece in enumerate(pieces(whole, CALL_BYTES - tree), start=1):
        folder = LEASE / str(number)
        folder.mkdir(parents=True)
        (folder / "piece").write_bytes(piece)
        print(f"{folder}: {len(piece) / 2**20:.1f} MiB")
    print(f"the working tree has {tree / 2**20:.1f} MiB; carry one of these folders a call, in this order")


def add(archive, name, content):
    """Put a file into an archive."""
    info = tarfile.TarInfo(str(name))
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def pieces(whole, size):
    """An archive cut into pieces of so many bytes."""
    content = whole.getvalue()
    return [content[first : first + size] for first in range(0, len(content), size)]


def tree_bytes():
    """Bytes of all files that travel with every call: those git tracks or does not ignore."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], capture_output=True, check=True)
    return sum(os.path.getsize(name) for name in listed.stdout.split(b"\0") if name and os.path.isfile(name))


def commit():
    """The commit of the package as it is, for records made where there is no git; empty where it differs from it."""
    changed = subprocess.run(["git", "status", "--porcelain", "--", "apd"], capture_output=True, check=True).stdout
    if changed:
        print("lease: apd/ differs from its commit, so records will not name one")
        return ""
    return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, check=True, text=True).stdout.strip()


def needed(experiments):
    """(file, place in the pack): data, ImageNet weights, teachers that are trained already, and runs that are begun."""
    for name in {e.data.name for e in experiments if e.data.name in DATA_FOLDERS}:
        root = find_data(DATA_FOLDERS[name])
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            place = Path("data") / root.name / path.relative_to(root)
            image = name == "camvid" and path.suffix == ".png" and not path.parent.name.endswith("annot")
            yield path, place.with_suffix(".jpg") if image else place
    taught = {run_folder(e.teacher_experiment()): e for e in experiments if e.teacher is not None}
    networks = {e.network for e in experiments}
    networks |= {e.teacher.network for folder, e in taught.items() if not travels(folder, e)}
    for folder in sorted(folder for folder, e in taught.items() if travels(folder, e)):
        for file in ("record.json", "weights.safetensors"):
            yield folder / file, Path("runs") / folder.name / file
    if any(network.weights == "torchvision" for network in networks):
        if not (files := sorted(Path(torch.hub.get_dir(), "checkpoints").glob("*.pth"))):
            sys.exit(f"lease: {torch.hub.get_dir()} has no weights of torchvision; set TORCH_HOME to where they are")
        yield from ((path, Path("weights", "hub", "checkpoints", path.name)) for path in files)
    for network in networks:
        if network.weights == "imagenet" and network.backbone in OFFLINE_WEIGHTS:
            package = offline_file(network.backbone).parents[1]  # of the package's folder of models
            for path in sorted(package.rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    yield path, Path("site", package.name) / path.relative_to(package)
    runs = {run_folder(run) for e in experiments for run in (e, e.teacher and e.teacher_experiment()) if run}
    for folder in sorted(folder for folder in runs if not (folder / "record.json").exists()):
        for newest in sorted(folder.glob("checkpoints/step-*"))[-1:]:
            history = json.loads((newest / "manifest.json").read_text())["facts"]["history"]
            if history[-1]["device"]["type"] == "cuda":  # begun in an earlier lease
                for file in (folder / "log.jsonl", *sorted(newest.iterdir())):
                    yield file, Path("runs") / file.relative_to(folder.parent)


def travels(folder, experiment):
    """Whether a teacher is trained, and on the files that travel: those of CamVid are others, which a GPU is given."""
    if untrained_teacher(experiment) is not None:
        return False
    return experiment.data.name != "camvid" or read_record(folder / "record.json").content["device"]["type"] == "cuda"


# on the machine


def seconds_left():
    """Until the call has to end."""
    return float(os.environ["LEASE_ENDS"]) - time.time()


def machine():
    """Say what this is."""
    device = choose_device(os.environ["LEASE_DEVICE"])
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    versions = f"torch {torch.__version__}, filelock {filelock.__version__}"
    print(f"{name}, {os.cpu_count()} cores, {versions}, {seconds_left():.0f} s left")


def speed():
    """The speed table: losses at the published shapes and the paper's step."""
    device, out = os.environ["LEASE_DEVICE"], os.environ["OUT"]
    if TOY:
        from small_experiments import tiny

        from apd.cost.measure import LossShape

        speed_table.LOSS_SHAPES = {"cityscapes": LossShape(batch=2, channels=8, grid=6, classes=5, labels=24)}
        speed_table.PUBLISHED = {"cityscapes": "tiny"}
        speed_table.recipe = lambda _size: tiny("apd")
    sys.argv = ["speed", "--device", device, "--parts", "published", "losses", "--seconds", str(SECONDS)]
    sys.argv += ["--to", out]
    speed_table.main()


def switches(name):
    """How many runs side by side are the fastest; then what switches are worth in a step of each kind of run."""
    experiments, device = experiments_of(name), choose_device(os.environ["LEASE_DEVICE"])
    baseline, apd = (next(e for e in experiments if e.name.startswith(f"{label}-")) for label in ("student", "apd"))
    ways = ((False, False, True), (True, False, True), (True, False, False), (True, True, True))
    rates = {}
    for number in PROCESSES:
        command = [sys.executable, "-m", "tests.gpu.lease", "pace", name]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        paces = [subprocess.Popen(command, **pipes) for _ in range(number)]
        ready = [process.stdout.readline() for process in paces]  # so that all measure at the same time
        for process in paces:
            if all(ready):
                print("go", file=process.stdin, flush=True)  # to all, before any is waited for
            else:  # one has failed, and the others would wait
                process.kill()
        found = [process.communicate()[0] for process in paces]
        rates[number] = sum(map(float, found)) if all(found) else 0.0
        said = f"{rates[number]:.1f} steps/s of APD" if rates[number] else "one of them failed"
        print(f"{number} processes: {said}", flush=True)
    LEASE.mkdir(exist_ok=True)
    (LEASE / "processes").write_text(str(max(rates, key=rates.get)))
    for experiment in (baseline, apd, apd.teacher_experiment()):
        print(f"{experiment.name}, batch of {experiment.training.batch_size}")
        for graph, benchmark, channels_last in ways if device.type == "cuda" else ways[:1]:
            torch.backends.cudnn.benchmark = benchmark
            training = replace(experiment.training, cuda_graph=graph, channels_last=channels_last)
            took = speed_table.step_latency(replace(experiment, training=training), device, seconds=SECONDS).median
            how = f"cuda_graph = {graph}, cudnn.benchmark = {benchmark}, channels_last = {channels_last}"
            print(f"  {how}: {took:.2f} ms", flush=True)


def pace(name):
    """Print the steps a second of a run of APD, measured while others are."""
    apd = next(e for e in experiments_of(name) if e.name.startswith("apd-"))
    step, count = speed_table.training_step(apd, choose_device(os.environ["LEASE_DEVICE"])), 0
    print("ready", flush=True)
    sys.stdin.readline()
    begun = time.monotonic()
    while not count or time.monotonic() < begun + 15 * SECONDS:
        terms, count = step(), count + 1
    assert torch.isfinite(terms["loss"])  # and waits for the GPU
    print(count / (time.monotonic() - begun))


def run(label, experiments, folder, processes, seconds):
    """Run what has no record in `folder` yet, for so long."""
    done = existing_records(folder)
    missing = [experiment for experiment in experiments if fingerprint(experiment) not in done]
    if not missing or seconds <= 0:
        return
    ledger, begun = Ledger(label, folder, done, len(missing), ALONE), time.monotonic()
    device, minutes = os.environ["LEASE_DEVICE"], seconds / 60
    try:
        found = side_by_side(missing, ledger, device=device, processes=processes, minutes=minutes)
        ledger.close()
        took = f"{found:.1f} steps/s, {time.monotonic() - begun:.0f} s"
        print(f"lease: {label}: {processes} processes, {took}", flush=True)
    except UserError as error:
        print(f"lease: {error}", flush=True)


def campaign(name):
    """Teachers first, then the runs, until the time is up."""
    skipped, folder = os.environ.get("LEASE_SKIP"), records_folder(name)
    experiments = [e for e in experiments_of(name) if not (skipped and skipped in e.name)]
    teachers = {fingerprint(t): t for e in experiments if (t := untrained_teacher(e)) is not None}
    run("teachers", teachers.values(), runs_folder() / "teachers", len(teachers), seconds_left() - LAST_SECONDS)
    run(name, experiments, folder, int(os.environ["LEASE_PROCESSES"]), seconds_left() - LAST_SECONDS)


def collect(name):
    """Put records and logs, teachers, and begun runs as far as there is room, into the pieces of an archive in OUT."""
    runs, whole = runs_folder(), io.BytesIO()
    teachers = {run_folder(e.teacher_experiment()) for e in experiments_of(name) if e.teacher is not None}
    begun = {path.parent for path in runs.glob("*/checkpoints") if not (path.parent / "record.json").exists()}
    with tarfile.open(fileobj=whole, mode="w:gz", compresslevel=1) as archive:
        for path in sorted(records_folder(name).glob("*.json")):
            archive.add(path, f"records/{path.name}")
        for path in sorted(runs.glob("*/log.jsonl")):
            archive.add(path, f"logs/{path.parent.name}.jsonl")
        for folder in (*sorted(teachers), *sorted(begun - teachers)):
            kept = [folder / name for name in ("record.json", "weights.safetensors", "log.jsonl")]
            if folder in begun:
                kept += sorted(max(folder.glob("checkpoints/step-*"), default=folder / "none").glob("*"))
            files = [file for file in kept if file.is_file()]
            size = sum(file.stat().st_size + 2048 for file in files)
            if whole.tell() + size + 2**20 > BACK_BYTES * BACK_FILES:
                print(f"lease: {folder.name} has {size / 2**20:.1f} MiB and stays behind: it begins anew elsewhere")
                continue
            for file in files:
                archive.add(file, Path("runs", file.relative_to(runs)))
    for number, piece in enumerate(pieces(whole, BACK_BYTES)):
        (Path(os.environ["OUT"]) / f"back.tgz.{number}").write_bytes(piece)
    print(f"lease: {len(begun)} runs are begun, {whole.tell() / 2**20:.1f} MiB go back")


# after the lease


def unpack(folder, name):
    """Put the records beside those of the campaign, and the runs into the folder of runs."""
    places = {"records": records_folder(name), "logs": runs_folder() / "logs", "runs": runs_folder()}
    content = b"".join(path.read_bytes() for path in sorted(Path(folder).glob("back.tgz.*")))
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive.getmembers():
            kind, member.name = member.name.split("/", 1)
            if kind == "runs" or not (places[kind] / member.name).exists():
                archive.extract(member, places[kind], filter="data")
    print(f"lease: {len(existing_records(records_folder(name)))} records are in {records_folder(name)}")


PARTS = {part.__name__: part for part in (pack, machine, speed, switches, pace, campaign, collect, unpack)}


def main():
    """Call one part; the campaign `toy` is the rehearsal's."""
    if TOY:
        from small_experiments import DATA, tiny

        data, methods = replace(DATA, name="camvid", height=32, width=32), ("student", "pixel_kd", "apd")
        made = [replace(tiny(method, iterations=24, device_augmentation=True), data=data) for method in methods]
        CAMPAIGNS["toy"] = lambda: iter(made)
    part, *arguments = sys.argv[1:]
    if repository() != Path.cwd():
        raise SystemExit("lease: start this in the root of a clone")
    PARTS[part](*arguments)


if __name__ == "__main__":
    main()
