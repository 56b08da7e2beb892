"""Standard errors of scores that were computed from sketched gradients.

Q queries · K rows · D stored numbers of a gradient row · A, B the two sides of a stored block

A sketched block keeps `L G R'`, the rows of L and of R drawn independently. With `q_ab`, `n_ab` the stored numbers of query and
row, the block's part of the product is the mean over (a, b) of

    x_ab = k_O k_I q_ab n_ab = k_O k_I (l_a' G_q r_b) (l_a' G_n r_b),

a function of the a-th row of L and the b-th row of R alone. Such a two-way array has the variance components of the random
two-way layout without replication, and the variance of its mean is estimated without bias by

    S_row / k_O + S_col / k_I - S_int / (k_O k_I)

where S_row and S_col are the variances of the row and the column means and S_int the mean square of what rows and columns do not
explain (Searle, Casella and McCulloch 1992, ch. 4). A side that is kept whole is a sum, not a sample: it is summed first, and the other
side alone varies. Blocks have independent maps, so their variances add; a block kept whole is exact and adds nothing.

The estimate can come out negative where the sketch is small. S_row / k_O and S_col / k_I cannot, and each is too small on average: the
smaller of the two is the least that is reported. (The larger was tried: 14 % too wide for sketches of 8 x 6.)

The error is the sketch's alone: it says nothing of the rounding of stored numbers, of the model's seed or of the method.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from headwater.types import Block, Layout


def dot_errors(layout: Layout, queries_QD: Tensor, rows_QKD: Tensor, *, n_rows: int) -> Tensor:
    """[Q, K] standard errors of `-(1/N) q . n`, N = `n_rows`. `rows_QKD[q]` are the rows listed for query q.

    Cost Q K D multiplications, Q K D numbers of memory for the largest block. 0 where nothing is sketched.
    """
    variances_3QK = torch.zeros(3, *rows_QKD.shape[:2], dtype=torch.float64)
    for block, q_Q1AB, n_QKAB in _sketched(layout, queries_QD, rows_QKD):
        variances_3QK += variances_of_mean(block.size * q_Q1AB * n_QKAB, block)
    return _root(variances_3QK) / n_rows


def cosine_errors(layout: Layout, queries_QD: Tensor, rows_QKD: Tensor) -> Tensor:
    """[Q, K] standard errors of the cosine c, to first order: numerator and both norms vary with the same draw, so the variance is that of

        z_ab = k_O k_I ( q_ab n_ab / (|q| |n|) - (c / 2) (q_ab^2 / |q|^2 + n_ab^2 / |n|^2) ).

    For a row that is the query z is 0 and so is the error. A zero gradient has cosine 0 by definition and error 0.
    """
    queries_QD, rows_QKD = queries_QD.double(), rows_QKD.double()
    units_QD, unit_rows_QKD = _unit_length(queries_QD), _unit_length(rows_QKD)
    cosines_QK11 = torch.einsum("qd,qkd->qk", units_QD, unit_rows_QKD)[..., None, None]
    variances_3QK = torch.zeros(3, *rows_QKD.shape[:2], dtype=torch.float64)
    for block, q_Q1AB, n_QKAB in _sketched(layout, units_QD, unit_rows_QKD):
        z_QKAB = q_Q1AB * n_QKAB - 0.5 * cosines_QK11 * (q_Q1AB.square() + n_QKAB.square())
        variances_3QK += variances_of_mean(block.size * z_QKAB, block)
    return _root(variances_3QK)


def variances_of_mean(x_QKAB: Tensor, block: Block) -> Tensor:
    """[3, Q, K] for the variance of the mean over (a, b), over draws of the sides that are sketched: an unbiased estimate, which can come
    out negative, and two that are too small on average, one for each side. The same three times where a single side is drawn.

    NaN where a sketched side has a single number: one draw has no spread.
    """
    k_A, k_B = x_QKAB.shape[-2:]
    rows_QKA, columns_QKB = x_QKAB.mean(-1), x_QKAB.mean(-2)
    by_rows_QK, by_columns_QK = _mean_square(rows_QKA) / k_A, _mean_square(columns_QKB) / k_B
    drawn_A, drawn_B = (stored != whole for stored, whole in zip(_matrix(block.stored), _matrix(block.shape), strict=True))
    if not (drawn_A and drawn_B):
        return (by_rows_QK if drawn_A else by_columns_QK).expand(3, -1, -1)
    unexplained_QKAB = x_QKAB - rows_QKA[..., None] - columns_QKB[..., None, :]
    interaction_QK = _mean_square(unexplained_QKAB.flatten(-2), freedom=(k_A - 1) * (k_B - 1)) / (k_A * k_B)
    return torch.stack([by_rows_QK + by_columns_QK - interaction_QK, by_rows_QK, by_columns_QK])


def _mean_square(x: Tensor, *, freedom: int | None = None) -> Tensor:
    """Squared deviations from the mean over the last dimension, per degree of freedom; NaN where there is none."""
    freedom = x.shape[-1] - 1 if freedom is None else freedom
    squares = (x - x.mean(-1, keepdim=True)).square().sum(-1)
    return squares / freedom if freedom else torch.full_like(squares, torch.nan)


def _sketched(layout: Layout, queries_QD: Tensor, rows_QKD: Tensor) -> Iterator[tuple[Block, Tensor, Tensor]]:
    """(block, [Q, 1, A, B], [Q, K, A, B]) in float64 for each block that is not kept whole."""
    queries, rows = layout.split(queries_QD.unsqueeze(1)), layout.split(rows_QKD)
    for block in layout.blocks:
        if block.sketched:
            yield block, _as_matrix(queries[block.name], block), _as_matrix(rows[block.name], block)


def _as_matrix(part: Tensor, block: Block) -> Tensor:
    return part.double().reshape(*part.shape[:2], *_matrix(block.stored))


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """A vector as a matrix of one column, which is never drawn."""
    return (shape[0], 1) if len(shape) == 1 else (shape[0], shape[1])


def _unit_length(rows: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return torch.where(norms == 0, torch.zeros_like(rows), rows / norms)


def _root(variances_3QK: Tensor) -> Tensor:
    """[Q, K] float32. An error of 0 would claim an exact score, so the unbiased estimate gives way to a positive one where it is less."""
    unbiased_QK, by_rows_QK, by_columns_QK = variances_3QK
    return torch.maximum(unbiased_QK, torch.minimum(by_rows_QK, by_columns_QK)).sqrt().float()
