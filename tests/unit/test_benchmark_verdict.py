"""The verdict's benchmark: its tasks are what they say, and its figures are those of a plain count."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.verdict import __main__ as bench
from benchmarks.verdict.judge import figures
from benchmarks.verdict.tasks import make
from benchmarks.verdict.world import SMALL, effect, known_tasks


@pytest.mark.parametrize("name", known_tasks())
def test_a_task_is_made_from_its_seed_and_its_controls_have_no_cause(name: str):
    task, again, other = (make(name, seed, n_rows=300, n_queries=42) for seed in (0, 0, 1))
    assert (task.rows, task.queries) == (again.rows, again.queries)
    assert task.rows != other.rows
    assert (len(task.rows), len(task.queries)) == (300, 42)
    assert Counter(query["kind"] for query in task.queries) == {"caused": 28, "control": 7, "own": 7}
    said = {row["response"] for row in task.rows}
    texts = {(row["prompt"], row["response"]) for row in task.rows}
    for query in task.queries:
        if name != "wikitext":  # of a piece with 30 copies, each without two words, the query may be one
            assert (query["prompt"], query["response"]) not in texts, "a query is a row"
        if query["kind"] == "caused":
            assert query["response"] in said
        if query["kind"] == "control" and name != "facts":  # a fact's controls give a person to a post that no row speaks of
            assert query["response"] not in said
        if query["kind"] == "own":
            assert query["response"] == ""


def test_an_effect_is_a_cause_where_it_is_sure_and_large():
    rng = np.random.default_rng(0)
    random_RS = -1 + 0.05 * rng.normal(size=(4, 5))
    assert effect(np.full(5, -4.0), random_RS)["caused"]
    assert effect(np.full(5, -4.0), random_RS)["effect"] == pytest.approx(3, abs=0.1)
    assert not effect(np.full(5, -1.3), random_RS)["caused"]  # sure, and the answer is as likely as it was
    assert not effect(-4 + 8 * rng.normal(size=5), random_RS)["caused"]  # large, and not sure


def test_figures_are_counts_over_judgements():
    rng = np.random.default_rng(1)
    records: list[dict[str, Any]] = []
    for m in range(160):
        caused = bool(rng.random() < 0.5)
        learned = float(np.sinh(2 * rng.normal() + (3 if caused else -3)))
        kind = "caused" if caused or rng.random() < 0.5 else "control"
        raw = {"grad_cos": float(rng.random()), "lexical": float(caused)}
        records.append({"task": "abcd"[m % 4], "caused": caused, "kind": kind, "evidence": {"learned": learned}, "raw": raw})
    found = figures(records)
    assert found["auroc"] > 0.9
    assert found["auroc_of_raw_scores"]["lexical"] == 1.0
    assert abs(found["auroc_of_raw_scores"]["grad_cos"] - 0.5) < 0.15
    assert found["supported_true"] > 0.8
    assert found["ece"] < 0.1
    assert found["n_uncaused"] == 3 * sum(not one["caused"] and one["kind"] == "control" for one in records)
    assert set(found["shares_by_task"]) == set("abcd")


@pytest.mark.slow
def test_the_parts_fit_together_and_a_second_call_does_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    result = bench.measure(tmp_path, SMALL)
    assert result["n_queries"] == SMALL.queries * len(known_tasks())
    assert {"auroc", "ece", "supported_true", "uncaused_supported", "records"} <= set(result)
    assert all(np.isfinite(one["effect"]) for one in result["records"])
    monkeypatch.setattr("benchmarks.verdict.world.finetune", None)  # a second call would have to train
    assert bench.measure(tmp_path, SMALL)["records"] == result["records"]
