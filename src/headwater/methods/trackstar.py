"""TrackStar: gradients made comparable in every direction, first by the optimizer, then by the corpus, then to unit length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from headwater.curvature.floored import fit_floored, solve_floored
from headwater.curvature.operators import finite_blocks
from headwater.methods.shared import check, check_rows, divide, make_scores, members_of, pairs, part_of, prefixed, rows_key, whole
from headwater.types import Index, Layout, Scores, State, UsageError


@dataclass(frozen=True)
class TrackStar:
    """`score(q, n) = -u_q . u_n`, `u = R^-1/2 g / |R^-1/2 g|` (Chang et al. 2024).

    g is a row of a "second_moment" member: divided by the root of the optimizer's second moment before the sketch. R is the rows' second
    moment `(1/N) sum g g'` of each block, mixed with the queries' own by `task_share`, with its eigenvalues at least `floor` times their
    mean. R^-1/2 comes before the length is taken away: the other order gives back what it was meant to mend. The mean over members where
    there are several. The product is that of the rows with `R^-1 h_q`, so that one path serves every search.

    With a `task_share` R depends on the queries: `for_task` settles it once for a set of them, and a query's scores depend on its company.
    No unit: it ranks. Cost: an eigendecomposition of min(N, d) a block and up to four scans to fit, with a task share for each set of
    queries; one scan to score. A zero gradient scores 0, a bad row NaN.
    """

    task_share: float = 0.0
    floor: float = 1e-3

    name = "trackstar"
    unit = None
    requires = frozenset({"members:second_moment"})
    summary = "cosine after the optimizer's second moment and the corpus's own are divided out"
    reference = "Chang et al. 2024, arXiv 2410.17413"
    cost = "eigendecompositions of the blocks and up to four scans to fit, one scan to score"

    def __post_init__(self) -> None:
        if not 0 <= self.task_share < 1 or not self.floor > 0:
            raise UsageError(
                f"trackstar: task_share is {self.task_share} and floor {self.floor}; expected a share from 0 to below 1, a floor above 0"
            )

    def fit(self, index: Index) -> State:
        members = members_of(index, "second_moment")
        if self.task_share:
            return {"rows": rows_key(index)}
        return self._fitted([(member.name, member.index, None) for member in members]) | {"rows": rows_key(index)}

    def for_task(self, state: State, index: Index, queries: Index) -> State:
        """The state with R settled for these queries; the same state where R does not depend on them, or is settled."""
        if not self.task_share or len(state) > 1:
            return state
        return {**state, **self._fitted([(member.name, member.index, asked) for member, asked in pairs(index, queries, "second_moment")])}

    def score(self, state: State, index: Index, queries: Index) -> Scores:
        check(self, index, queries)
        check_rows(state, index)
        state = self.for_task(state, index, queries)
        values = [_cosines(part_of(state, m.name), m.index, asked) for m, asked in pairs(index, queries, "second_moment")]
        return make_scores(self, -torch.stack(values).mean(0), index, queries)

    def _fitted(self, sides: list[tuple[str, Index, Index | None]]) -> dict[str, Tensor]:
        parts = {name: fit_floored(Mixed(index, asked, self.task_share), self.floor) for name, index, asked in sides}
        lengths = {name: {"length": _lengths(parts[name], index)} for name, index, _ in sides}
        return {key: tensor for name in parts for key, tensor in prefixed(name, {**parts[name], **lengths[name]}).items()}


class Mixed:
    """Rows weighted so that their `sum g g'` is `(1 - share)` times the rows' second moment and `share` times the queries'."""

    def __init__(self, index: Index, queries: Index | None, share: float) -> None:
        self.layout: Layout = index.layout
        self.sides = [(index, 1 - share), *([(queries, share)] if queries is not None else [])]

    def blocks(self, feature: str) -> Iterator[tuple[int, Tensor]]:
        start = 0
        for side, share in self.sides:
            n = sum(map(len, finite_blocks(side, feature)))
            for rows_ND in finite_blocks(side, feature):
                yield start, rows_ND * (share / n) ** 0.5
                start += len(rows_ND)

    def __len__(self) -> int:
        return sum(len(side) for side, _ in self.sides)


def _cosines(state: State, index: Index, queries: Index) -> Tensor:
    """[Q, N] `h' R^-1 g / sqrt(h' R^-1 h  g' R^-1 g)`: R^-1/2 on both sides, then unit length."""
    query_QD = whole(queries, "gradient")
    solved_QD = solve_floored(state, index.layout, query_QD)
    unit_QD = divide(solved_QD, _length(query_QD, solved_QD)[:, None])
    return index.products("gradient", unit_QD.float(), scale_N=divide(torch.ones_like(state["length"]), state["length"]).float())


def _lengths(state: State, index: Index) -> Tensor:
    """[N] `sqrt(g' R^-1 g)` of every row; NaN for a bad one."""
    return torch.cat([_length(rows_ND, solve_floored(state, index.layout, rows_ND)) for _, rows_ND in index.blocks("gradient")])


def _length(x_KD: Tensor, solved_KD: Tensor) -> Tensor:
    return (x_KD * solved_KD).sum(1).clamp(min=0).sqrt()
