"""What the tests of the data scripts share."""

import pytest
from file_server import Server
from miniatures import data_script


@pytest.fixture
def server(monkeypatch):
    """A server on this machine, between whose answers nobody waits."""
    monkeypatch.setattr(data_script("fetching").time, "sleep", lambda _: None)
    running = Server()
    yield running
    running.close()


@pytest.fixture
def own_runs(tmp_path, monkeypatch):
    """No data folder, and a folder of runs of the test's own."""
    monkeypatch.delenv("APD_DATA", raising=False)
    monkeypatch.setenv("APD_RUNS", str(tmp_path / "runs"))
