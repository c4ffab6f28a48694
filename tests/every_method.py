"""Every distillation method of segmentation, small and ready to be called: what several tests run through."""

import pytest
import slow_reference as slow
import torch

import apd

SIZES = (6, 8, 5)  # channels of student and teacher, classes
OF_LOGITS = ("pixel_kd", "cwd", "dist", "dkd", "lskd")  # without features, but for CWD
METHODS = {
    "apd": lambda sizes: apd.APDLoss(*sizes, width=7),
    "pixel_kd": lambda sizes: apd.PixelKD(temperature=2.0),
    "fitnet": lambda sizes: apd.FitNet(*sizes),
    "attention_transfer": lambda sizes: apd.AttentionTransfer(*sizes),
    "skd": lambda sizes: apd.PairwiseSimilarity(*sizes),
    "ifvd": lambda sizes: apd.IFVD(*sizes),
    "cwd": lambda sizes: apd.CWD(*sizes, features=50.0),
    "cirkd": lambda sizes: apd.CIRKD(*sizes, pixel_slots=12, region_slots=4, most_pixels=6),
    "dist": lambda sizes: apd.DIST(temperature=2.0),
    "mgd": lambda sizes: apd.MGD(*sizes),
    "dkd": lambda sizes: apd.DKD(temperature=2.0),
    "lskd": lambda sizes: apd.LSKD(),
    "i2ckd": lambda sizes: apd.I2CKD(*sizes),
    "idd": lambda sizes: apd.InterClassDistance(*sizes),
}
every_method = pytest.mark.parametrize("name", METHODS)


def make(name, dtype=torch.float64, sizes=SIZES):
    """The method in evaluation mode, in which the memories of CIRKD are read and not written."""
    torch.manual_seed(7)
    return METHODS[name](sizes).to(dtype).eval()


def random_batch(**options):
    """Keywords of a call, with a teacher of 8 channels."""
    return slow.random_batch(**({"teacher_channels": 8} | options))


def call(module, batch):
    """The module's outputs, with the draws of MGD and CIRKD from one seed."""
    torch.manual_seed(11)
    return module(**batch)


def used(name):
    """The kinds of maps that a method compares."""
    both = ("features", "logits")
    return both if name in ("apd", "cwd") else both[1:] if name in OF_LOGITS else both[:1]


def gradients(loss, module, batch):
    """Of the student's maps and the parameters."""
    inputs = [batch["student_features"], batch["student_logits"], *module.parameters()]
    return torch.autograd.grad(loss, inputs, allow_unused=True)
