"""One process that forks runs, and one run that nothing happens to, for all tests of this folder."""

import pytest
from rig import Rig, Server


@pytest.fixture(scope="session")
def rig(tmp_path_factory):
    with Server() as server:
        yield Rig.build(tmp_path_factory.mktemp("crash"), server)
