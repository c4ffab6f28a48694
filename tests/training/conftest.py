"""What the tests of runs share."""

from functools import cache

import pytest
from small_experiments import outcome

from apd.training.run import train


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """What an experiment gives when nobody disturbs it: a function of the experiment."""
    folder = tmp_path_factory.mktemp("undisturbed")

    @cache
    def outcome_of(experiment):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("APD_RUNS", str(folder))
            train(experiment)
            return outcome(experiment)

    return outcome_of
