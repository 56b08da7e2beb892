"""Seeded linear maps that make a gradient small enough to keep, and unbiased to compare.

A block's gradient G (O x I) is stored as `L G R'` with L (k_O x O) and R (k_I x I) of independent signs +-1/sqrt(k), so that
`E[<L G R', L H R'>] = <G, H>`. The signs are the raw bits of a counter-based generator keyed by (seed, block, side): every
machine and device sees the same map, and no block's map depends on which others are in scope.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from headwater.types import Block


@dataclass(frozen=True)
class SketchSpec:
    """`rank` numbers a side (None keeps everything whole); blocks of at most `whole_below` numbers are kept whole."""

    rank: int | None = 16
    whole_below: int = 4096
    seed: int = 0

    def block(self, name: str, shape: tuple[int, ...]) -> Block:
        """What is stored of a parameter of this shape: itself, (k_O, k_I) of a matrix, or (k^2,) of a vector."""
        if self.rank is None or int(np.prod(shape)) <= self.whole_below:
            return Block(name, shape, shape)
        kept = (self.rank**2,) if len(shape) == 1 else (self.rank, self.rank)
        return Block(name, shape, tuple(min(k, n) for k, n in zip(kept, shape, strict=True)))


@dataclass(frozen=True, eq=False)
class Side:
    """One side's map: `x @ matrix.T`, or nothing where the side is kept whole. Three forms, one meaning.

    `scale_X` is what a whole side is multiplied by; that of a projected side is in its matrix already.
    """

    size: int
    matrix_KX: Tensor | None
    dtype: torch.dtype = torch.float32
    scale_X: Tensor | None = None

    @property
    def stored(self) -> int:
        return self.size if self.matrix_KX is None else len(self.matrix_KX)

    def project(self, x: Tensor) -> Tensor:
        """[..., X] -> [..., K], in this side's dtype whatever the model's."""
        if self.matrix_KX is not None:
            return x.to(self.dtype) @ self.matrix_KX.T
        return x.to(self.dtype) if self.scale_X is None else x.to(self.dtype) * self.scale_X

    def part(self, x: Tensor, *, start: int) -> Tensor:
        """The same for a vector that is zero outside [start, start + x.shape[-1]): one expert's slice of a fused parameter."""
        if self.matrix_KX is None:
            return self.project(torch.nn.functional.pad(x.to(self.dtype), (start, self.size - start - x.shape[-1])))
        return x.to(self.dtype) @ self.matrix_KX[:, start : start + x.shape[-1]].T

    def one_hot(self, ids: Tensor) -> Tensor:
        """The same for one-hot vectors given by their index: an embedding's input."""
        if self.matrix_KX is None:
            return self.project(torch.nn.functional.one_hot(ids, self.size))
        return self.matrix_KX.T[ids]


def sides(
    block: Block, seed: int, *, dtype: torch.dtype, device: torch.device | str = "cpu", scales: Sequence[Tensor] | None = None
) -> tuple[Side, ...]:
    """A block's maps, one per dimension: (left, right) of a matrix, one of a vector. `scales`: what each side is multiplied by before."""
    whole = tuple(
        Side(n, None if k == n else signs(k, n, seed=seed, name=block.name, side=i).to(device, dtype), dtype)
        for i, (k, n) in enumerate(zip(block.stored, block.shape, strict=True))
    )
    return whole if scales is None else tuple(scaled(side, scale) for side, scale in zip(whole, scales, strict=True))


def scaled(side: Side, scale_X: Tensor) -> Side:
    """The side of `x * scale`: one multiplication in a map that is there costs nothing later."""
    if side.matrix_KX is None:
        return replace(side, scale_X=scale_X.to(side.dtype))
    return replace(side, matrix_KX=(side.matrix_KX.double() * scale_X.to(side.matrix_KX.device).double()).to(side.dtype))


def signs(k: int, n: int, *, seed: int, name: str, side: int) -> Tensor:
    """[k, n] float64 of +-1/sqrt(k). Reads the generator's raw 64-bit words, whose stream NumPy never changes."""
    key = hashlib.sha256(f"{seed}/{side}/{name}".encode()).digest()
    words = np.random.Philox(key=np.frombuffer(key[:16], dtype="<u8")).random_raw(-(-k * n // 64))
    bits = np.unpackbits(np.asarray(words, dtype="<u8").view(np.uint8), count=k * n, bitorder="little").reshape(k, n)
    return torch.from_numpy((2.0 * bits - 1.0) / np.sqrt(k))
