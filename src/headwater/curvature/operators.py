"""The matrices that solvers work on, as functions: `C v` without C. And the one shared operator that every solve is held against.

Letters: K vectors · D numbers of a gradient row · N rows · n rows of a block · L blocks of a layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from headwater.curvature.damping import Damping
from headwater.types import FactorBatch, Labels, Layout, LayoutMismatch, ModelSource, Source, State, UsageError

A = TypeVar("A")
Operator = Callable[[Tensor], Tensor]  # [K, D] -> [K, D]

ROWS = 128  # rows that are cast and multiplied together: they stay in the cache


# ----------------------------------------------------------------------------------------------------------- the rows


def finite_blocks(source: Source, feature: str = "gradient") -> Iterator[Tensor]:
    """[n, D] the rows of a source, block by block, without those that are not finite: they have no curvature."""
    return (finite(rows_ND) for _, rows_ND in source.blocks(feature))


def finite(rows_ND: Tensor) -> Tensor:
    """The rows without those that are not finite. A sum is finite only where all its terms are, and is the quicker to look at."""
    if bool(torch.isfinite(rows_ND.sum(1)).all()):
        return rows_ND
    return rows_ND[torch.isfinite(rows_ND).all(1)]


def over_factors(
    source: ModelSource, labels: Labels, begin: Callable[[], A], term: Callable[[A, FactorBatch], None], *, positions: int | None = None
) -> list[A]:
    """`term(so_far, batch)` of every batch of factors, into one `so_far` or, where a source works on several side by side, as many."""
    side_by_side = getattr(source, "over_factors", None)
    if side_by_side is not None:
        return side_by_side(labels, begin, term, positions=positions)
    so_far = begin()
    for batch in source.factors(labels, positions=positions):
        term(so_far, batch)
        del batch  # or its factors would be held while the next batch is computed
    return [so_far]


def reference_rows(source: Source) -> Iterator[Tensor]:
    """[n, D] rows whose mean `g g'` is the reference operator, of a live model in expectation: their labels are drawn from it."""
    if isinstance(source, ModelSource):
        return (finite(rows_ND) for _, rows_ND in source.rows("sampled"))
    return finite_blocks(source)


def pieces(layout: Layout, *, joint: bool) -> list[slice]:
    """Where the parts of a row lie that a block-diagonal C treats apart: the layout's blocks, or all of it where C is joint."""
    ends = (0, layout.size) if joint else layout.offsets
    return [slice(start, stop) for start, stop in pairwise(ends)]


# ------------------------------------------------------------------------------------------------------ the operators


def fisher_operator(source: Source, *, joint: bool = True) -> Operator:
    """`C v = (1/N) sum_n g_n (g_n . v)`: the empirical Fisher of the source's rows, or its diagonal blocks.

    Cost 2 N D multiplications for each v, one scan. Computed in the dtype of v.
    """
    parts = pieces(source.layout, joint=joint)

    def apply(v_KD: Tensor) -> Tensor:
        total_KD, n = torch.zeros_like(v_KD), 0
        for block_ND in finite_blocks(source):
            _add_products(total_KD, block_ND, v_KD, parts)
            n += len(block_ND)
        return total_KD / max(n, 1)

    return apply


def reference_operator(source: Source) -> tuple[str, Operator]:
    """(name, C): the Gauss-Newton operator of a live model; of stored rows, which are all there is, their empirical Fisher."""
    if isinstance(source, ModelSource):
        return "ggn", source.gauss_newton
    return "fisher", fisher_operator(source)


def batch_operator(source: Source, positions: Sequence[int]) -> Operator:
    """The reference operator of some rows alone, in the mean over them."""
    if isinstance(source, ModelSource):
        return lambda v_KD: source.gauss_newton(v_KD, positions)
    rows_nD = finite(_take(source, positions))

    def apply(v_KD: Tensor) -> Tensor:
        total_KD = torch.zeros_like(v_KD)
        _add_products(total_KD, rows_nD, v_KD, pieces(source.layout, joint=True))
        return total_KD / max(len(rows_nD), 1)

    return apply


def damped(operator: Operator, damping_D: Tensor) -> Operator:
    return lambda v_KD: operator(v_KD) + damping_D.to(v_KD) * v_KD


def damped_reference(state: State, source: Source) -> Operator:
    """`v -> (C + lambda) v` on the reference operator, with the state's damping."""
    return damped(reference_operator(source)[1], spread(state["damping"], source.layout))


def spread(damping_L: Tensor, layout: Layout) -> Tensor:
    """[D] each block's damping at each of its numbers."""
    sizes = torch.tensor([block.size for block in layout.blocks])
    return damping_L.repeat_interleave(sizes)


def _add_products(total_KD: Tensor, rows_ND: Tensor, v_KD: Tensor, parts: Sequence[slice]) -> None:
    for some_ND in rows_ND.split(ROWS):
        some_ND = some_ND.to(v_KD)
        for part in parts:
            total_KD[:, part].addmm_(v_KD[:, part] @ some_ND[:, part].T, some_ND[:, part])


