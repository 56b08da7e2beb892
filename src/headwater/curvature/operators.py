"""The matrices that solvers work on, as functions: `C v` without C. And the one shared operator that every solve is held against.

Letters: K vectors · D numbers of a gradient row · N rows · n rows of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from headwater.types import Layout, LayoutMismatch, ModelSource, Source

Operator = Callable[[Tensor], Tensor]  # [K, D] -> [K, D]


def finite_blocks(source: Source, feature: str = "gradient") -> Iterator[Tensor]:
    """[n, D] the rows of a source, block by block, without those that are not finite: they have no curvature."""
    for _, rows_ND in source.blocks(feature):
        finite_N = torch.isfinite(rows_ND).all(1)
        yield rows_ND if bool(finite_N.all()) else rows_ND[finite_N]


def fisher_operator(source: Source) -> Operator:
    """`C v = (1/N) sum_n g_n (g_n . v)`: the empirical Fisher of the source's rows. Cost 2 N D multiplications for each v, one scan."""

    def apply(v_KD: Tensor) -> Tensor:
        total_KD, n = torch.zeros_like(v_KD), 0
        for rows_ND in finite_blocks(source):
            rows_ND = rows_ND.to(v_KD.dtype)
            total_KD += (v_KD @ rows_ND.T) @ rows_ND
            n += len(rows_ND)
        return total_KD / max(n, 1)

    return apply


def reference_operator(source: Source) -> tuple[str, Operator]:
    """(name, C): the Gauss-Newton operator of a live model; of stored rows, which are all there is, their empirical Fisher."""
    if isinstance(source, ModelSource):
        return "ggn", source.gauss_newton
    return "fisher", fisher_operator(source)


def spread(damping_K: Tensor, layout: Layout) -> Tensor:
    """[D] each block's damping at each of its numbers."""
    sizes = torch.tensor([block.size for block in layout.blocks])
    return damping_K.repeat_interleave(sizes)


def damped(operator: Operator, damping_D: Tensor) -> Operator:
    return lambda v_KD: operator(v_KD) + damping_D.to(v_KD.dtype) * v_KD


def residuals(operator: Operator, b_KD: Tensor, x_KD: Tensor) -> Tensor:
    """[K] `||A x - b|| / ||b||`, A already damped; 0 for a b of zeros."""
    norms_K = b_KD.norm(dim=1)
    return torch.where(norms_K > 0, (operator(x_KD) - b_KD).norm(dim=1) / norms_K.clamp(min=torch.finfo(b_KD.dtype).tiny), 0.0)


def check_width(b_KD: Tensor, layout: Layout) -> None:
    """Raise LayoutMismatch unless the vectors are rows of this layout."""
    if b_KD.dim() != 2 or b_KD.shape[1] != layout.size:
        raise LayoutMismatch(
            f"b is {tuple(b_KD.shape)}, expected (K, {layout.size}) by the source's layout: they come from different indexes"
        )
