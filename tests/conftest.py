"""Shared by all tests: a quiet, single-threaded, offline process."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny: a second thread costs more than it brings, much more on a busy machine

import pytest


@pytest.fixture(scope="session")
def audit_world(tmp_path_factory: pytest.TempPathFactory):
    """A folder that nobody writes into: copy what is to be changed (see `tests.audit_world`)."""
    from tests.audit_world import AuditWorld, make_world

    world: AuditWorld = make_world(tmp_path_factory.mktemp("audit"))
    return world


@pytest.fixture
def subject(audit_world):
    """A fresh Subject of it: nothing that it computed is kept from another test."""
    return audit_world.subject()
