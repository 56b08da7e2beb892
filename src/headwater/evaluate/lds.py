"""Scores against a bank of retrainings: the linear datamodeling score, leave-one-out and group removal, and what noise lets anyone reach.

D designs (sets of kept rows) · S seeds · Q queries · N training rows

The predicted outcome of a design is the sum of the scores of its kept rows, `f_dq = sum_n kept_dn s_qn` (Park et al. 2023, eq. 5): a
proponent has a positive score, so keeping it raises the query's measure. A query's agreement is the correlation of f with the retrained
outcome over designs, which no constant of the query's changes. So leaving one row out, or a group, is the same arithmetic on other
designs: the predicted change is minus the sum over the rows that went.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from headwater.evaluate.agreement import FEWEST, Kind, Table, agreement
from headwater.evaluate.figure import Figure
from headwater.evaluate.two_way import two_way_figure
from headwater.types import DataError, Scores, Truth

FEWER = 0.9  # a family of designs that keep less than this share of the rows is one of subsets, else of removals
CHOSEN_BY_SCORE = ("most", "least", "zero", "top", "bottom", "random", "none")  # names of designs that `removal.py` reads
SPLITS = 64  # halves of the seeds that are looked at, of all there are


@dataclass(frozen=True)
class Agreement:
    """How well scores predict the outcomes of one family of designs.

    `ceiling` (of Spearman's) is what the expected outcome itself would reach against these noisy ones, None with a single seed.
    `kept_share` is the mean share of the rows that a design keeps.
    """

    family: str
    spearman: Figure
    pearson: Figure
    slope: Figure
    ceiling: Figure | None
    pearson_ceiling: Figure | None
    kept_share: float
    n_designs: int
    n_seeds: int

    def figures(self) -> dict[str, Figure]:
        names = {
            "spearman": self.spearman,
            "ceiling": self.ceiling,
            "pearson": self.pearson,
            "pearson_ceiling": self.pearson_ceiling,
            "slope": self.slope,
        }
        lds = self.family.startswith("lds")  # by its usual name, which is Spearman's
        return {
            self.family if lds and name == "spearman" else f"{self.family}_{name}": figure
            for name, figure in names.items()
            if figure is not None
        }


# -------------------------------------------------------------------------------------------------------- matching


def matched(scores: Scores, truth: Truth) -> tuple[Scores, Truth]:
    """Both on the same rows, in the bank's order, and on the queries that both have.

    By id; where neither side's ids say anything to the other and one only counts its rows, by order. DataError where the rows are not the
    same: a bank of another corpus, or rows that only one side has.
    """
    rows_N = _places(scores.train_ids, truth.train_ids, "training rows")
    if len(rows_N) < len(truth.train_ids) or len(scores.train_ids) > len(truth.train_ids):
        raise DataError(
            f"the scores are of {len(scores.train_ids)} training rows and the bank of {len(truth.train_ids)}, with {len(rows_N)} in "
            "common; expected the same rows. Likely the bank is of another corpus, or rows were added or removed since"
        )
    ours_Q = _places(scores.query_ids, truth.query_ids, "queries")
    theirs_Q = np.array(sorted(ours_Q), dtype=int)
    values_QN = scores.values_QN[np.ix_([ours_Q[q] for q in theirs_Q], [rows_N[n] for n in range(len(truth.train_ids))])]
    query_ids = tuple(truth.query_ids[q] for q in theirs_Q)
    return (
        replace(scores, values_QN=values_QN, query_ids=query_ids, train_ids=truth.train_ids, standard_errors_QN=None),
        replace(truth, outcomes_DSQ=truth.outcomes_DSQ[:, :, theirs_Q], query_ids=query_ids),
    )


def _places(ours: Sequence[str], theirs: Sequence[str], what: str) -> dict[int, int]:
    """Position in the bank -> position in the scores, for what both have."""
    place = {one: i for i, one in enumerate(ours)}
    found = {i: place[one] for i, one in enumerate(theirs) if one in place}
    if found:
        return found
    counted = any(tuple(ids) == tuple(map(str, range(len(ids)))) for ids in (ours, theirs))
    if counted and len(ours) == len(theirs):
        return {i: i for i in range(len(ours))}
    raise DataError(
        f"the scores are of {len(ours)} {what} (the first is {ours[0]}), the bank of {len(theirs)} (the first is {theirs[0]}), and they "
        "have none in common. Likely the bank is of another corpus or other queries"
    )


# ------------------------------------------------------------------------------------------------------- two tables


def predicted_outcomes(scores: Scores, truth: Truth) -> np.ndarray:
    """[D, Q] sums of scores over the kept rows. Rows without a score (NaN) add nothing; a query without any is NaN. Cost: D N Q."""
    known_QN = np.isfinite(scores.values_QN)
    sums_DQ = truth.kept_DN.astype(np.float64) @ np.where(known_QN, scores.values_QN, 0.0).T
    return np.where(known_QN.any(axis=1), sums_DQ, np.nan)


def mean_outcomes(truth: Truth) -> np.ndarray:
    """[D, Q] means over the seeds that were measured; NaN where none was."""
    return _mean_over_seeds(truth.outcomes_DSQ)


def _mean_over_seeds(outcomes_DSQ: np.ndarray) -> np.ndarray:
    known_DSQ = np.isfinite(outcomes_DSQ)
    n_DQ = known_DSQ.sum(1)
    return np.where(n_DQ > 0, np.where(known_DSQ, outcomes_DSQ, 0.0).sum(1) / np.maximum(n_DQ, 1), np.nan)


def families(truth: Truth) -> dict[str, np.ndarray]:
    """Designs that are drawn alike, at least 4 of them, by the name their figures get: positions of each.

    `lds`: subsets (they keep less than 0.9 of the rows), the largest such family by the part of the name before "/"; further ones are
    `lds_NAME`. `leave_one_out`: one row is gone. `group_removal`, or `group_removal_NAME`: a few are. Designs that drop nothing, and
    those chosen by a score ("most/...", "random/..."), belong to none.
    """
    found: dict[str, list[int]] = {}
    for d, gone in enumerate((~truth.kept_DN).sum(1).tolist()):
        name = truth.designs[d].split("/")[0] if truth.designs else ""
        if gone and name not in CHOSEN_BY_SCORE:
            found.setdefault("leave_one_out" if gone == 1 else name, []).append(d)
    large = sorted((name for name in found if len(found[name]) >= FEWEST), key=lambda name: -len(found[name]))
    named: dict[str, np.ndarray] = {}
    for name in large:
        subsets = float(truth.kept_DN[found[name]].mean()) < FEWER
        kind = name if name == "leave_one_out" else "lds" if subsets else "group_removal"
        named[kind if kind not in named else f"{kind}_{name}"] = np.array(found[name])
    return named


# ---------------------------------------------------------------------------------------------------------- figures


def agreements(scores: Scores, truth: Truth, *, seed: int = 0) -> dict[str, Agreement]:
    """Every family of the bank against the scores, which `matched` has put in one order; empty where the bank has none."""
    return {name: _agreement(name, tables(scores, truth, places_D), truth, places_D, seed) for name, places_D in families(truth).items()}


def tables(scores: Scores, truth: Truth, places_D: np.ndarray) -> dict[Kind, Table]:
    """Spearman, Pearson and slope of a family, with the pseudo-values for intervals and paired differences."""
    predicted_DQ, outcome_DQ = predicted_outcomes(scores, truth)[places_D], mean_outcomes(truth)[places_D]
    kinds: tuple[Kind, ...] = ("spearman", "pearson", "slope")
    return {kind: agreement(predicted_DQ, outcome_DQ, kind=kind) for kind in kinds}


def _agreement(family: str, found: Mapping[Kind, Table], truth: Truth, places_D: np.ndarray, seed: int) -> Agreement:
    return Agreement(
        family=family,
        spearman=two_way_figure(found["spearman"], seed=seed, correlation=True),
        pearson=two_way_figure(found["pearson"], seed=seed, correlation=True),
        slope=two_way_figure(found["slope"], seed=seed),
        ceiling=noise_ceiling(truth.outcomes_DSQ[places_D], seed=seed),
        pearson_ceiling=noise_ceiling(truth.outcomes_DSQ[places_D], seed=seed, kind="pearson"),
        kept_share=float(truth.kept_DN[places_D].mean()),
        n_designs=len(places_D),
        n_seeds=len(truth.seeds),
    )


def paired_difference(one: Table, other: Table, *, seed: int = 0) -> Figure:
    """The first less the second, on the same resampled designs and queries: far narrower than two intervals side by side suggest."""
    return two_way_figure(one.minus(other), seed=seed)


def noise_ceiling(outcomes_DSQ: np.ndarray, *, seed: int = 0, kind: Kind = "spearman") -> Figure | None:
    """The correlation that the expected outcome would have with the mean over these seeds; None with one seed.

    `r` is the split-half correlation: over designs, between the mean outcomes of two disjoint halves of the seeds, mean over splits and
    queries. Stepped up from h to S seeds by Spearman-Brown, `R = k r / (1 + (k - 1) r)` with `k = S / h`, it is the reliability of the
    mean, and the ceiling is `sqrt(R)`: 0 where halves do not agree at all. Noise does not shrink what subsets share by their seed alone.
    """
    n_seeds = outcomes_DSQ.shape[1]
    if n_seeds < 2:
        return None
    half = n_seeds // 2
    halves = [agreement(*(_mean_over_seeds(outcomes_DSQ[:, side]) for side in split), kind=kind) for split in _splits(n_seeds)]
    table = Table(_nanmean([one.value_Q for one in halves]), _nanmean([one.pseudo_DQ for one in halves]))
    found = two_way_figure(table, seed=seed, correlation=True)

    def ceiling(r: float) -> float:
        r = max(r, 0.0) if not math.isnan(r) else r
        return math.sqrt(n_seeds / half * r / (1 + (n_seeds / half - 1) * r))

    interval = found.interval and (ceiling(found.interval[0]), ceiling(found.interval[1]))
    return replace(found, value=ceiling(found.value), interval=interval)


def _splits(n_seeds: int) -> list[tuple[list[int], list[int]]]:
    """Pairs of disjoint halves; with an odd number of seeds one is left out in turn. The first 64, evenly spaced over all."""
    half = n_seeds // 2
    pairs = [
        (list(one), list(other))
        for one in itertools.combinations(range(n_seeds), half)
        for other in itertools.combinations([s for s in range(n_seeds) if s not in one], half)
        if one < other
    ]
    return pairs[:: max(1, len(pairs) // SPLITS)]


def _nanmean(arrays: Sequence[np.ndarray]) -> np.ndarray:
    stacked = np.stack(arrays)
    known = np.isfinite(stacked)
    return np.where(known.any(0), np.where(known, stacked, 0.0).sum(0) / np.maximum(known.sum(0), 1), np.nan)
