"""Five gaps between what an influence estimate says and what training again says: which of them is the estimator's fault.

Letters: D designs (removals) · Q queries
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from headwater.types import Finding, UsageError

STATIONS = ("cold", "warm", "proximal", "pbrf", "exact", "solver")
"""From the question that one would like answered to the number that one has; each gap lies between neighbours."""

TERMS = ("warm_start", "proximity", "non_convergence", "linearisation", "solver_error")
QUESTION, ESTIMATOR = TERMS[:3], TERMS[3:]

CLOSE = 0.25  # of the mean size of the cold change: all five gaps together below it, and the estimate answers the question asked
LARGE = 0.5  # of the effect that a side's gaps are about: above it the side is at fault, however much larger the other side is
DRAWS = 1000


@dataclass(frozen=True, eq=False)
class Gaps:
    """`terms_DQ[name] = station - next station`, NaN in every term where one station is: they add up to `cold - solver`."""

    changes_DQ: Mapping[str, np.ndarray]
    unit: str | None = "nats"

    @cached_property
    def terms_DQ(self) -> dict[str, np.ndarray]:
        tables = [np.where(self.known_DQ, self.changes_DQ[name], np.nan) for name in STATIONS]
        return {term: before - after for term, (before, after) in zip(TERMS, pairwise(tables), strict=True)}

    @cached_property
    def known_DQ(self) -> np.ndarray:
        return np.logical_and.reduce([np.isfinite(self.changes_DQ[name]) for name in STATIONS])

    @cached_property
    def sizes(self) -> dict[str, float]:
        """Mean over designs and queries of each term's absolute value, in `unit`; NaN where nothing is known."""
        return {name: _mean_size(term_DQ) for name, term_DQ in self.terms_DQ.items()}

    @property
    def effect(self) -> float:
        """Mean absolute change after cold training: what the gaps are to be measured by."""
        return _mean_size(np.where(self.known_DQ, self.changes_DQ["cold"], np.nan))

    @property
    def telescoping_error(self) -> float:
        """`max |sum of the five terms - (cold - solver)|`: rounding, or the tables were not what they were called."""
        if not self.known_DQ.any():
            return float("nan")
        whole_DQ = self.changes_DQ["cold"] - self.changes_DQ["solver"]
        return float(np.nanmax(np.abs(sum(self.terms_DQ.values()) - whole_DQ)))

    @property
    def ratio(self) -> float:
        """(linearisation + solver) / (warm start + proximity + non-convergence), of the sizes."""
        return _ratio(self.sizes)

    @property
    def question_share(self) -> float:
        """(warm start + proximity + non-convergence) over the mean absolute change after cold training: how far off the question is."""
        return _share(sum(self.sizes[name] for name in QUESTION), self.effect)

    @property
    def estimator_share(self) -> float:
        """(linearisation + solver) over the mean absolute PBRF, which the estimate is of: how far off the answer is."""
        answer = _mean_size(np.where(self.known_DQ, self.changes_DQ["pbrf"], np.nan))
        return _share(sum(self.sizes[name] for name in ESTIMATOR), answer)

    def ratio_interval(self, *, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
        """95 % of the ratios over designs and queries drawn again, both at once: queries share the trained models."""
        rng, (n_designs, n_queries) = np.random.default_rng(seed), self.known_DQ.shape
        ratios = []
        for _ in range(draws):
            chosen = np.ix_(rng.integers(n_designs, size=n_designs), rng.integers(n_queries, size=n_queries))
            ratios.append(_ratio({name: _mean_size(term_DQ[chosen]) for name, term_DQ in self.terms_DQ.items()}))
        low, high = np.nanquantile(ratios, (0.025, 0.975)) if np.isfinite(ratios).any() else (np.nan, np.nan)
        return float(low), float(high)

    def reading(self) -> Finding:
        """The table in plain words: whose fault the difference between the estimate and cold training is.

        A side is at fault where its gaps are the larger ones, the whole interval of the ratio says so, or where they exceed half of the
        effect that they are about. Both may be.
        """
        n = int(self.known_DQ.sum())
        if n == 0:
            return Finding("gaps", "unknown", _NOTHING, n=0)
        interval = self.ratio_interval()
        facts: dict[str, Any] = {"value": self.ratio, "interval": interval, "n": n, "unit": None}
        if sum(self.sizes.values()) <= CLOSE * self.effect:
            return Finding("gaps", "ok", f"the estimate says what training again says: {self._in_words()}", **facts)
        asked, wrong = interval[1] < 1 or self.question_share > LARGE, interval[0] > 1 or self.estimator_share > LARGE
        because = f"{_FAULT[asked, wrong]}: {self._in_words()}"
        if not (asked or wrong):
            return Finding("gaps", "unknown", because, next_step="measure more removals", **facts)
        mend = [
            _MEND[max(side, key=lambda name: self.sizes[name])] for side, at_fault in ((ESTIMATOR, wrong), (QUESTION, asked)) if at_fault
        ]
        return Finding("gaps", "fail" if wrong else "warn", because, next_step="; and ".join(mend), **facts)

    def _in_words(self) -> str:
        largest = max(self.sizes, key=lambda name: self.sizes[name])
        return (
            f"linearisation and solver make {self.ratio:.2g} of the other three gaps and {self.estimator_share:.2g} of the PBRF effect; "
            f"the three make {self.question_share:.2g} of the effect of cold training; the largest gap is {largest.replace('_', ' ')}, "
            f"{self.sizes[largest]:.3g} of an effect of {self.effect:.3g}"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "sizes": dict(self.sizes),
            "effect": self.effect,
            "ratio": self.ratio,
            "question_share": self.question_share,
            "estimator_share": self.estimator_share,
            "telescoping_error": self.telescoping_error,
            "n": int(self.known_DQ.sum()),
            "unit": self.unit,
        }


_NOTHING = "no removal has all six numbers: nothing was measured, or no minimisation reached its tolerance"
_FAULT = {
    (True, True): "you asked another question, and your estimator is wrong besides",
    (True, False): "you asked another question",
    (False, True): "your estimator is wrong",
    (False, False): "undetermined, the interval of the ratio holds 1",
}
_MEND = {
    "warm_start": "compare with warm training or PBRF: another initialisation or order of rows alone moves the measure this much",
    "proximity": "compare with the proximal response or PBRF, or lower the damping: without the pull training goes further away",
    "non_convergence": "train to convergence, or compare with PBRF: the change comes from training that goes on, whatever is removed",
    "linearisation": "raise the damping, or measure PBRF itself: a removal is too large a step for a first-order estimate",
    "solver_error": "give the solver more steps, or use an exact one, and look at its residual",
}


def gaps(
    *,
    cold_DQ: np.ndarray,
    warm_DQ: np.ndarray,
    proximal_DQ: np.ndarray,
    pbrf_DQ: np.ndarray,
    exact_DQ: np.ndarray,
    solver_DQ: np.ndarray,
    unit: str | None = "nats",
) -> Gaps:
    """The difference between a cold retraining and a solver's estimate as a sum of five.

        cold - solver = (cold - warm)          warm-start gap: another initialisation, another minimum
                      + (warm - proximal)      proximity gap: nothing holds training near the final weights
                      + (proximal - pbrf)      non-convergence gap: training was not at its end
                      + (pbrf - exact)         linearisation error of `(G + damping)^-1`
                      + (exact - solver)       solver error: LiSSA, CG, EK-FAC in place of the exact inverse

    The first three say that another question was asked, the last two that the answer is wrong. Every table holds the change of each
    query's measure when a design's rows are removed, from the measure at the final weights, in one unit; NaN where it is not known.
    Raises UsageError unless the six have one shape. Cost: arithmetic. Source: Bae et al. 2022 (arXiv 2209.05364).
    """
    tables = (cold_DQ, warm_DQ, proximal_DQ, pbrf_DQ, exact_DQ, solver_DQ)
    changes_DQ = {name: np.asarray(table, dtype=np.float64) for name, table in zip(STATIONS, tables, strict=True)}
    shapes = {name: table.shape for name, table in changes_DQ.items()}
    if len(set(shapes.values())) != 1 or changes_DQ["cold"].ndim != 2:
        raise UsageError(f"tables are {shapes}, expected six of the same [designs, queries]; measure the same removals and queries in each")
    return Gaps(changes_DQ, unit)


def _mean_size(values_DQ: np.ndarray) -> float:
    known = np.abs(values_DQ[np.isfinite(values_DQ)])
    return float(known.mean()) if known.size else float("nan")


def _share(size: float, effect: float) -> float:
    return size / effect if effect > 0 else float("inf") if size > 0 else float("nan")


def _ratio(sizes: Mapping[str, float]) -> float:
    question = sum(sizes[name] for name in QUESTION)
    return sum(sizes[name] for name in ESTIMATOR) / question if question > 0 else float("nan")
