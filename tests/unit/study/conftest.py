import pytest
from tests.unit.study.worlds import small_world

from headwater.study.world import World


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Shared by all tests of the study: what they compute in it stays there."""
    return small_world(tmp_path_factory.mktemp("study"))