def _take(source: Any, positions: Sequence[int]) -> Tensor:
    """[n, D] rows at these positions: an index looks them up, any other source is scanned."""
    if hasattr(source, "take"):
        return source.take("gradient", positions)
    wanted = np.asarray(positions)
    found: dict[int, Tensor] = {}
    for start, rows_ND in source.blocks("gradient"):
        here = wanted[(wanted >= start) & (wanted < start + len(rows_ND))]
        found |= {int(i): rows_ND[i - start] for i in here}
    return torch.stack([found[int(i)] for i in wanted])


# --------------------------------------------------------------------------------------------------------- the scale


def mean_eigenvalues(rows: Iterable[Tensor], layout: Layout, *, joint: bool = False) -> Tensor:
    """[L] float64 `trace(C) / D` of each block of `C = (1/N) sum_n g_n g_n'`: the mean square of the rows' entries. One scan.

    Where C is joint, that of the whole row for every block.
    """
    sizes_L = torch.tensor([block.size for block in layout.blocks], dtype=torch.float64)
    squares_L, n = torch.zeros_like(sizes_L), 0
    for rows_ND in rows:
        parts = [part_Nd.square().sum(dtype=torch.float64) for part_Nd in rows_ND.split([block.size for block in layout.blocks], dim=1)]
        squares_L += torch.stack(parts).cpu()
        n += len(rows_ND)
    means_L = squares_L / (max(n, 1) * sizes_L)
    return torch.full_like(means_L, float(squares_L.sum() / (max(n, 1) * sizes_L.sum()))) if joint else means_L


def reference_damping(source: Source, damping: float | str, *, joint: bool = False) -> Tensor:
    """[L] float64 the lambda of each block, a rule being relative to the reference operator: its blocks, or where `joint` all of it.

    One scan of the rows, or for a live model one pass with labels drawn from it; none where damping is a number.
    """
    rule = Damping.parse(damping)
    if not rule.relative:
        return rule.resolve(torch.ones(len(source.layout.blocks)))
    return rule.resolve(mean_eigenvalues(reference_rows(source), source.layout, joint=joint))


def largest_eigenvalue(operator: Operator, start_1D: Tensor, *, steps: int = 10) -> float:
    """A lower bound of the operator's largest eigenvalue, close to it: `||C v||` after so many power iterations, v of unit length."""
    value, v_1D = 0.0, start_1D
    for _ in range(steps):
        v_1D = operator(v_1D / v_1D.norm())
        value = float(v_1D.norm())
        if value == 0:
            break
    return value


# ------------------------------------------------------------------------------------------------- dtypes and checks


def working(b_KD: Tensor, source: Source) -> Tensor:
    """The vectors in the dtype to solve in: float64 over stored rows, where it costs little; a live model's own."""
    return b_KD if isinstance(source, ModelSource) else b_KD.double()


def random_vectors(n: int, source: Source, *, seed: int) -> Tensor:
    """[n, D] standard normal numbers from a seed, in the dtype to work in."""
    generator = torch.Generator().manual_seed(seed)
    drawn_nD = torch.randn(n, source.layout.size, generator=generator, dtype=torch.float64)
    return drawn_nD.to(next(reference_rows(source))) if isinstance(source, ModelSource) else drawn_nD


def residuals(operator: Operator, b_KD: Tensor, x_KD: Tensor) -> Tensor:
    """[K] `||A x - b|| / ||b||`, A already damped; 0 for a b of zeros."""
    return relative(operator(x_KD) - b_KD, b_KD)


def relative(r_KD: Tensor, b_KD: Tensor) -> Tensor:
    """[K] `||r|| / ||b||`; 0 for a b of zeros."""
    norms_K = b_KD.norm(dim=1)
    return torch.where(norms_K > 0, r_KD.norm(dim=1) / norms_K.clamp(min=torch.finfo(b_KD.dtype).tiny), 0.0)


def reference_residuals(state: State, source: Source, b_KD: Tensor, x_KD: Tensor) -> tuple[str, Tensor]:
    """(operator's name, [K] relative residuals) of any solution on the one shared operator, with the damping the solution used."""
    return reference_operator(source)[0], residuals(damped_reference(state, source), b_KD, x_KD)


def residual_where_cheap(state: State, source: Source, b_KD: Tensor, x_KD: Tensor) -> dict[str, Any]:
    """A Solve's `residual_K` and `residual_of`, over stored rows for one more scan; nothing for a live model, where it takes passes."""
    if isinstance(source, ModelSource):
        return {}
    name, residual_K = reference_residuals(state, source, b_KD, x_KD)
    return {"residual_K": residual_K, "residual_of": name}


def check_counts(name: str, **options: int | None) -> None:
    """Raise UsageError unless each of these options is 1 or more, or not given."""
    for option, value in options.items():
        if value is not None and value < 1:
            raise UsageError(f"{name}: {option} is {value}, expected 1 or more")


def check_width(b_KD: Tensor, layout: Layout) -> None:
    """Raise LayoutMismatch unless the vectors are rows of this layout."""
    if b_KD.dim() != 2 or b_KD.shape[1] != layout.size:
        raise LayoutMismatch(
            f"b is {tuple(b_KD.shape)}, expected (K, {layout.size}) by the source's layout: they come from different indexes"
        )
