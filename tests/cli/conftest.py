"""The run that tests of commands share."""

import pytest
from small_experiments import tiny

from apd.training.run import run_folder, train


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder of a finished run; tests must not change it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("APD_RUNS", str(tmp_path_factory.mktemp("finished")))
        train(tiny())
        return run_folder(tiny())
