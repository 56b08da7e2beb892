"""Gradients kept as factors: what each block was given and what came back, for a whole batch, nothing projected.

The sink of `sites.py` that curvatures are fitted with. Letters: B rows · T positions · O, I the two sides of a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from headwater.gradient.sketch import Side
from headwater.types import Factors, Layout, LayoutMismatch


class FactorSink:
    """Collects `Factors` of every use of every block, on the model's side of a layout that keeps everything whole."""

    def __init__(self, layout: Layout, *, dtype: torch.dtype) -> None:
        sketched = [block.name for block in layout.blocks if block.sketched]
        if sketched:
            raise LayoutMismatch(
                f"factors are of whole gradients, and {len(sketched)} blocks of this layout are sketched ({sketched[0]}, ...)"
            )
        self.layout, self.dtype = layout, dtype
        self.sides = {block.name: tuple(Side(n, None, dtype) for n in block.shape) for block in layout.blocks}
        self.shape_BT = (0, 0)
        self._uses: dict[str, list[Factors]] = {}
        self._inputs: dict[tuple[Any, ...], Tensor] = {}

    def start(self, n_rows: int, n_positions: int) -> None:
        """The next forward pass is over a batch of this shape. Its inputs are remembered until the next start."""
        self.shape_BT = (n_rows, n_positions)
        self._uses, self._inputs = {}, {}

    def wants(self, name: str) -> bool:
        return name in self.sides

    def add_factors(self, name: str, factors: Factors) -> None:
        self._add(name, Factors(self._shared(factors.a_BTI), factors.g_BTO))

    def add_scattered(self, name: str, positions_P: Tensor, left_PK: Tensor, right_PL: Tensor) -> None:
        g_BTO, a_BTI = (self._spread(positions_P, part) for part in (left_PK, right_PL))
        self._add(name, Factors(a_BTI, g_BTO))

    def add_vector(self, name: str, terms_BTX: Tensor) -> None:
        self._add(name, Factors(terms_BTX.new_ones(*terms_BTX.shape[:2], 1), terms_BTX.to(self.dtype)))

    def take(self) -> Mapping[str, Factors]:
        """What one backward pass brought; forgets it, so that a second one over the same graph brings its own.

        A block never used is absent. Uses of one block stand one after the other along the positions.
        """
        uses, self._uses = self._uses, {}
        return {name: some[0] if len(some) == 1 else _joined(some) for name, some in uses.items()}

    def _add(self, name: str, factors: Factors) -> None:
        self._uses.setdefault(name, []).append(factors)

    def _shared(self, a_BTI: Tensor) -> Tensor:
        """One tensor object for all blocks that read the same activation (q, k and v; gate and up)."""
        key = (a_BTI.data_ptr(), tuple(a_BTI.shape), a_BTI.stride())
        return self._inputs.setdefault(key, a_BTI)

    def _spread(self, positions_P: Tensor, part_PX: Tensor) -> Tensor:
        n_rows, n_positions = self.shape_BT
        whole = part_PX.new_zeros(n_rows * n_positions, part_PX.shape[1]).index_add_(0, positions_P, part_PX)
        return whole.unflatten(0, (n_rows, n_positions))


def _joined(uses: list[Factors]) -> Factors:
    return Factors(torch.cat([use.a_BTI for use in uses], 1), torch.cat([use.g_BTO for use in uses], 1))


def each_dense(factors: Factors) -> Iterator[Tensor]:
    """[b, O, I] the rows' matrices in turn, all of them at once where they are on an accelerator; the next overwrites the last.

    On a processor each row is a product of its own, in float32 at least: it stays in the cache, and a product of a whole batch in bfloat16
    would be compiled anew for each shape of a batch, which costs milliseconds and a megabyte of code that stays.
    """
    if factors.a_BTI.device.type != "cpu":
        yield factors.dense()
        return
    dtype = torch.promote_types(factors.a_BTI.dtype, torch.float32)
    a_BTI, g_BTO = factors.a_BTI.to(dtype), factors.g_BTO.to(dtype)
    product_OI = torch.empty(g_BTO.shape[-1], a_BTI.shape[-1], dtype=dtype)
    for a_TI, g_TO in zip(a_BTI, g_BTO, strict=True):
        yield torch.mm(g_TO.T, a_TI, out=product_OI)[None]


def dense_rows(layout: Layout, factors: Mapping[str, Factors], n_rows: int) -> Tensor:
    """[B, D] the rows in the layout's order; a block that was not used is zero."""
    like = next(iter(factors.values())).g_BTO
    rows_BD = like.new_zeros(n_rows, layout.size)
    parts = layout.split(rows_BD)
    for name, one in factors.items():
        parts[name].copy_(one.dense().reshape(parts[name].shape))
    return rows_BD
