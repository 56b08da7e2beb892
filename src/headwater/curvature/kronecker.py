"""Kronecker factors of a block's curvature, their eigenbases, and what is diagonal in them: shared by K-FAC and EK-FAC.

A block's gradient is the matrix `G_n = sum_t d_t a_t'`. `A = E_t[a a']` and `S = E_t[d d']` are means over positions that are no padding.
Where a source has only rows, their own second moments take the place: `A = E_n[G'G]`, `S = E_n[G G']`, each up to a factor that no
eigenvector sees (and that `kfac_eigenvalues` sets by the trace).

Letters: B rows · T positions · O, I the two sides of a block · D numbers of a row · K vectors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from headwater.curvature.operators import finite_blocks, over_factors
from headwater.index.scan import bfloat16_is_fast
from headwater.types import Block, FactorBatch, Factors, Labels, Layout, ModelSource, Source, State

LARGEST_SIDE = 8192  # a longer side (a vocabulary) keeps its own basis: its covariance would be too large to form and to diagonalise
ENOUGH = 64  # positions for each number of the longest side, where a basis costs a backward pass of its own
Precision = Literal["auto", "float32", "bfloat16"]
TOGETHER = 1 << 16  # numbers of the matrices that are solved together: few large ones, many small
PANEL = 256  # columns of a symmetric product that are computed together: what lies below the diagonal is not


@dataclass(frozen=True, eq=False)
class Side:
    """One side of a block: its eigenvectors as columns, None for the identity, and its eigenvalues where they are known."""

    vectors: Tensor | None

    def rotate(self, x: Tensor) -> Tensor:
        """`[..., X]` into the eigenbasis: `x Q`, in x's dtype."""
        return x if self.vectors is None else _product(x, self.vectors)

    def rotate_back(self, x: Tensor) -> Tensor:
        return x if self.vectors is None else _product(x, self.vectors.T)

    def cast(self, precision: Precision) -> Side:
        """Its vectors in the dtype of the products that it is to stand in, so that they are not cast anew for each."""
        return self if self.vectors is None else Side(in_precision(self.vectors, precision))


def _product(x: Tensor, square_XX: Tensor) -> Tensor:
    """`x M` in x's dtype, as one product of two matrices: a batch of products would copy M for each of them."""
    return (x.reshape(-1, x.shape[-1]) @ square_XX.to(x.dtype)).view(x.shape)


@dataclass(frozen=True, eq=False)
class Basis:
    """The Kronecker eigenbasis of a block: S on the left (outputs), A on the right (inputs)."""

    left: Side
    right: Side

    def cast(self, precision: Precision) -> Basis:
        return Basis(self.left.cast(precision), self.right.cast(precision))

    def rotate(self, g_NOI: Tensor) -> Tensor:
        """`Q_S' G Q_A` for each G. One alone is not copied for it."""
        return self.left.rotate(self.right.rotate(g_NOI).mT).mT

    def rotate_back(self, g_NOI: Tensor) -> Tensor:
        return self.right.rotate_back(self.left.rotate_back(g_NOI.mT).mT)


