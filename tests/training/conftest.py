"""What the tests of runs share."""

import pytest


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A folder of its own for the runs of a test."""
    monkeypatch.setenv("APD_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"
