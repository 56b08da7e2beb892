"""What retraining without the rows of highest, lowest and smallest score did, beside random rows and none.

D designs · S seeds · Q queries · N training rows · k rows removed

In the style of Han, Wallace and Tsvetkov 2020, section 6 (a tenth, five seeds), and of brittleness curves over k (Ilyas et al. 2022).
The change is that of the query's measure against the same seed's training on all rows, in the measure's unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.stats import t

from headwater.evaluate.figure import LEVEL, Figure
from headwater.evaluate.lds import CHOSEN_BY_SCORE, direction
from headwater.types import DataError, Finding, Scores, Truth

Pick = Literal["none", "most", "least", "zero", "random"]
"""Which rows a design leaves out: none, the k of highest score, of lowest, of the smallest absolute score, or random ones."""

FEWEST_SEEDS = 5  # with 2 the standard error itself is noise
APART = 2.0  # standard errors


@dataclass(frozen=True)
class Point:
    """The mean change over the queries, with its standard error over seeds (and over draws, for random rows)."""

    pick: Pick
    k: int
    change: Figure
    standard_error: float
    change_S: np.ndarray

    def to_json(self) -> dict[str, Any]:
        known = math.isfinite(self.standard_error)
        facts = {"pick": self.pick, "k": self.k, "standard_error": self.standard_error if known else None, "seeds": self.change.n}
        return {**facts, **self.change.to_json("change")}


def picks(scores: Scores, truth: Truth) -> dict[tuple[Pick, int], np.ndarray]:
    """[D, Q] bool for each kind of removal and k: the designs that are it, for which query.

    Recognised by what they leave out, not by name: exactly the k rows of highest (lowest, smallest absolute) score of the query, or of the
    mean over queries, of which every query is then a case; one row alone only where the name says it ("most/..."). Designs named
    "random/..." are controls; those that leave out nothing are k = 0.
    """
    gone_DN = ~truth.kept_DN
    k_D = gone_DN.sum(1)
    found: dict[tuple[Pick, int], np.ndarray] = {}

    def add(pick: Pick, d: int, queries: np.ndarray | slice) -> None:
        mask_DQ = found.setdefault((pick, int(k_D[d])), np.zeros((len(k_D), len(truth.query_ids)), dtype=bool))
        mask_DQ[d, queries] = True

    orders = _orders(scores)
    for d, k in enumerate(k_D.tolist()):
        name = truth.designs[d].split("/")[0] if truth.designs else ""
        if k == 0:
            add("none", d, slice(None))
        elif name == "random":
            add("random", d, slice(None))
        elif k > 1 or name in CHOSEN_BY_SCORE:  # every row's turn comes in leave-one-out: that one was the first says nothing
            for pick, order_RN in orders.items():
                same_R = gone_DN[d][order_RN[:, :k]].all(1)
                if same_R.any():
                    add(pick, d, slice(None) if same_R[-1] else same_R[:-1])
    return found


def _orders(scores: Scores) -> dict[Pick, np.ndarray]:
    """[Q + 1, N] rows in the order of removal, for each query and at last for the mean over queries; rows without a score come last."""
    known_QN = ~np.isnan(scores.values_QN)
    mean_N = np.where(known_QN, scores.values_QN, 0).sum(0) / np.maximum(known_QN.sum(0), 1)
    values_RN = np.vstack([scores.values_QN, np.where(known_QN.any(0), mean_N, np.nan)])
    keys: dict[Pick, np.ndarray] = {"most": -values_RN, "least": values_RN, "zero": np.abs(values_RN)}
    return {pick: np.argsort(np.where(np.isnan(key), np.inf, key), axis=1, kind="stable") for pick, key in keys.items()}


def removal_curve(scores: Scores, truth: Truth) -> list[Point]:
    """A point for each kind of removal and k that the bank has; empty where it has none but controls. DataError without a k = 0 design.

    Scores and truth as `matched` leaves them. NaN outcomes (diverged, not measured) are left out, and a seed without any is no seed.
    """
    removed = truth.kind != "tail_patch" and direction(truth) > 0  # else rows were stepped on, or counted twice
    return curve(picks(scores, truth) if removed else {}, truth)


def curve(found: Mapping[tuple[Pick, int], np.ndarray], truth: Truth) -> list[Point]:
    """`removal_curve` of designs that are known: [D, Q] bool for each kind of removal and k, as `picks` finds them."""
    if not any(pick in ("most", "least", "zero") for pick, _ in found):
        return []
    if ("none", 0) not in found:
        raise DataError("the bank has removals but no training on all rows (k = 0), against which they would be a change: add that design")
    base_SQ = _mean(truth.outcomes_DSQ, found[("none", 0)][:, None, :], axis=0)
    change_DSQ = truth.outcomes_DSQ - base_SQ[None]
    points = [_point(pick, k, change_DSQ, mask_DQ) for (pick, k), mask_DQ in found.items() if pick != "none"]
    return [_none(truth, found[("none", 0)]), *sorted(points, key=lambda point: (point.k, point.pick))]


def _point(pick: Pick, k: int, change_DSQ: np.ndarray, mask_DQ: np.ndarray) -> Point:
    per_design_DS = _mean(change_DSQ, mask_DQ[:, None, :], axis=2)[mask_DQ.any(1)]
    change_S = _mean(change_DSQ.transpose(1, 0, 2).reshape(change_DSQ.shape[1], -1), mask_DQ.reshape(1, -1), axis=1)
    draws_D = _mean(per_design_DS, np.True_, axis=1)
    draws = _square_error(draws_D) if pick == "random" and len(draws_D) > 1 else 0.0
    return _figure(pick, k, change_S, draws)


def _none(truth: Truth, mask_DQ: np.ndarray) -> Point:
    """k = 0: its change is 0 by definition, and its error is what training again with another seed does."""
    level_S = _mean(truth.outcomes_DSQ, mask_DQ[:, None, :], axis=0).mean(1)
    return _figure("none", 0, level_S - level_S[np.isfinite(level_S)].mean(), 0.0)


def _figure(pick: Pick, k: int, change_S: np.ndarray, square_error: float) -> Point:
    known_S = change_S[np.isfinite(change_S)]
    n = len(known_S)
    value = float(known_S.mean()) if n else math.nan
    error = math.sqrt(_square_error(known_S) + square_error) if n > 1 else math.nan
    half = float(t.ppf((1 + LEVEL) / 2, n - 1)) * error if n > 1 else math.nan
    return Point(pick, k, Figure(value, (value - half, value + half) if n > 1 else None, n, "seeds"), error, change_S)


def separation(points: list[Point]) -> list[Finding]:
    """For each k, whether the measure fell further without the rows of highest score than without random ones.

    `ok`: it fell further. `fail`: it fell less far. Everything else is `unknown`, in the word "undetermined".
    """
    by_pick: dict[tuple[Pick, int], Point] = {(point.pick, point.k): point for point in points}
    return [_separated(by_pick, k) for pick, k in by_pick if pick == "most"]


def _separated(by_pick: Mapping[tuple[Pick, int], Point], k: int) -> Finding:
    most, random = by_pick["most", k], by_pick.get(("random", k))
    if random is None:
        return _undetermined(
            f"the bank has no random removals of {k} rows beside the {k} of highest score", "Add 5 random draws of as many rows."
        )
    difference_S = most.change_S - random.change_S
    known_S = difference_S[np.isfinite(difference_S)]
    n = len(known_S)
    if n < FEWEST_SEEDS:
        return _undetermined(
            f"{n} seeds, and {FEWEST_SEEDS} are needed to tell {k} rows from as many random ones", "Retrain with more seeds."
        )
    draws = max(random.standard_error**2 - _square_error(random.change_S[np.isfinite(random.change_S)]), 0.0)
    value, error = float(known_S.mean()), math.sqrt(_square_error(known_S) + draws)
    status = "unknown" if abs(value) <= APART * error else "ok" if value < 0 else "fail"
    words = {"unknown": "undetermined: not 2 standard errors apart", "ok": "further down", "fail": "less far down"}[status]
    half = APART * error
    return Finding(
        name="removal",
        status=status,
        because=f"Removing the {k} rows of highest score against {k} random ones: {words} ({value:+.3g}, standard error {error:.2g}).",
        value=value,
        interval=(value - half, value + half),
        n=n,
        next_step=None if status == "ok" else "More seeds, or a larger k.",
    )


def _undetermined(why: str, step: str) -> Finding:
    return Finding("removal", "unknown", f"undetermined: {why}", next_step=step)


def _square_error(values: np.ndarray) -> float:
    return float(values.var(ddof=1)) / len(values) if len(values) > 1 else 0.0


def _mean(values: np.ndarray, mask: np.ndarray | np.bool_, *, axis: int) -> np.ndarray:
    """Over what is masked and measured; NaN where nothing is."""
    used = np.isfinite(values) & mask
    n = used.sum(axis)
    return np.where(n > 0, np.where(used, values, 0.0).sum(axis) / np.maximum(n, 1), np.nan)