class SecondMoments:
    """Sums of `x x'` over rows x of many batches, of one side of many blocks; blocks that share an input share the sum."""

    def __init__(self, precision: Precision = "float32") -> None:
        self.precision: Precision = precision
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, float] = {}
        self.leader: dict[str, str] = {}

    def add(self, vectors: Mapping[str, Tensor], counts: Mapping[str, int]) -> None:
        """{block: [n, X]} and what each n counts for: the same tensor object under several names is summed once, under the first."""
        first: dict[int, str] = {}
        for name, x_nX in vectors.items():
            leader = self.leader.setdefault(name, first.setdefault(id(x_nX), name))
            if leader != name:
                continue
            if name not in self.sums:
                size = x_nX.shape[1]
                shape = (size, size) if size <= LARGEST_SIDE else (size,)
                dtype = torch.promote_types(x_nX.dtype, torch.float32)
                self.sums[name], self.counts[name] = x_nX.new_zeros(shape, dtype=dtype), 0.0
            accumulate(self.sums[name], in_precision(x_nX, self.precision))
            self.counts[name] += counts[name]

    def merge(self, other: SecondMoments) -> None:
        """Add what another worker has summed."""
        for name, total in other.sums.items():
            if name in self.sums:
                self.sums[name] += total
            else:
                self.sums[name] = total
            self.counts[name] = self.counts.get(name, 0.0) + other.counts[name]
        self.leader |= other.leader

    def eigen(self, name: str) -> tuple[Tensor, Tensor | None]:
        """(eigenvalues, eigenvectors as columns) of the mean; a side that was too long has its diagonal, and no vectors."""
        mean = self.sums[name] / max(self.counts[name], 1.0)
        if mean.dim() == 1:
            return mean, None
        symmetric = torch.triu(mean) + torch.triu(mean, 1).T
        values, vectors = torch.linalg.eigh(symmetric.double())
        return values.clamp(min=0).to(mean.dtype), vectors.to(mean.dtype).contiguous()


def accumulate(total: Tensor, x_nX: Tensor) -> None:
    """`total += x'x`, the upper triangle by panels (the rest is its mirror); only the diagonal where total is a vector."""
    if total.dim() == 1:
        total += x_nX.to(total.dtype).square().sum(0)
        return
    x_nX = in_panels(x_nX)
    for start in range(0, len(total), PANEL):
        total[start : start + PANEL, start:] += x_nX[:, start : start + PANEL].T @ x_nX[:, start:]


def in_panels(x_nX: Tensor) -> Tensor:
    """The same rows, those of bfloat16 with zeros up to a multiple of `PANEL`: on a processor each new shape of a product costs
    milliseconds and a megabyte of code."""
    missing = -len(x_nX) % PANEL if x_nX.dtype == torch.bfloat16 and x_nX.device.type == "cpu" else 0
    return torch.nn.functional.pad(x_nX, (0, 0, 0, missing)) if missing else x_nX


def rotated_positions(side: Side, x_BTX: Tensor, precision: Precision) -> Tensor:
    """[B, T, X] each position in the side's basis, in the dtype of the products."""
    x_nX = in_precision(x_BTX, precision).flatten(0, 1)
    return side.rotate(in_panels(x_nX))[: len(x_nX)].unflatten(0, x_BTX.shape[:2])


def in_precision(x: Tensor, precision: Precision) -> Tensor:
    """The factors of a product that is to be averaged over many rows: its rounding, at random, averages out. float64 stays."""
    return x.to(product_dtype(precision, x))


def precision_over(source: Source, precision: Precision) -> Precision:
    """Stored rows are few products, and each row's own, so nothing averages out: they are multiplied as they are."""
    return precision if isinstance(source, ModelSource) else "float32"


def product_dtype(precision: Precision, x: Tensor) -> torch.dtype:
    """bfloat16 where that is asked for; by "auto" where the processor multiplies it fast and the numbers are float32. Else x's own."""
    fast = precision == "auto" and x.dtype == torch.float32 and (x.is_cuda or bfloat16_is_fast())
    return torch.bfloat16 if fast or precision == "bfloat16" else x.dtype


# ------------------------------------------------------------------------------------------------------ from a source


def fit_bases(source: Source, labels: Labels, precision: Precision = "float32", *, positions: int | None = None) -> State:
    """{"left/BLOCK", "right/BLOCK": eigenvectors; "left_values/BLOCK", "right_values/BLOCK"; "positions": [L] a row, the mean}. One pass.

    A side's tensors stand under the first of the blocks that share it. Over a live model `positions * A (x) S` is K-FAC's curvature. Of a
    model's rows as many are looked at as have about so many `positions`, or all.
    """
    left, right = SecondMoments(precision), SecondMoments(precision)
    n_rows = _from_factors(source, labels, positions, left, right) if isinstance(source, ModelSource) else _from_rows(source, left, right)
    names = [block.name for block in source.layout.blocks]
    state = {
        "positions": torch.tensor([left.counts.get(name, 0) / max(n_rows, 1) for name in names], dtype=torch.float64),
        "right_leader": torch.tensor([names.index(right.leader.get(name, name)) for name in names]),
    }
    for side, moments in (("left", left), ("right", right)):
        for name in moments.sums:
            values, vectors = moments.eigen(name)
            state[f"{side}_values/{name}"] = values
            if vectors is not None:
                state[f"{side}/{name}"] = vectors
    return state


