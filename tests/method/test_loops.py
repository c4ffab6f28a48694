"""The book's loops of other libraries: each trains and saves a student, and two processes are as exact as one."""

import os
import re
import runpy
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from small_experiments import exit_codes, start_ranks
from torch.nn import functional as F

from apd import normalizers
from apd.data import scenes
from apd.models import build_segmenter, load_weights

LOOPS = Path(__file__).parents[2] / "book" / "loops"


def run_loop(name, *arguments):
    """A script on one batch of eight small scenes, two epochs, as a process among those of `torchrun`."""
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "TORCHELASTIC_RUN_ID": "loops", "ACCELERATE_USE_CPU": "true"}
    every, norm, across, steps = scenes.Scenes, F.batch_norm, normalizers.across_processes, []
    normalizers.across_processes = lambda: steps.append(1) or across()
    scenes.Scenes = lambda _, **settings: every(8, **settings | {"height": 48, "width": 64})
    # a norm on a CPU takes the statistics of its own part of a batch: the running ones couple no images
    F.batch_norm = lambda values, *given: norm(values, *given[:4], False, *given[5:])  # not `training`
    if name == "with_lightning":
        import lightning

        processes = dict(accelerator="cpu", devices=int(os.environ["WORLD_SIZE"]), strategy="ddp")
        lightning.Trainer = partial(lightning.Trainer, enable_progress_bar=False, **processes)
    sys.argv = [name, *arguments, "2"]
    runpy.run_path(str(LOOPS / f"{name}.py"), run_name="__main__")
    assert steps or os.environ["WORLD_SIZE"] == "1", "the processes do not know of each other"


@pytest.mark.parametrize("name", ["with_torchrun", "with_accelerate", "with_lightning"])
def test_a_loop_of_another_library_saves_a_student_and_two_processes_have_the_loss_of_one(name, tmp_path):
    assert len((LOOPS / f"{name}.py").read_text().splitlines()) <= 60, "what the page promises"
    build = partial(build_segmenter, "test_efficientnet", 10, output_stride=4)
    torch.save(build(head_width=128).state_dict(), teacher := str(tmp_path / "teacher.pth"))
    losses, students = [], []
    for size in (1, 2):
        file, outputs = tmp_path / f"student{size}.pth", tmp_path / f"outputs{size}"
        codes = exit_codes(start_ranks(run_loop, name, teacher, str(file), outputs=outputs, size=size))
        printed = (outputs / "0").read_text()
        assert codes == [0] * size, printed
        losses.append(float(re.findall(r"loss (\d+\.\d+)\n", printed)[-1]))
        student = build(head_width=32)
        load_weights(student, file)
        students.append(student.classifier.weight)
        assert torch.equal(torch.load(file)["classifier.weight"], student.classifier.weight)
    assert losses[1] == pytest.approx(losses[0], rel=3e-5)
    torch.testing.assert_close(*students, atol=1e-3, rtol=0)
