"""Sources of curvature whose matrices are known: rows given as a tensor, and a softmax regression that stands for a live model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from headwater.types import Block, FactorBatch, Factors, Labels, Layout

BLOCKS = Layout((Block("a", (4, 5), (4, 5)), Block("b", (7,), (7,)), Block("c", (3, 4), (3, 4))))


@dataclass(frozen=True, eq=False)
class Rows:
    """Gradient rows in whatever dtype they have, `size` of them at a time. Nothing but what `types.Source` asks for."""

    rows_ND: Tensor
    layout: Layout
    size: int = 7

    def __len__(self) -> int:
        return len(self.rows_ND)

    def blocks(self, feature: str) -> Iterator[tuple[int, Tensor]]:
        assert feature == "gradient"
        return ((start, self.rows_ND[start : start + self.size]) for start in range(0, len(self), self.size))


def random_rows(n: int, *, layout: Layout = BLOCKS, seed: int = 0, dtype: torch.dtype = torch.float64) -> Rows:
    """Rows of unlike lengths, with a few strong directions, so that eigenvalues and blocks differ."""
    generator = torch.Generator().manual_seed(seed)
    common_ND = torch.randn(n, 3, generator=generator, dtype=torch.float64) @ torch.randn(3, layout.size, generator=generator).double()
    noise_ND = torch.randn(n, layout.size, generator=generator, dtype=torch.float64) * torch.logspace(0, -1, layout.size)
    lengths_N1 = torch.randn(n, 1, generator=generator, dtype=torch.float64).exp()
    return Rows(((common_ND + noise_ND) * lengths_N1).to(dtype), layout)


def vectors(k: int, layout: Layout = BLOCKS, *, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(k, layout.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def dense_fisher(source: Rows, *, joint: bool = True) -> Tensor:
    """[D, D] float64 `(1/N) sum_n g_n g_n'`, or its diagonal blocks."""
    rows_ND = source.rows_ND.double()
    matrix_DD = rows_ND.T @ rows_ND / len(rows_ND)
    if joint:
        return matrix_DD
    ends = source.layout.offsets
    return torch.block_diag(*(matrix_DD[i:j, i:j] for i, j in pairwise(ends)))


def dense_solve(matrix_DD: Tensor, damping_L: Tensor, layout: Layout, b_KD: Tensor) -> Tensor:
    """[K, D] float64 `(C + lambda)^-1 b` by LU decomposition."""
    sizes = torch.tensor([block.size for block in layout.blocks])
    damping_D = damping_L.double().repeat_interleave(sizes)
    return torch.linalg.solve(matrix_DD + torch.diag(damping_D), b_KD.double().T).T


@dataclass(frozen=True, eq=False)
class SoftmaxSource:
    """`logits = W x + b` of N rows with labels y, as a `types.ModelSource`: everything by formula, nothing by a network."""

    x_NI: Tensor
    y_N: Tensor
    sampled_N: Tensor
    w_VI: Tensor
    layout: Layout

    @staticmethod
    def drawn(n: int, *, seed: int, inputs: int = 4, classes: int = 3) -> SoftmaxSource:
        generator = torch.Generator().manual_seed(seed)
        x_NI = torch.randn(n, inputs, generator=generator, dtype=torch.float64)
        w_VI = torch.randn(classes, inputs, generator=generator, dtype=torch.float64)
        y_N = torch.randint(classes, (n,), generator=generator)
        sampled_N = torch.multinomial((x_NI @ w_VI.T).softmax(1), 1, generator=generator).flatten()
        return SoftmaxSource(x_NI, y_N, sampled_N, w_VI, Layout((Block("w", (classes, inputs), (classes, inputs)),)))

    def rows_at(self, positions: Sequence[int]) -> SoftmaxSource:
        chosen = list(positions)
        return replace(self, x_NI=self.x_NI[chosen], y_N=self.y_N[chosen], sampled_N=self.sampled_N[chosen])

    @property
    def p_NV(self) -> Tensor:
        return (self.x_NI @ self.w_VI.T).softmax(1)

    def __len__(self) -> int:
        return len(self.x_NI)

    def blocks(self, feature: str) -> Iterator[tuple[int, Tensor]]:
        assert feature == "gradient"
        return ((positions[0], rows_BD) for positions, rows_BD in self.rows("true"))

    def rows(self, labels: Labels) -> Iterator[tuple[Sequence[int], Tensor]]:
        targets_N = self.y_N if labels == "true" else self.sampled_N
        errors_NV = self.p_NV - torch.nn.functional.one_hot(targets_N, self.p_NV.shape[1])
        rows_ND = (errors_NV[:, :, None] * self.x_NI[:, None]).flatten(1)
        for start in range(0, len(self), 5):
            yield range(start, min(start + 5, len(self))), rows_ND[start : start + 5]

    def factors(self, labels: Labels, *, positions: int | None = None) -> Iterator[FactorBatch]:
        targets_N = self.y_N if labels == "true" else self.sampled_N
        errors_NV = self.p_NV - torch.nn.functional.one_hot(targets_N, self.p_NV.shape[1])
        factors = {"w": Factors(self.x_NI[:, None], errors_NV[:, None])}
        yield FactorBatch(range(len(self)), factors, torch.ones(len(self), 1, dtype=torch.bool))

    def gauss_newton(self, v_KD: Tensor, positions: Sequence[int] | None = None) -> Tensor:
        some = self if positions is None else self.rows_at(positions)
        return v_KD @ some.dense_gauss_newton

    @cached_property
    def dense_gauss_newton(self) -> Tensor:
        """[D, D] `(1/N) sum_n (diag(p) - p p') (x) x x'`."""
        hessians_NVV = torch.diag_embed(self.p_NV) - self.p_NV[:, :, None] * self.p_NV[:, None]
        return torch.einsum("nvw,ni,nj->viwj", hessians_NVV, self.x_NI, self.x_NI).reshape(self.layout.size, -1) / len(self)