def bases(state: State, layout: Layout) -> dict[str, Basis]:
    """The eigenbasis of each block. A block that was never used has the identity on both sides."""
    leaders = [layout.blocks[i].name for i in state["right_leader"].tolist()]
    return {
        block.name: Basis(Side(state.get(f"left/{block.name}")), Side(state.get(f"right/{leader}")))
        for block, leader in zip(layout.blocks, leaders, strict=True)
    }


def enough_positions(layout: Layout) -> int:
    """For a basis: `ENOUGH` for each number of the longest side that gets one."""
    return ENOUGH * max((size for block in layout.blocks for size in block.shape if size <= LARGEST_SIDE), default=1)


def _from_factors(source: ModelSource, labels: Labels, positions: int | None, left: SecondMoments, right: SecondMoments) -> int:
    """Rows that were averaged over."""

    def begin() -> tuple[SecondMoments, SecondMoments, list[int]]:
        return SecondMoments(left.precision), SecondMoments(right.precision), []

    def term(so_far: tuple[SecondMoments, SecondMoments, list[int]], batch: FactorBatch) -> None:
        _add_positions(batch, so_far[0], so_far[1])
        so_far[2].append(len(batch.positions))

    n_rows = 0
    for some_left, some_right, sizes in over_factors(source, labels, begin, term, positions=positions):
        left.merge(some_left)
        right.merge(some_right)
        n_rows += sum(sizes)
    return n_rows


def _add_positions(batch: FactorBatch, left: SecondMoments, right: SecondMoments) -> None:
    """A block's positions are counted by block: a pooled one has one a row, one used twice has two.

    Those that do not count are zeros in what is summed: copying the others together would take longer than to multiply them.
    """
    used = {name: _used(one, batch.used_BT) for name, one in batch.factors.items()}
    inputs: dict[int, Tensor] = {}
    for name, one in batch.factors.items():
        if id(one.a_BTI) not in inputs:
            inputs[id(one.a_BTI)] = _counted(one.a_BTI, used[name], right.precision)
    counts = {name: int(used_BT.sum()) for name, used_BT in used.items()}
    right.add({name: inputs[id(one.a_BTI)] for name, one in batch.factors.items()}, counts)
    left.add({name: one.g_BTO.flatten(0, 1) for name, one in batch.factors.items()}, counts)


def _used(factors: Factors, used_BT: Tensor) -> Tensor:
    """[B, T] the positions that count. A block used more than once a row, or pooled, has positions of its own: those with a gradient."""
    return used_BT if factors.g_BTO.shape[:2] == used_BT.shape else (factors.g_BTO != 0).any(-1)


def _counted(x_BTX: Tensor, used_BT: Tensor, precision: Precision) -> Tensor:
    """[B T, X] in the dtype of the products, zeros where a position does not count."""
    x_nX = in_precision(x_BTX, precision).flatten(0, 1)
    unused_n = (~used_BT).flatten().nonzero().flatten()
    if not len(unused_n):
        return x_nX
    return x_nX.index_fill(0, unused_n, 0) if x_nX.dtype == x_BTX.dtype else x_nX.index_fill_(0, unused_n, 0)


