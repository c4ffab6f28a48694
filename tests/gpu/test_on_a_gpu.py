"""What only a GPU can show: agreement with the CPU, no waiting for the host, one graph, memory, and one rank of NCCL.

Where the same statement means something on a CPU it is tested there, too, so that a lent GPU meets no typing error. On
a machine without the other tests' plugins: `python -m pytest -c /dev/null --rootdir . tests/gpu/test_on_a_gpu.py`.
"""

import contextlib
from dataclasses import replace
from functools import partial

import pytest
import torch

from apd import APDLoss
from apd.config.datasets import build_splits
from apd.config.experiment import DataConfig, Experiment, NetworkConfig, TeacherConfig, TrainingConfig
from apd.cost.measure import LOSS_SHAPES, LossShape, loss_batch, loss_cost
from apd.data.augment import Augmentation
from apd.data.batches import DeviceStream, training_batches
from apd.data.scenes import Scenes
from apd.distillers.apd import APDConfig
from apd.training.distributed import _SEND_BUFFERS, ALONE
from apd.training.run import task_of, train
from apd.training.segmentation import build_network
from apd.training.trainer import TrainStep
from book.figures.speed import random_batch

SMALL = LossShape(batch=2, channels=32, grid=24, classes=19, labels=96)
NETWORK = NetworkConfig(backbone="test_efficientnet", head_width=32, dropout=0.0)
TINY = Experiment(
    name="on-a-gpu",
    data=DataConfig(height=64, width=64, crop_height=64, crop_width=64, train_images=8, evaluation_images=4),
    network=NETWORK,
    training=TrainingConfig(iterations=8, batch_size=4, learning_rate=0.003, evaluations=1),
    precision="fp32",
    teacher=TeacherConfig(network=NETWORK, training=TrainingConfig(iterations=4, batch_size=4, evaluations=0)),
    distillers=(APDConfig(width=32),),
)
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: there is none here")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=GPU)])
def device(request, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # whose rounding turns the sign of some ReLU's input
    torch.manual_seed(0)
    return torch.device(request.param)


@contextlib.contextmanager
def nobody_waits(device):
    """Inside, whatever makes the host wait for the GPU is an error."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def method(shape, device, **options):
    torch.manual_seed(1)
    return APDLoss(shape.channels, shape.channels, shape.classes, width=shape.channels, **options).to(device)


def loss_and_gradients(shape, device, dtype):
    """The loss and its gradients by the student's maps and all heads, in float64 on the CPU."""
    module, batch = method(shape, device), loss_batch(shape, device=device, dtype=dtype)
    loss = module(**batch)["loss"]
    loss.backward()
    learned = [batch["student_features"], batch["student_logits"], *module.parameters()]
    return [value.detach().double().cpu() for value in (loss, *(one.grad for one in learned))]


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 5e-3), (torch.bfloat16, 4e-2)], ids=["fp32", "bf16"])
def test_loss_and_gradients_agree_with_the_cpu(device, dtype, within):
    reference = loss_and_gradients(SMALL, torch.device("cpu"), torch.float32)
    found = loss_and_gradients(SMALL, device, dtype)
    for value, wanted in zip(found, reference, strict=True):
        assert torch.isfinite(value).all()
        assert (value - wanted).norm() <= within * wanted.norm() + 1e-9


def test_the_loss_waits_for_nobody(device):
    module, batch = method(SMALL, device), loss_batch(SMALL, device=device)
    module(**batch)["loss"].backward()
    with nobody_waits(device):
        module(**batch)["loss"].backward()


def test_the_method_takes_little_memory_beside_the_maps_that_it_reads(device):
    shape = LOSS_SHAPES["cityscapes"] if device.type == "cuda" else SMALL
    batch = loss_batch(shape, device=device)
    maps = 2 * batch["student_features"].numel() * 4
    logits = shape.batch * shape.classes * shape.labels**2 * 4  # upsampled, which no way around is known of
    without, heads = APDLoss(shape.channels, shape.channels, shape.classes, width=None), method(shape, device)
    assert loss_cost(without.to(device), batch, seconds=0.01).peak_bytes < 4 * maps + 3 * logits
    assert loss_cost(heads, batch, seconds=0.01).peak_bytes < 8 * maps + 3 * logits


def networks(experiment, device):
    classes = build_splits(experiment.data).train.spec.num_classes
    student = build_network(experiment.network, classes, device, seed=0)
    teacher = build_network(experiment.teacher.network, classes, device, seed=1).eval().requires_grad_(False)
    return student, teacher


def steps(experiment, device, count=6, precision="fp32", ranks=ALONE):
    """The student's parameters and the terms of each step, after so many on different batches."""
    student, teacher = networks(experiment, device)
    update = TrainStep(task_of(replace(experiment, precision=precision)), student.train(), teacher, ranks)
    for optimiser in update.optimisers.values():
        for group in optimiser.param_groups:
            group["lr"] = 0.003
    batch = random_batch(experiment, 10)
    moved = (type(batch)(*(value.roll(number, -1).to(device) for value in batch)) for number in range(count))
    terms = [update(one) for one in moved]
    ends = torch.cat([p.detach().double().cpu().flatten() for p in student.parameters()])
    return ends, [{name: float(value) for name, value in step.items()} for step in terms], update


