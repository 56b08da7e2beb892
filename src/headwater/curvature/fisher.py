"""The damped empirical Fisher matrix, inverted exactly: in example space where there are fewer rows than numbers in them.

Letters: K vectors · N rows · n rows of a block · D numbers of a piece · L blocks of the layout.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from headwater.curvature.damping import RULE, Damping
from headwater.curvature.gram import smaller_products
from headwater.curvature.operators import ROWS, check_width, finite_blocks, pieces, residual_where_cheap, spread
from headwater.types import Solve, Source, State, UsageError


@dataclass(frozen=True)
class Fisher:
    """`C = (1/N) sum_n g_n g_n'`; `(C + lambda)^-1 v = (v - G' (G G' + N lambda)^-1 G v) / lambda` (Woodbury), G the N rows.

    Per block of the layout, or `joint` over the whole row. A piece with fewer numbers than there are rows is inverted as the matrix it is;
    the choice is one of cost and changes no number. Everything in float64. From the rows alone: no second pass over the corpus. A rule of
    damping is relative to trace / D of the block, of the whole row where joint. Cost, M the smaller of N and D: one scan with N M D + M^3/3
    multiplications to fit; two scans with 2 K N D to solve (none where N >= D) and one for the residual. State: M^2 numbers a piece.
    Raises UsageError where damping is too small for float64 to tell the matrix from a singular one.
    """

    damping: float | str = RULE
    joint: bool = False

    name = "fisher"
    summary = "the exact damped empirical Fisher matrix of the rows"
    reference = "Woodbury 1950; empirical Fisher: Kunstner et al. 2019, eq. 3"
    cost = "one scan and an N x N (or D x D) Cholesky a block; three scans a solve"

    def fit(self, source: Source) -> State:
        parts = pieces(source.layout, joint=self.joint)
        products, n = smaller_products(source, parts)
        means = [product.trace() / (max(n, 1) * (part.stop - part.start)) for product, part in zip(products, parts, strict=True)]
        damping_L = Damping.parse(self.damping).resolve(torch.stack(means))
        factors = [_cholesky(product / max(n, 1), float(damping)) for product, damping in zip(products, damping_L, strict=True)]
        state = {f"cholesky/{i}": factor for i, factor in enumerate(factors)}
        return {**state, "damping": damping_L.expand(len(source.layout.blocks)).clone()}

    def solve(self, state: State, source: Source, b_KD: Tensor) -> Solve:
        check_width(b_KD, source.layout)
        v_KD, parts = b_KD.double(), pieces(source.layout, joint=self.joint)
        x_KD = v_KD / spread(state["damping"], source.layout).to(v_KD.device)
        factors = [(part, state[f"cholesky/{i}"]) for i, part in enumerate(parts)]
        for part, factor in factors:
            if _is_direct(part, factor):
                x_KD[:, part] = torch.cholesky_solve(v_KD[:, part].T, factor).T
        _subtract_example_space(x_KD, source, [(part, factor) for part, factor in factors if not _is_direct(part, factor)])
        return Solve(x_KD.to(b_KD), "closed_form", **residual_where_cheap(state, source, v_KD, x_KD))

    def of_rows(self, state: State, source: Source) -> tuple[Tensor, Tensor]:
        """([n] `g' (C + lambda)^-1 g`, [n] `||(C + lambda)^-1 g||^2`) of the finite rows in their order, without a solve for each.

        In example space, M = G G' / N + lambda, they are the diagonals of `G G' M^-1` and of `M^-1 G G' M^-1`. One scan and N M D + N^3
        multiplications a piece. float64.
        """
        factors = [(part, state[f"cholesky/{i}"]) for i, part in enumerate(pieces(source.layout, joint=self.joint))]
        direct = [(part, factor) for part, factor in factors if _is_direct(part, factor)]
        by_rows = [(part, factor) for part, factor in factors if not _is_direct(part, factor)]
        value_n, square_n = _of_rows_directly(source, direct)
        products, _ = smaller_products(source, [part for part, _ in by_rows])
        for product_NN, (_, factor_NN) in zip(products, by_rows, strict=True):
            inverse_NN = torch.cholesky_inverse(factor_NN)
            solved_NN = product_NN @ inverse_NN
            value_n += solved_NN.diagonal()
            square_n += (inverse_NN * solved_NN.T).sum(1)
        return value_n, square_n


def _of_rows_directly(source: Source, factors: list[tuple[slice, Tensor]]) -> tuple[Tensor, Tensor]:
    """The same over the pieces that are inverted as they are: a solve for each row, few at a time."""
    found_2n = [torch.zeros(2, 0, dtype=torch.float64)]
    for _, rows_nD in _placed(source):
        sums_2n = torch.zeros(2, len(rows_nD), dtype=torch.float64)
        for part, factor in factors:
            g_nd = rows_nD[:, part].double()
            x_nd = torch.cholesky_solve(g_nd.T, factor).T
            sums_2n += torch.stack([(g_nd * x_nd).sum(1), x_nd.square().sum(1)])
        found_2n.append(sums_2n)
    value_n, square_n = torch.cat(found_2n, dim=1)
    return value_n, square_n


def _subtract_example_space(x_KD: Tensor, source: Source, factors: list[tuple[slice, Tensor]]) -> None:
    """`x -= G' (G G' + N lambda)^-1 G x` of each piece, x being `v / lambda`: a scan for `G x`, one for what is subtracted."""
    if not factors:
        return
    products = [x_KD.new_empty(len(x_KD), len(factor)) for _, factor in factors]
    for here, rows_nD in _placed(source):
        for (part, _), u_KN in zip(factors, products, strict=True):
            u_KN[:, here] = x_KD[:, part] @ rows_nD[:, part].to(x_KD).T
    weights = [torch.cholesky_solve(u_KN.T, factor).T / max(len(factor), 1) for u_KN, (_, factor) in zip(products, factors, strict=True)]
    for here, rows_nD in _placed(source):
        for (part, _), w_KN in zip(factors, weights, strict=True):
            x_KD[:, part].addmm_(w_KN[:, here], rows_nD[:, part].to(x_KD), alpha=-1)


def _placed(source: Source) -> Iterator[tuple[slice, Tensor]]:
    """(places among the finite rows, the rows), few at a time."""
    start = 0
    for block_ND in finite_blocks(source):
        for rows_nD in block_ND.split(ROWS):
            yield slice(start, start + len(rows_nD)), rows_nD
            start += len(rows_nD)


def _is_direct(part: slice, factor: Tensor) -> bool:
    return len(factor) == part.stop - part.start


def _cholesky(matrix_MM: Tensor, damping: float) -> Tensor:
    matrix_MM.diagonal().add_(damping)
    factor_MM, failed = torch.linalg.cholesky_ex(matrix_MM)
    if failed:
        raise UsageError(
            f"damping is {damping:.3g}, the largest diagonal entry of the matrix {float(matrix_MM.diagonal().max()):.3g}: "
            "too small beside it for float64. Give a larger damping."
        )
    return factor_MM
