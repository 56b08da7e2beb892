"""Gauss-Newton products, K-FAC and EK-FAC against curvlinops, where `python -m benchmarks.oracles` has made its environment."""

from __future__ import annotations

import pytest
from benchmarks import oracles
from benchmarks.peers.engines import CHECKOUT

PYTHON = CHECKOUT / ".venvs" / oracles.CURVLINOPS.name / "bin" / "python"


@pytest.mark.skipif(not PYTHON.exists(), reason="curvlinops has no environment here: `python -m benchmarks.oracles` makes it")
def test_products_equal_those_of_curvlinops() -> None:
    found = oracles.measure(PYTHON)
    assert set(found) == {"gpt2 ggn", "bert ggn", "bert kfac", "bert ekfac"}
    assert all(one["relative_error"] < 1e-9 for one in found.values()), found