def assert_trained_alike(found, wanted, within):
    (ends, terms, _), (other_ends, other_terms, _) = found, wanted
    start = torch.cat([p.detach().double().flatten() for p in networks(TINY, torch.device("cpu"))[0].parameters()])
    assert (ends - other_ends).norm() <= within * (other_ends - start).norm()
    for step, other in zip(terms, other_terms, strict=True):
        assert step == pytest.approx(other, rel=within, abs=1e-4)


@pytest.mark.parametrize(("precision", "within"), [("fp32", 0.1), ("bf16", 0.5)])
def test_steps_train_as_on_the_cpu(device, precision, within):
    assert_trained_alike(steps(TINY, device, 3, precision), steps(TINY, torch.device("cpu"), 3), within)


def test_nothing_in_a_step_waits_for_the_gpu(device):
    experiment = replace(TINY, training=replace(TINY.training, fused=True))
    student, teacher = networks(experiment, device)
    update = TrainStep(task_of(replace(experiment, precision="bf16")), student.train(), teacher)
    batch = random_batch(experiment, 10)
    batch = type(batch)(*(value.to(device) for value in batch))
    update(batch)
    with nobody_waits(device):
        update(batch)


@GPU
@pytest.mark.parametrize("fused", [False, True])
def test_a_step_recorded_as_a_cuda_graph_trains_as_one_that_is_not(fused):
    plain = replace(TINY, training=replace(TINY.training, fused=fused))
    recorded = replace(plain, training=replace(plain.training, cuda_graph=True))
    found = steps(recorded, torch.device("cuda"), 8)
    assert found[2].captured.graph is not None
    assert_trained_alike(found, steps(plain, torch.device("cuda"), 8), 0.02)


def test_batches_made_on_the_device_are_the_loaders_up_to_rounding_and_nobody_waits(device):
    scenes = Scenes(6, height=72, width=96, context_shift=0.5, seed=0, split="train")
    settings = {"augmentation": Augmentation(crop=(64, 80), colour=0.2), "batch_size": 4, "seed": 3, "iterations": 4}
    there = training_batches(scenes, **settings, stream=partial(DeviceStream, device=device))
    loaded = training_batches(scenes, **settings)
    next(there), next(loaded)
    with nobody_waits(device):
        made = list(there)
    for batch, wanted in zip(made, loaded, strict=True):
        assert batch.images_B3HW.device.type == device.type
        assert torch.equal(batch.labels_BHW.cpu(), wanted.labels_BHW)
        levels = 255 * (batch.images_B3HW.cpu() - wanted.images_B3HW).abs()
        assert (levels.max() < 4.5, (levels < 1.5).float().mean() > 0.9) == (True, True)


def test_one_rank_of_a_process_group_trains_as_a_process_on_its_own(device, monkeypatch, tmp_path):
    """DistributedDataParallel around the whole objective, with NCCL on a GPU and gloo on a CPU."""
    alone = steps(TINY, device, 3)
    backend, meeting = "nccl" if device.type == "cuda" else "gloo", f"file://{tmp_path / 'meeting'}"
    torch.distributed.init_process_group(backend, init_method=meeting, rank=0, world_size=1)
    try:
        wrap = torch.nn.parallel.DistributedDataParallel
        monkeypatch.setattr(type(ALONE), "wrapped", lambda _, module: wrap(module, **{_SEND_BUFFERS: False}))
        together = steps(TINY, device, 3)
    finally:
        torch.distributed.destroy_process_group()
    assert_trained_alike(together, alone, 0.02)


@pytest.mark.parametrize("switches", [{}, {"device_augmentation": True, "cuda_graph": True, "fused": True}])
def test_a_run_learns_writes_its_record_and_is_found_finished(device, monkeypatch, tmp_path, switches):
    monkeypatch.setenv("APD_RUNS", str(tmp_path))
    experiment = replace(TINY, precision="auto", training=replace(TINY.training, iterations=30, **switches))
    record = train(experiment, device=device.type)
    task = record.content["curves"]["task"]
    assert record.content["device"]["type"] == device.type
    assert sum(task[-5:]) < sum(task[:5])
    assert train(experiment, device=device.type).content == record.content


def test_the_loss_compiles_into_one_graph_that_gives_the_same(device):  # last, as compiling takes a minute
    module, batch = method(SMALL, device), loss_batch(SMALL, device=device)
    backend = "inductor" if device.type == "cuda" else "eager"  # of which a CPU shows as much in no time
    compiled = torch.compile(module, fullgraph=True, backend=backend)(**batch)
    for name, value in module(**batch).items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-5)
