"""Figures of the verdict: judged on tasks that it was not fitted to, beside what a raw score says. J judgements · M queries"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.verdict.world import PRIMARY
from headwater.audit.calibration import Calibration, Judged, auroc
from headwater.audit.verdict import CONTRADICTED, SUPPORTED
from headwater.evaluate.figure import proportion_figure


def figures(records: Sequence[Mapping[str, Any]], *, fitted: int = 2) -> dict[str, Any]:
    """Every record is judged by each fit on `fitted` tasks that are not its own; all judgements count."""
    known = Calibration.of(records, PRIMARY, math.nan)
    judged = known.left_out(known.usable(known.evidence), fitted=fitted)
    raw = {name: np.array([record["raw"][name] for record in records]) for name in records[0]["raw"]}
    by_task = {task: _of(judged, known.task_M == task) for task in known.tasks}
    return {
        "auroc": judged.auroc,
        "intervals": intervals(records, judged),
        "auroc_fitted_to_one_task": known.left_out(known.usable(known.evidence), fitted=1).auroc,
        "auroc_by_task": {task: one.auroc for task, one in by_task.items()},
        "auroc_of_raw_scores": {name: auroc(values_M[judged.record_J], judged.caused_J) for name, values_M in raw.items()},
        "auroc_of_each": {name: known.left_out([name], fitted=fitted).auroc for name in known.usable(known.evidence)},
        "auroc_without": _without(known, fitted),
        "ece": judged.expected_calibration_error,
        "ece_by_task": {task: one.expected_calibration_error for task, one in by_task.items()},
        "bins": judged.bins(),
        **shares(records, judged),
        "shares_by_task": {task: shares(records, one) for task, one in by_task.items()},
    }


def fresh_figures(records: Sequence[Mapping[str, Any]], fresh: Sequence[Mapping[str, Any]], *, fitted: int = 2) -> dict[str, Any]:
    """Worlds that nothing was fitted to or decided on, judged by the fits on two of the other records' tasks, none of them their own."""
    known, others = Calibration.of(records, PRIMARY, math.nan), Calibration.of(fresh, PRIMARY, math.nan)
    judged = known.judge(others, known.usable(known.evidence), fitted=fitted)
    return {
        "n_queries": len(fresh),
        "auroc": judged.auroc,
        "ece": judged.expected_calibration_error,
        **shares(fresh, judged),
        "intervals": intervals(fresh, judged),
    }


def shares(records: Sequence[Mapping[str, Any]], judged: Judged) -> dict[str, Any]:
    """Of `supported` judgements, how many were true; of true causes, how many were given it; of queries without a cause, how many were."""
    supported_J = judged.probability_J >= SUPPORTED
    made_J = np.array([record["kind"] for record in records])[judged.record_J]
    uncaused_J = (made_J != "caused") & ~judged.caused_J
    control_J = made_J == "control"
    return {
        "supported_true": _share(judged.caused_J[supported_J]),
        "caused_supported": _share(supported_J[judged.caused_J]),
        "uncaused_supported": _share(supported_J[uncaused_J]),
        "control_supported": _share(supported_J[control_J]),
        "contradicted_false": _share(~judged.caused_J[judged.probability_J <= CONTRADICTED]),
        "n_supported": int(supported_J.sum()),
        "n_caused": int(judged.caused_J.sum()),
        "n_uncaused": int(uncaused_J.sum()),
    }


def intervals(records: Sequence[Mapping[str, Any]], judged: Judged, *, resamples: int = 1000) -> dict[str, list[float]]:
    """95 % over queries, by the bootstrap: a query comes with all its judgements. What is never defined is left out."""
    rng, n = np.random.default_rng(0), len(records)
    of_record = [np.flatnonzero(judged.record_J == m) for m in range(n)]
    found: dict[str, list[float]] = {name: [] for name in ("auroc", "ece", "supported_true", "caused_supported", "uncaused_supported")}
    for _ in range(resamples):
        drawn_J = np.concatenate([of_record[m] for m in rng.integers(n, size=n)])
        one = Judged(judged.record_J[drawn_J], judged.probability_J[drawn_J], judged.caused_M)
        values = {"auroc": one.auroc, "ece": one.expected_calibration_error, **shares(records, one)}
        for name, column in found.items():
            column.append(np.nan if values[name] is None else values[name])
    known = {name: np.array(column)[np.isfinite(column)] for name, column in found.items()}
    return {name: np.quantile(column, [0.025, 0.975]).tolist() for name, column in known.items() if len(column)}


def _without(known: Calibration, fitted: int) -> dict[str, float]:
    names = known.usable(known.evidence)
    if len(names) < 2:
        return {}
    return {name: known.left_out([other for other in names if other != name], fitted=fitted).auroc for name in names}


def _of(judged: Judged, chosen_M: np.ndarray) -> Judged:
    kept_J = chosen_M[judged.record_J]
    return Judged(judged.record_J[kept_J], judged.probability_J[kept_J], judged.caused_M)


def _share(true_J: np.ndarray) -> float | None:
    figure = proportion_figure(int(true_J.sum()), len(true_J))
    return figure.value if figure.n else None
