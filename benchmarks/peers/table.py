"""Outcomes -> the table and the JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from benchmarks.peers.engines import ENGINES
from benchmarks.peers.job import Figure, Outcome

AGREEMENT = ("ekfac", "graddot")
"""Functions that answer the same question in every engine that has them, so that their scores can be held against each other."""


def rows(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    return [row(outcome, figure) for outcome in outcomes for figure in outcome.job.figures]


def row(outcome: Outcome, figure: Figure) -> dict[str, Any]:
    job, result = outcome.job, outcome.result
    value: dict[str, Any] = {
        "what": figure.what,
        "engine": job.engine,
        "version": result.get("version", ENGINES[job.engine].version),
        "workload": job.workload,
        "rows": outcome.n_rows,
        "queries": outcome.n_queries,
        "passes": None,
        "seconds": None,
        "peak_mb": None,
        "note": result.get("note", ""),
        "error": outcome.error or None,
    }
    if outcome.error:
        return value
    pass_s, peak_mb = result["training_pass_s"], result["peak_mb"]
    return value | {
        "passes": round(outcome.passes(figure), 3),
        "seconds": round(outcome.seconds(figure), 2),
        "training_pass_s": round(pass_s, 2),
        "passes_each": list(outcome.repeated) if figure == job.figures[0] else [],
        "stages": {name: round(seconds / pass_s, 3) for name, seconds in result["stages_s"].items()},
        "peak_mb": None if peak_mb is None else round(peak_mb),
    }


def headlines(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The figures that are known by a key, and the further numbers of our own jobs. None: the job failed."""
    done = [outcome for outcome in outcomes if not outcome.error]
    values = {key: value for outcome in done if outcome.job.engine == "headwater" for key, value in outcome.result["values"].items()}
    named = [(figure, outcome) for outcome in outcomes for figure in outcome.job.figures if figure.key]
    return values | {figure.key: None if outcome.error else round(outcome.passes(figure), 3) for figure, outcome in named}


def agreement(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Rank correlation, mean over queries, between every two engines that scored the same rows in the same way."""
    scored = [outcome for outcome in outcomes if outcome.scores_QN is not None and outcome.job.function in AGREEMENT]
    pairs = [(a, b) for i, a in enumerate(scored) for b in scored[i + 1 :]]
    return {
        f"{a.job.function}, {a.job.workload}: {a.job.engine} and {b.job.engine}": round(spearman(a.scores_QN, b.scores_QN), 4)
        for a, b in pairs
        if (a.job.function, a.job.workload, a.n_rows, a.n_queries) == (b.job.function, b.job.workload, b.n_rows, b.n_queries)
    }


def spearman(a_QN: Any, b_QN: Any) -> float:
    return float(np.mean([spearmanr(a_N, b_N).statistic for a_N, b_N in zip(a_QN, b_QN, strict=True)]))


def show(table: Sequence[dict[str, Any]]) -> None:
    """The rows, one table for each workload."""
    console = Console(width=200)
    for workload in dict.fromkeys(row["workload"] for row in table):
        shown = Table(title=workload, title_justify="left")
        for heading in ("what", "engine", "rows", "passes", "seconds", "peak MB", "note"):
            shown.add_column(heading, justify="right" if heading in ("rows", "passes", "seconds", "peak MB") else "left")
        for one in sorted((row for row in table if row["workload"] == workload), key=lambda row: row["what"]):
            shown.add_row(*_cells(one))
        console.print(shown)


def _cells(one: dict[str, Any]) -> list[str]:
    name = f"{one['engine']} {one['version']}".strip()
    if one["error"]:
        return [one["what"], name, str(one["rows"]), "failed", "", "", one["error"]]
    stages = ", ".join(f"{stage} {passes:.2f}" for stage, passes in one["stages"].items())
    peak = "" if one["peak_mb"] is None else f"{one['peak_mb']:,}"
    return [one["what"], name, str(one["rows"]), f"{one['passes']:.2f}", f"{one['seconds']:.1f}", peak, f"{stages}; {one['note']}"]
