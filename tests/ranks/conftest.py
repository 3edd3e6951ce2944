"""One process that forks ranks, for all tests of this folder."""

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "crash")]


@pytest.fixture(scope="session")
def forks():
    from forks import Forks

    with Forks() as found:
        yield found
