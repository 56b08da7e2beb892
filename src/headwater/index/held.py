"""Whole gradients of queries that stay in memory while those of all rows go by.

Q queries · B rows of a batch · O, I the two sides of a block · X = O I its numbers · D numbers of a whole gradient
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from headwater.gradient.factors import each_dense
from headwater.index.codec import SMALLEST, Stored, encode
from headwater.index.scan import bfloat16_is_fast, int8_is_fast
from headwater.types import Block, Factors, Layout

TOGETHER = 16  # rows that are multiplied with the held queries, or a multiple of them
HELD_BYTES = 256 << 20  # of the queries, in the widest dtype that keeps to it
PANEL = 1 << 20  # numbers of a factor of a product that are made or widened at once: 4 MB in float32
ADDED = (2**31 - 1) // 127**2  # products of two int8 numbers that an int32 surely has room for


class Held:
    """Whole gradients, or solved ones, of Q queries, by block. float32 while they are small, then bfloat16, then int8 with a scale for each
    query and block.

    What is rounded is each number, at random, and a product is a sum of very many: 64 queries of 3 M numbers in int8 keep a rank
    correlation of .998. Rows are rounded as the queries are where the processor is fast at such products.
    """

    def __init__(self, n: int, layout: Layout, *, whole: torch.dtype, device: torch.device | None = None) -> None:
        wide = torch.promote_types(whole, torch.float32)
        sizes = (dtype for dtype in (wide, torch.bfloat16, torch.int8) if n * layout.size * dtype.itemsize <= HELD_BYTES)
        stored = next(sizes, torch.int8)
        self.layout = layout
        self.values_QD = torch.empty(n, layout.size, dtype=stored, device=device)
        self.scale_QL = torch.ones(n, len(layout.blocks), device=device)
        self.multiplied = _multiplied(wide, stored, self.values_QD.device)
        self._spans = {block.name: (i, *layout.offsets[i : i + 2]) for i, block in enumerate(layout.blocks)}

    def __len__(self) -> int:
        return len(self.values_QD)

    def put(self, start: int, x_KD: Tensor) -> None:
        """Rows `start, start + 1, ...`."""
        rows = slice(start, start + len(x_KD))
        if self.values_QD.dtype != torch.int8:
            self.values_QD[rows] = x_KD.to(self.values_QD)
            return
        encoded = encode(x_KD.float(), "int8", self.layout)
        assert encoded.scale_NK is not None
        self.values_QD[rows], self.scale_QL[rows] = encoded.values_ND.to(self.values_QD), encoded.scale_NK.to(self.scale_QL)

    def products(self, name: str, rows_BX: Tensor) -> Tensor:
        """[Q, B] with one block of some rows."""
        rows_BX = rows_BX.to(self.values_QD.device)
        return self._products(name, encode(rows_BX.float(), "int8", _of(rows_BX)) if self.multiplied == torch.int8 else Stored(rows_BX))

    def factor_products(self, name: str, batches: Sequence[Factors]) -> Tensor:
        """The same with the rows whose factors these are, batch after batch."""
        if self.multiplied.itemsize >= 4:
            return self._panel_products(name, batches)
        return self._products(name, whole_rows(batches, self.multiplied))[:, : sum(len(one.g_BTO) for one in batches)]

    def _products(self, name: str, rows: Stored) -> Tensor:
        i, a, b = self._spans[name]
        multiply = int8_product if self.multiplied == torch.int8 else _wide_product
        product_QB = multiply(rows.values_ND.to(self.multiplied), self.values_QD[:, a:b]).T * self.scale_QL[:, i : i + 1]
        return product_QB if rows.scale_NK is None else product_QB * rows.scale_NK.T

    def _panel_products(self, name: str, batches: Sequence[Factors]) -> Tensor:
        """A few outputs at a time, so that neither the rows' matrices nor what is widened leave a processor's cache."""
        i, a, _ = self._spans[name]
        batches = [Factors(one.a_BTI.to(self.multiplied), one.g_BTO.to(self.multiplied)) for one in batches]
        n, n_outputs, n_inputs = sum(len(one.g_BTO) for one in batches), batches[0].g_BTO.shape[-1], batches[0].a_BTI.shape[-1]
        n_together = _panel_width(max(n, len(self)) * n_inputs, self.values_QD.device) or n_outputs
        rows_BPI = torch.empty(n, n_together, n_inputs, dtype=self.multiplied, device=self.values_QD.device)
        total_QB = torch.zeros(len(self), n, dtype=self.multiplied, device=self.values_QD.device)
        for first in range(0, n_outputs, n_together):
            outputs = slice(first, min(first + n_together, n_outputs))
            panel_BPI = rows_BPI[:, : outputs.stop - first]
            for one, into_bPI in zip(batches, panel_BPI.split([len(one.g_BTO) for one in batches]), strict=True):
                torch.bmm(one.g_BTO[..., outputs].mT, one.a_BTI, out=into_bPI)
            held_QX = self.values_QD[:, a + first * n_inputs : a + outputs.stop * n_inputs]
            total_QB.addmm_(held_QX.to(self.multiplied), panel_BPI.flatten(1).T)
        return total_QB * self.scale_QL[:, i : i + 1]


def _wide_product(rows_BX: Tensor, held_QX: Tensor) -> Tensor:
    """[B, Q], float32 at least. What is held is widened for as long as it is multiplied, on a processor a panel at a time: so it stays in
    the cache, and a product takes a quarter of the time.

    Where nothing is widened the few rows stand on the left: a bfloat16 product whose long side is summed over is several times as fast.
    """
    dtype = torch.promote_types(rows_BX.dtype, torch.float32)
    width = _panel_width(len(held_QX), held_QX.device)
    if held_QX.dtype == rows_BX.dtype or not width:
        return (rows_BX @ held_QX.to(rows_BX.dtype).T).to(dtype)
    total_QB = torch.zeros(len(held_QX), len(rows_BX), dtype=dtype)
    for rows_BC, held_QC in zip(rows_BX.split(width, 1), held_QX.split(width, 1), strict=True):
        total_QB += held_QC.to(rows_BC.dtype) @ rows_BC.T
    return total_QB.T


def _panel_width(n_each: int, device: torch.device) -> int | None:
    """Columns of so many numbers that are multiplied together on a processor: they stay in the cache. None elsewhere: all of them."""
    return max(1, PANEL // max(1, n_each)) if device.type == "cpu" else None


def int8_product(rows_BX: Tensor, held_QX: Tensor) -> Tensor:
    """[B, Q] float32 `rows held'` of int8 numbers: sums of `ADDED` products are exact."""
    total_BQ = torch.zeros(len(rows_BX), len(held_QX), device=rows_BX.device)
    for rows_BC, held_QC in zip(rows_BX.split(ADDED, 1), held_QX.split(ADDED, 1), strict=True):
        total_BQ += torch._int_mm(rows_BC, held_QC.T)  # pyright: ignore[reportPrivateImportUsage]
    return total_BQ


def whole_rows(batches: Sequence[Factors], dtype: torch.dtype) -> Stored:
    """[B, O I] the matrices of the batches' rows. Narrow ones have rows of zeros up to a multiple of `TOGETHER`: few shapes of products are
    few to compile."""
    n, like = sum(len(one.g_BTO) for one in batches), batches[0].g_BTO
    missing = -n % TOGETHER if dtype.itemsize < 4 else 0
    rows_BX = torch.empty(n + missing, like.shape[-1] * batches[0].a_BTI.shape[-1], dtype=dtype, device=like.device)
    rows_BX[n:] = 0
    scale_B1 = torch.zeros(len(rows_BX), 1, device=like.device) if dtype == torch.int8 else None
    done = 0
    for g_bOI in chain.from_iterable(map(each_dense, batches)):
        g_bX = g_bOI.flatten(1)
        some = slice(done, done + len(g_bX))
        if scale_B1 is None:
            rows_BX[some] = g_bX
        else:
            _round_into(rows_BX[some], scale_B1[some], g_bX)
        done = some.stop
    return Stored(rows_BX, scale_B1)


def _round_into(levels_bX: Tensor, scale_b1: Tensor, g_bX: Tensor) -> None:
    """As `codec.encode` rounds one block. A single row, which is still in the cache, is consumed for it: fewer sweeps."""
    least, most = torch.aminmax(g_bX)
    largest = max(-float(least), float(most))
    if len(g_bX) == 1 and SMALLEST <= largest / 127 < torch.inf:
        scale_b1.fill_(largest / 127)
        levels_bX.copy_(g_bX.mul_(127 / largest).round_())
        return
    rounded = encode(g_bX.float(), "int8", _of(g_bX))
    assert rounded.scale_NK is not None
    levels_bX.copy_(rounded.values_ND)
    scale_b1.copy_(rounded.scale_NK)


def _of(rows_BX: Tensor) -> Layout:
    """One block of their width."""
    return Layout((Block("", (rows_BX.shape[1],), (rows_BX.shape[1],)),))


def _multiplied(wide: torch.dtype, stored: torch.dtype, device: torch.device) -> torch.dtype:
    """The narrowest dtype that loses no more than holding lost, of those that this device multiplies faster than float32."""
    if stored == wide or wide != torch.float32:
        return wide
    if stored == torch.int8 and device.type == "cpu" and int8_is_fast():
        return torch.int8
    return torch.bfloat16 if device.type == "cuda" or bfloat16_is_fast() else wide
