"""TRAK: the model as a logistic regression on its own sketched gradients, and that regression's influence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headwater.curvature.damping import RULE, Damping
from headwater.curvature.fisher import Fisher
from headwater.curvature.operators import finite_blocks
from headwater.methods.shared import check, check_rows, divide, make_scores, pairs_if_any, part_of, prefixed, rows_key, whole
from headwater.types import Index, Scores, State, UsageError

LOG_PROBABILITIES = ("response_log_probability", "token_span_log_probability")


@dataclass(frozen=True)
class Trak:
    """`score(q, n) = mean_m [phi_q' (Phi' Phi + lambda)^-1 phi_n] * mean_m [1 - p_n]` over members m (Park et al. 2023).

    `phi = grad f` with `f = log(p / (1 - p))`, p the probability of the row's response: `phi_n = -g_n / (1 - p_n)`, `p_n = exp(-loss_n)`,
    from what is stored. Members are the index itself and those of role "seed" where there are any. `damping` is lambda, or a rule relative
    to the mean eigenvalue of Phi' Phi; 0 is taken where there are more rows than numbers in them. A query whose measure is no
    log-probability (a margin is f already) is taken as it is. No unit: it ranks. Cost: of each member two scans and a Cholesky of min(N, D)
    to fit, four scans to score. A zero gradient scores 0, a bad row NaN. Raises UsageError for a damping of 0 with too few rows.
    """

    damping: float | str = RULE

    name = "trak"
    unit = None
    requires = frozenset({"gradient"})
    may_use = frozenset({"members:seed"})
    columns = frozenset({"loss"})
    summary = "influence in a logistic regression on the sketched gradients, averaged over sketches and models"
    reference = "Park et al. 2023, arXiv 2303.14186"
    cost = "two scans and an N x N (or D x D) Cholesky to fit, four scans; the same again for each member"

    def __post_init__(self) -> None:
        if self.damping != 0:
            Damping.parse(self.damping)

    def fit(self, index: Index) -> State:
        indexes = {"": index, **{member.name: member.index for member in index.members("seed")}}
        parts = [prefixed(f"trak:{name}", self._fit_one(LogOddsRows(one))) for name, one in indexes.items()]
        return {name: tensor for part in parts for name, tensor in part.items()} | {"rows": rows_key(index)}

    def score(self, state: State, index: Index, queries: Index) -> Scores:
        check(self, index, queries)
        check_rows(state, index)
        seeds = [(member.name, member.index, asked) for member, asked in pairs_if_any(index, queries, "seed")]
        sides = [(part_of(state, f"trak:{name}"), LogOddsRows(one), asked) for name, one, asked in [("", index, queries), *seeds]]
        linear_QN = torch.stack([_linear_influence(fitted, rows, asked) for fitted, rows, asked in sides]).mean(0)
        doubt_N = torch.stack([rows.doubt_N for _, rows, _ in sides]).mean(0)
        lambdas = [float(fitted["damping"][0] * fitted["n"]) for fitted, _, _ in sides]
        return make_scores(self, linear_QN * doubt_N.float(), index, queries, seeds=[name for name, _, _ in seeds], lambdas=lambdas)

    def _fit_one(self, rows: LogOddsRows) -> State:
        n, width = sum(map(len, finite_blocks(rows))), rows.layout.size
        if self.damping != 0:
            rule = Damping.parse(self.damping)
            state = Fisher(self.damping if rule.relative else rule.factor / max(n, 1), joint=True).fit(rows)
        elif n > width:
            state = _undamped(rows)
        else:
            raise UsageError(
                f"trak: damping is 0 with {n} usable rows of {width} numbers: Phi' Phi has no inverse, a solver's answer would be noise. "
                "Give a damping (a number, or a rule such as '0.1 * mean_eigenvalue'), more rows, or a smaller sketch."
            )
        return {**state, "n": torch.tensor(n)}


class LogOddsRows:
    """The gradients of each row's log-odds, as a source of curvature: the stored rows, each times `-1 / (1 - p_n)`."""

    def __init__(self, index: Index) -> None:
        self.index, self.layout = index, index.layout
        loss_N = torch.from_numpy(np.asarray(index.column("loss"), dtype=np.float64))
        self.doubt_N = -torch.expm1(-loss_N)  # 1 - p: exact where the loss is next to nothing
        self.scale_N = -divide(torch.ones_like(self.doubt_N), self.doubt_N)

    def blocks(self, feature: str) -> Iterator[tuple[int, Tensor]]:
        for start, rows_ND in self.index.blocks(feature):
            yield start, rows_ND * self.scale_N[start : start + len(rows_ND), None].float()

    def __len__(self) -> int:
        return len(self.index)


def log_odds_of(queries: Index) -> Tensor:
    """[Q, D] the gradient of each query's log-odds: `h_q / (1 - p_q)` where its measure is log p, else its measure's own."""
    named_Q = np.isin(queries.column("measure_name").astype(str), LOG_PROBABILITIES)
    value_Q = torch.from_numpy(np.where(named_Q, queries.column("measure").astype(np.float64), -np.inf))
    doubt_Q1 = -torch.expm1(value_Q)[:, None].float()
    return divide(whole(queries, "gradient"), doubt_Q1)


def _linear_influence(state: State, rows: LogOddsRows, queries: Index) -> Tensor:
    """[Q, N] `phi_q' (Phi' Phi + lambda)^-1 phi_n`; a query that is zero or not finite stays so."""
    phi_QD = log_odds_of(queries)
    usable_Q = torch.isfinite(phi_QD).all(1)
    solved = Fisher(joint=True).solve(state, rows, phi_QD[usable_Q]).value / int(state["n"])
    phi_QD[usable_Q] = solved.to(phi_QD.dtype)
    return rows.index.products("gradient", phi_QD, scale_N=rows.scale_N.float())


def _undamped(rows: LogOddsRows) -> State:
    """The state of `Fisher` without a damping: the matrix itself, of full rank."""
    total_DD = torch.zeros(rows.layout.size, rows.layout.size, dtype=torch.float64)
    n = 0
    for rows_ND in finite_blocks(rows):
        total_DD += rows_ND.double().T @ rows_ND.double()
        n += len(rows_ND)
    return {"cholesky/0": torch.linalg.cholesky(total_DD / n), "damping": torch.zeros(len(rows.layout.blocks), dtype=torch.float64)}
