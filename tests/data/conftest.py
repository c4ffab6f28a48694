"""What the tests of the data scripts share."""

import re

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
def run(capsys):
    """Runs a data script, which must end with `code` and say the words (an error in its last line); its output."""

    def run(name, *arguments, says="", code=0):
        found = data_script(name).main([str(argument) for argument in arguments])
        said = "".join(capsys.readouterr())
        assert found == code, said
        assert re.search(says, said.splitlines()[-1] if code else said), said
        return said

    return run
