"""What evidence was worth where the truth is known: traced queries whose groups were removed and the model trained again.

The table travels with the package (`calibration.json`, written by `python -m benchmarks.verdict --write`), not only its coefficients: a
verdict is fitted to exactly the evidence that an audit has, and says how well that evidence did on tasks it was not fitted to.

M records · F features · Q queries
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources
from itertools import combinations
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.stats import rankdata

from headwater.audit.evidence import EVIDENCE

RIDGE = 1.0  # half the squared norm of standardised coefficients, against the summed log-loss
BINS = 10


@dataclass(frozen=True, eq=False)
class Fit:
    """Logistic regression on standardised evidence: `log odds = b + w . (x - mean) / spread`, x clipped to what the records span."""

    names: tuple[str, ...]
    mean_F: np.ndarray
    spread_F: np.ndarray
    low_F: np.ndarray
    high_F: np.ndarray
    weights_F: np.ndarray
    intercept: float

    def contributions(self, x_QF: np.ndarray) -> np.ndarray:
        """[Q, F] what each piece of evidence adds to the log odds, against a record of average evidence."""
        return (np.clip(x_QF, self.low_F, self.high_F) - self.mean_F) / self.spread_F * self.weights_F

    def probability(self, x_QF: np.ndarray) -> np.ndarray:
        """[Q]"""
        return 1 / (1 + np.exp(-(self.intercept + self.contributions(x_QF).sum(1))))


@dataclass(frozen=True, eq=False)
class Calibration:
    """Records of traced queries: evidence (NaN where it was not measured), the task, and whether the group was truly a cause."""

    evidence: Mapping[str, np.ndarray]  # [M] by name
    method: str  # whose groups they are
    group_share: float  # rows of a group, of all rows
    caused_M: np.ndarray  # bool
    task_M: np.ndarray

    @staticmethod
    def of(records: Sequence[Mapping[str, Any]], method: str, group_share: float) -> Calibration:
        """From one mapping for each query: task, caused, and evidence by name (null: not measured)."""
        names = [name for name in EVIDENCE if any(record["evidence"].get(name) is not None for record in records)]
        values = {name: [record["evidence"].get(name) for record in records] for name in names}
        evidence = {name: np.array([np.nan if one is None else one for one in column], dtype=float) for name, column in values.items()}
        return Calibration(
            evidence, method, group_share, np.array([r["caused"] for r in records], dtype=bool), np.array([r["task"] for r in records])
        )

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.task_M.tolist()))

    def usable(self, names: Collection[str], method: str | None = None) -> tuple[str, ...]:
        """Those that the records have, in the order of `EVIDENCE`; of another method's trace what is not on the scale of its scores."""
        same = method is None or method == self.method
        return tuple(name for name, one in EVIDENCE.items() if name in names and name in self.evidence and (same or not one.of_scores))

    def matrix(self, names: Sequence[str], evidence: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
        """[M or Q, F] on the scales of `EVIDENCE`."""
        columns = self.evidence if evidence is None else evidence
        return np.stack([EVIDENCE[name].scale(np.asarray(columns[name], dtype=float)) for name in names], axis=1)

    def fit(self, names: Sequence[str], tasks: Sequence[str] | None = None) -> Fit:
        """On the records of these tasks (all of them) that have all of this evidence."""
        x_MF = self.matrix(names)
        used_M = np.isfinite(x_MF).all(1) & np.isin(self.task_M, self.tasks if tasks is None else tasks)
        return fit_logistic(x_MF[used_M], self.caused_M[used_M], tuple(names))

    def left_out(self, names: Sequence[str], *, fitted: int = 2) -> Judged:
        """`judge` of the records themselves; computed once for each set of names."""
        key = (tuple(names), fitted)
        if key not in self._judged:
            self._judged[key] = self.judge(self, names, fitted=fitted)
        return self._judged[key]

    @cached_property
    def _judged(self) -> dict[tuple[tuple[str, ...], int], Judged]:
        return {}

    def judge(self, others: Calibration, names: Sequence[str], *, fitted: int = 2) -> Judged:
        """Probabilities of other records by every fit on `fitted` of the tasks, none of them their own: what to expect on another kind."""
        x_MF, fitted = self.matrix(names, others.evidence), min(fitted, len(self.tasks) - 1)
        known_M = np.isfinite(x_MF).all(1)
        parts = []
        for chosen in combinations(self.tasks, fitted):
            of_M = known_M & ~np.isin(others.task_M, chosen)
            parts.append((np.flatnonzero(of_M), self.fit(names, chosen).probability(x_MF[of_M])))
        return Judged(np.concatenate([m for m, _ in parts]), np.concatenate([p for _, p in parts]), others.caused_M)


@dataclass(frozen=True, eq=False)
class Judged:
    """Probabilities of records by fits that had not seen their tasks; a record stands here once for each such fit."""

    record_J: np.ndarray
    probability_J: np.ndarray
    caused_M: np.ndarray

    @property
    def caused_J(self) -> np.ndarray:
        return self.caused_M[self.record_J]

    @property
    def auroc(self) -> float:
        return auroc(self.probability_J, self.caused_J)

    @property
    def expected_calibration_error(self) -> float:
        """`sum_bins n_bin / n |mean probability - share caused|`, ten bins of equal width (Naeini et al. 2015)."""
        return float(sum(one["n"] * abs(one["mean"] - one["observed"]) for one in self.bins()) / max(len(self.record_J), 1))

    def bins(self) -> list[dict[str, float]]:
        where_J = np.minimum((self.probability_J * BINS).astype(int), BINS - 1)
        return [
            {
                "low": b / BINS,
                "high": (b + 1) / BINS,
                "mean": float(self.probability_J[where_J == b].mean()),
                "observed": float(self.caused_J[where_J == b].mean()),
                "n": int((where_J == b).sum()),
            }
            for b in range(BINS)
            if (where_J == b).any()
        ]


def fit_logistic(x_MF: np.ndarray, caused_M: np.ndarray, names: tuple[str, ...]) -> Fit:
    """Ridge-penalised maximum likelihood; the intercept is not penalised. Cost: milliseconds for hundreds of records."""
    mean_F, spread_F = x_MF.mean(0), np.maximum(x_MF.std(0), 1e-9)
    z_MF, sign_M = (x_MF - mean_F) / spread_F, np.where(caused_M, 1.0, -1.0)

    def objective(b: np.ndarray) -> tuple[float, np.ndarray]:
        margin_M = sign_M * (z_MF @ b[1:] + b[0])
        slope_M = -sign_M / (1 + np.exp(np.clip(margin_M, -500, 500)))
        value = float(np.logaddexp(0, -margin_M).sum() + RIDGE / 2 * (b[1:] ** 2).sum())
        return value, np.concatenate([[slope_M.sum()], z_MF.T @ slope_M + RIDGE * b[1:]])

    found = minimize(objective, np.zeros(1 + x_MF.shape[1]), jac=True, method="L-BFGS-B")
    return Fit(names, mean_F, spread_F, x_MF.min(0), x_MF.max(0), found.x[1:], float(found.x[0]))


def auroc(values: np.ndarray, positive: np.ndarray) -> float:
    """The share of (positive, negative) pairs in the right order, ties half. NaN where there is only one kind."""
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return float("nan")
    ranks = rankdata(values)
    return float((ranks[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


@lru_cache(maxsize=1)
def shipped() -> Calibration:
    """The records that the package carries."""
    text = resources.files("headwater.audit").joinpath("calibration.json").read_text(encoding="utf-8")
    value = json.loads(text)
    return Calibration.of(value["records"], value["method"], value["k"] / value["rows"])
