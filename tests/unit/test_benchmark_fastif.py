"""The FastIF benchmark at its smallest: it runs, and what must hold at any size does."""

from __future__ import annotations

import json

import pytest
from benchmarks.fastif import CHOOSERS, PARTS, SHARES, SMALL, STAGES, measure

from headwater.progress import quiet


def test_the_benchmark_runs_and_says_what_it_promises() -> None:
    with quiet():
        result = measure(SMALL, PARTS)
    assert set(PARTS) <= set(result)
    json.dumps(result, allow_nan=False)
    for part in ("recommended", "batch_1_steps_1000"):
        assert result["accuracy"][part]["not_a_number"] == 0
    assert result["accuracy"]["damping_5e-3_scale_1e4"]["cosine_to_gradient"] > 0.99
    assert result["divergence"]["not_a_number"] == 0
    assert result["workers"]["identical"]
    for by in STAGES:
        values = [result["recall"]["by"][by][f"{share:.0%}"]["value"] for share in SHARES]
        assert values == sorted(values), "more candidates hold no less"
    assert "95 % interval" in result["recall"]["printed"]
    assert result["repair"]["seeds"] == 1
    for name in CHOOSERS:
        one = result["repair"][name]
        assert one["change_nats"][0] == pytest.approx(one["random_change_nats"][0] + one["difference_nats"][0][0], rel=1e-2)
