"""FastIF through the command line: what was not looked at, and how much that leaves out, is said wherever the answer is shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from headwater.rank.export import newest_trace, read_scores
from tests.e2e.conftest import ROWS, Answer

FASTIF = ("--method", "fastif", "--set", "methods.fastif.k=6", "--set", "methods.fastif.recall_at=4")


@pytest.mark.parametrize("options", [("curvature=fisher",), ("curvature=fisher", "by=bm25", "workers=2")], ids=["nearest", "bm25"])
def test_a_trace_says_what_its_candidates_leave_out(cli: Callable[..., Answer], run: Path, options: tuple[str, ...]) -> None:
    queries = run / "asked.jsonl"
    queries.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:10]), encoding="utf-8")
    chosen = [part for option in options for part in ("--set", f"methods.fastif.{option}")]
    answer = cli("trace", run, "--queries", queries, *FASTIF, *chosen)
    assert answer.code == 0, answer.err
    assert f"6 of {len(ROWS)} rows looked at for each query" in answer.err
    assert "10 queries; chance 25%)" in answer.err
    folder = newest_trace(run)
    record = json.loads((folder / "trace.json").read_text(encoding="utf-8"))
    recall = record["methods"][0]["provenance"]["candidates"]["recall"]
    assert recall["interval"][0] <= recall["value"] <= recall["interval"][1]
    assert f"they hold {recall['value']:.0%} (95 % interval" in answer.err
    assert "95 % interval" in (run / "report.html").read_text(encoding="utf-8")
    assert np.isfinite(read_scores(folder)["fastif"].values_QN).sum(1).tolist() == [6] * 10
    listed = {row["id"] for query in record["queries"] for side in query["ranked"]["fastif"].values() for row in side}
    assert listed <= set(record["rows"])


def test_whole_gradients_of_the_candidates_alone(cli: Callable[..., Answer], run: Path) -> None:
    """With the model itself as the curvature's source, in one process and in two: the numbers of looking at every row."""
    queries = run / "asked.jsonl"
    queries.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:6]), encoding="utf-8")
    exact = ("--set", "methods.fastif.mode=exact", "--set", "methods.fastif.curvature={name: cg, damping: 1.0, max_steps: 3}")

    def scores(*more: str) -> np.ndarray:
        answer = cli("trace", run, "--queries", queries, "--method", "fastif", *exact, *more)
        assert answer.code == 0, answer.err
        return read_scores(newest_trace(run))["fastif"].values_QN

    one, two, every = scores(*FASTIF), scores(*FASTIF, "--set", "methods.fastif.workers=2"), scores("--set", "methods.fastif.share=1.0")
    looked_at = np.isfinite(one)
    assert looked_at.sum(1).tolist() == [6] * 6
    assert np.array_equal(one, two, equal_nan=True)
    assert np.isfinite(every).all()
    np.testing.assert_allclose(one[looked_at], every[looked_at], rtol=1e-3)