def _from_rows(source: Source, left: SecondMoments, right: SecondMoments) -> int:
    n_rows = 0
    for rows_ND in finite_blocks(source):
        matrices = {block.name: as_matrices(part, block) for block, part in zip_blocks(source.layout, rows_ND)}
        counts = dict.fromkeys(matrices, len(rows_ND))
        left.add({name: g_NOI.transpose(1, 2).reshape(-1, g_NOI.shape[1]) for name, g_NOI in matrices.items()}, counts)
        right.add({name: g_NOI.reshape(-1, g_NOI.shape[2]) for name, g_NOI in matrices.items()}, counts)
        n_rows += len(rows_ND)
    return n_rows


# -------------------------------------------------------------------------------------------------- in the eigenbasis


def solve_in_basis(state: State, layout: Layout, b_KD: Tensor, precision: Precision = "float32") -> Tensor:
    """[K, D] `Q_S [(Q_S' B Q_A) / (eigenvalues + lambda)] Q_A'` of each block. Cost K O I (O + I) multiplications a block, twice."""
    eigenvalues, rotated, x_KD = layout.split(state["eigenvalues"]), bases(state, layout), torch.empty_like(b_KD)
    parts = layout.split(x_KD)
    for (block, b), damping in zip(zip_blocks(layout, b_KD), state["damping"].tolist(), strict=True):
        basis, scale_OI = rotated[block.name].cast(precision), as_matrices(eigenvalues[block.name].unsqueeze(0), block) + damping
        scale_OI = scale_OI.mT.contiguous().mT.to(product_dtype(precision, b))  # as what was rotated lies in memory
        together = max(1, TOGETHER // block.size)
        for b_kOI, x_kOI in zip(as_matrices(b, block).split(together), as_matrices(parts[block.name], block).split(together), strict=True):
            x_kOI.copy_(basis.rotate_back(basis.rotate(in_precision(b_kOI, precision)) / scale_OI))
    return x_KD


def zip_blocks(layout: Layout, rows_ND: Tensor) -> Iterator[tuple[Block, Tensor]]:
    parts = layout.split(rows_ND)
    return ((block, parts[block.name]) for block in layout.blocks)


def as_matrices(part: Tensor, block: Block) -> Tensor:
    """[N, O, I]; a vector is a matrix of one column."""
    return part if len(block.stored) == 2 else part.unsqueeze(-1)


class SumsOfSquares:
    """Over rows, of the squares of their matrices, in the layout's order."""

    def __init__(self, layout: Layout) -> None:
        self.layout, self.n_rows = layout, 0
        self.total_D: Tensor | None = None
        self._parts: Mapping[str, Tensor] = {}

    def add(self, n_rows: int, matrices: Iterable[tuple[str, Tensor]]) -> None:
        """(block, [b, O, I]) of some or all of so many rows. The matrices are consumed."""
        for name, g_bOI in matrices:
            if self.total_D is None:
                dtype = torch.promote_types(g_bOI.dtype, torch.float32)
                self.total_D = torch.zeros(self.layout.size, dtype=dtype, device=g_bOI.device)
                self._parts = self.layout.split(self.total_D)
            part = self._parts[name]
            if len(g_bOI) == 1:
                row = g_bOI.reshape(part.shape)
                part.addcmul_(row, row)
                del row
            else:
                part.add_(g_bOI.square_().sum(0, dtype=part.dtype).reshape(part.shape))
            del g_bOI
        self.n_rows += n_rows


def mean_squares(layout: Layout, batches: Iterable[tuple[int, Iterable[tuple[str, Tensor]]]]) -> Tensor:
    """[D] the mean over rows of the squares of their matrices, which come batch by batch: what `SumsOfSquares.add` takes."""
    sums = SumsOfSquares(layout)
    for n_rows, matrices in batches:
        sums.add(n_rows, matrices)
    return mean_of([sums])


def mean_of(sums: Sequence[SumsOfSquares]) -> Tensor:
    """[D] the mean over the rows of all of them; the first one's total is consumed."""
    totals = [some.total_D for some in sums if some.total_D is not None]
    assert totals, "no rows to take the mean over"
    for other in totals[1:]:
        totals[0] += other
    return totals[0] / max(sum(some.n_rows for some in sums), 1)
