"""What all tests share: repeatable randomness, one thread, and no deadline for property tests on a busy machine."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=25)
settings.load_profile("repeatable")

# As the processes that tests start: with another number of threads sums are in another order, and bits differ.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Tests with forks come first: after a dry run's fake CUDA tensors, autograd refuses to work in a fork."""
    items.sort(key=lambda item: "test_campaign" not in item.nodeid)


@pytest.fixture(autouse=True)
def _same_random_numbers_in_every_test():
    torch.manual_seed(0)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A folder of its own for the runs of a test."""
    monkeypatch.setenv("APD_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture
def own_runs(runs, monkeypatch):
    """No data folder, and a folder of runs of the test's own."""
    monkeypatch.delenv("APD_DATA", raising=False)


@pytest.fixture
def tiny_recipes(runs, monkeypatch):
    """A folder of its own for runs, and the tiny experiments of these tests in the place of the recipes."""
    from small_experiments import tiny

    monkeypatch.setattr("apd.study.recipes.recipe", lambda _size="tiny", method="apd", **_: tiny(method))
