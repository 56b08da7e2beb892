"""The product of queries with every stored row: scanned in the stored dtype, and exact where a rank is decided.

Q queries · N rows · n rows of a block · D numbers of a row · K best rows

On a processor with bfloat16 arithmetic a bfloat16 index is scanned without upcasting it: the queries are rounded to bfloat16
too, and sums run in float32. That costs about three digits, so the rows that decide an answer are scored again in float64 from the
numbers that are stored. Which rows those are is not guessed: the error of each scanned product is bounded, and every row
that could be among the best by that bound is scored again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from headwater.index.codec import SMALLEST, Stored, decode
from headwater.types import DataError, Layout, UsageError

RESCORED = 100  # rows at either end of each query whose products are exact in `products`
QUERY_GROUP = 64  # always this many columns, padded with zeros: a query's numbers do not depend on its company
EXACT_ROWS = 256  # rows held in float64 at once

UNIT_F32, UNIT_BF16 = 2.0**-24, 2.0**-8  # half the distance between neighbouring numbers, relative


class Rows(Protocol):
    """What a scan asks of an index. Both kinds of index have it."""

    @property
    def layout(self) -> Layout: ...

    def stored_blocks(self, feature: str) -> Iterator[tuple[int, Stored]]:
        """(position of the first row, rows as stored), in order."""
        ...

    def stored_rows(self, feature: str, positions: Sequence[int] | np.ndarray) -> Stored: ...

    def norms(self, feature: str) -> Tensor:
        """[N] of the stored numbers; NaN for a bad row."""
        ...

    def __len__(self) -> int: ...


class Bounded(NamedTuple):
    """One query's products: float64's, over the stored numbers, are within `values ± errors`. A bad row's error is NaN."""

    values_N: Tensor
    errors_N: Tensor


class Scan(NamedTuple):
    """Products as the scan found them, and what bounds their errors: `lost |row| + unit |value| + tiny`."""

    values_QN: Tensor
    lost_Q: Tensor
    norms_N: Tensor
    unit: float
    tiny_N: Tensor

    def query(self, q: int, scale_N: Tensor | None = None) -> Bounded:
        """One query at a time: its numbers stay in the cache. 0.1 % is added for the roundings of the bound itself.

        What overflowed, in the product or in the bound, is known to within infinity.
        """
        values_N = self.values_QN[q]
        errors_N = torch.add(self.tiny_N, self.norms_N, alpha=1.001 * float(self.lost_Q[q])).add_(values_N.abs(), alpha=1.001 * self.unit)
        if not torch.isfinite(errors_N.sum()):
            overflown_N = ~torch.isfinite(errors_N) & ~torch.isnan(self.norms_N)
            values_N, errors_N = values_N.masked_fill(overflown_N, 0.0), errors_N.masked_fill_(overflown_N, torch.inf)
        if scale_N is None:
            return Bounded(values_N, errors_N)
        return Bounded(values_N * scale_N, errors_N * scale_N.abs() + UNIT_F32 * (values_N * scale_N).abs())


class Top(NamedTuple):
    """The best rows of each query, best first; equal products stand in the order of the rows. float64."""

    values_QK: Tensor
    positions_QK: Tensor


def products(index: Rows, feature: str, queries_QD: Tensor, *, scale_N: Tensor | None = None) -> Tensor:
    """[Q, N] float32 inner products with every row, times `scale_N` where given (1 / norm for cosines).

    Cost Q N D multiplications and one pass over the stored bytes. In the fast scan of a bfloat16 index the `RESCORED` highest and
    lowest of each query are exact and in their true places; the others are within about 2^-8 of themselves and of the
    query's and row's norms. Bad rows are NaN.
    """
    if not _scans_fast(index, feature):
        values_QN = _products_plain(index, feature, queries_QD).masked_fill_(torch.isnan(index.norms(feature)), torch.nan)
        return values_QN if scale_N is None else values_QN * scale_N
    scan, exact = _scan(index, feature, queries_QD), _Exact(index, feature, scale_N)
    values_QN = scan.values_QN * (torch.ones(()) if scale_N is None else scale_N)
    for q in torch.isfinite(queries_QD).all(1).nonzero().flatten().tolist():
        values_N, errors_N = scan.query(q, scale_N)
        for sign in (1, -1):
            positions_C, values_C = _candidates(exact, Bounded(sign * values_N, errors_N), sign * queries_QD[q], RESCORED)
            values_QN[q, positions_C] = (sign * values_C).float()
    return values_QN.masked_fill_(torch.isnan(scan.norms_N), torch.nan)


def _products_plain(index: Rows, feature: str, queries_QD: Tensor) -> Tensor:
    """[Q, N]: each block in float32, times the queries. What the fast way is held against."""
    blocks = [queries_QD.float() @ decode(stored, index.layout).T for _, stored in index.stored_blocks(feature)]
    return torch.cat(blocks, 1) if blocks else torch.empty(len(queries_QD), 0)


def top_products(index: Rows, queries_QD: Tensor, k: int, *, feature: str = "gradient", scale_N: Tensor | None = None) -> Top:
    """The k rows with the highest products, and those products: float64's answer over the stored numbers, at the price of a scan.

    k becomes the number of rows that are not bad, where that is smaller. Raises UsageError for k below 1, DataError for a query
    that is not finite.
    """
    if k < 1:
        raise UsageError(f"k is {k}, expected 1 or more rows")
    if not torch.isfinite(queries_QD).all():
        bad = (~torch.isfinite(queries_QD).all(1)).nonzero().flatten().tolist()
        raise DataError(
            f"queries {bad[:5]} have numbers that are not finite, nothing can be ranked by them. Check the model's dtype and the prompt."
        )
    scan, exact = _scan(index, feature, queries_QD), _Exact(index, feature, scale_N)
    k = min(k, int((~torch.isnan(scan.norms_N)).sum()))
    tops = [_best(*_candidates(exact, scan.query(q, scale_N), query_D, k), k) for q, query_D in enumerate(queries_QD)]
    return Top(*(torch.stack(column) for column in zip(*tops, strict=True)))


# ------------------------------------------------------------------------------------------------------- the scan


def bfloat16_is_fast() -> bool:
    """Whether this processor multiplies bfloat16 numbers and sums them in float32."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)  # not in every version of torch that we accept
    return torch.backends.mkldnn.is_available() and bool(supported())


def int8_is_fast() -> bool:
    """Whether this processor multiplies int8 numbers and sums them in int32, and does so exactly: without VNNI sums of two may saturate."""
    supported = getattr(torch.cpu, "_is_vnni_supported", lambda: False)
    return torch.backends.mkldnn.is_available() and hasattr(torch, "_int_mm") and bool(supported())


def _scans_fast(index: Rows, feature: str) -> bool:
    first = next(iter(index.stored_blocks(feature)), None)
    return first is not None and first[1].values_ND.dtype == torch.bfloat16 and bfloat16_is_fast()


def _scan(index: Rows, feature: str, queries_QD: Tensor) -> Scan:
    return (_scan_bfloat16 if _scans_fast(index, feature) else _scan_float32)(index, feature, queries_QD.float())


def _scan_float32(index: Rows, feature: str, queries_QD: Tensor) -> Scan:
    """Only the sums round: a sum of D products is within `D u |q| |row|` in whatever order it is taken."""
    lost_Q, norms_N = _summation(queries_QD) * queries_QD.norm(dim=1), index.norms(feature)
    return Scan(_products_plain(index, feature, queries_QD), lost_Q, norms_N, UNIT_F32, _tiny(queries_QD, norms_N))


def _scan_bfloat16(index: Rows, feature: str, queries_QD: Tensor) -> Scan:
    """Three roundings: of the query (Cauchy-Schwarz bounds what that moves), of the sum, and of the result to bfloat16."""
    rounded_QD, norms_N = queries_QD.bfloat16(), index.norms(feature)
    lost_Q = (queries_QD - rounded_QD.float()).norm(dim=1) + _summation(queries_QD) * rounded_QD.float().norm(dim=1)
    return Scan(_bfloat16_values(index, feature, rounded_QD), lost_Q, norms_N, UNIT_BF16, _tiny(queries_QD, norms_N))


def _bfloat16_values(index: Rows, feature: str, queries_QD: Tensor) -> Tensor:
    Q = len(queries_QD)
    padded_QD = torch.nn.functional.pad(queries_QD, (0, 0, 0, -Q % QUERY_GROUP))
    values_NQ = torch.empty(len(index), len(padded_QD), dtype=torch.bfloat16)
    for start, stored in index.stored_blocks(feature):
        block_nQ = values_NQ[start : start + len(stored.values_ND)]
        for g in range(0, len(padded_QD), QUERY_GROUP):
            block_nQ[:, g : g + QUERY_GROUP] = stored.values_ND @ padded_QD[g : g + QUERY_GROUP].T
    return values_NQ[:, :Q].float().T.contiguous()


def _summation(queries_QD: Tensor) -> float:
    """The relative error of a float32 sum over D, with room for the float32 roundings of this bound itself."""
    return 1.01 * (queries_QD.shape[1] + 16) * UNIT_F32


def _tiny(queries_QD: Tensor, norms_N: Tensor) -> Tensor:
    """[N] what is lost where numbers or partial sums below the smallest normal float32 are taken for zero."""
    D, largest = queries_QD.shape[1], queries_QD.abs().amax() if queries_QD.numel() else torch.zeros(())
    return SMALLEST * D * (2 + largest + norms_N)


# ------------------------------------------------------------------------------------------------- exact products


class _Exact:
    """float64 products with chosen rows. One buffer serves all calls: fresh pages for each would cost as much as the sums."""

    def __init__(self, index: Rows, feature: str, scale_N: Tensor | None) -> None:
        self.index, self.feature = index, feature
        self.scale_N = None if scale_N is None else scale_N.double()
        self.buffer_nD: Tensor | None = None

    def __call__(self, positions_C: Tensor, query_D: Tensor) -> Tensor:
        query_D = query_D.double()
        if self.buffer_nD is None:
            self.buffer_nD = torch.empty(EXACT_ROWS, len(query_D), dtype=torch.float64)
        values_C = torch.cat([self._chunk(chunk, query_D, self.buffer_nD) for chunk in positions_C.split(EXACT_ROWS)])
        return values_C if self.scale_N is None else values_C * self.scale_N[positions_C]

    def _chunk(self, positions_C: Tensor, query_D: Tensor, buffer_nD: Tensor) -> Tensor:
        stored = self.index.stored_rows(self.feature, positions_C.numpy())
        rows_CD = buffer_nD[: len(positions_C)]
        rows_CD.copy_(stored.values_ND if stored.scale_NK is None else decode(stored, self.index.layout))
        return rows_CD @ query_D


def _candidates(exact: _Exact, found: Bounded, query_D: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Positions that hold the k highest products of one query for certain (and some others), and their exact products.

    k rows are certainly as high as the k-th highest lower bound, so whoever is among the k best reaches it.
    """
    lowest_N, highest_N = found.values_N - found.errors_N, found.values_N + found.errors_N
    floors_K = torch.nan_to_num_(lowest_N, nan=-torch.inf, neginf=-torch.inf).topk(min(k, len(lowest_N))).values
    floor = floors_K.amin() if len(floors_K) else torch.inf
    positions_C = (highest_N >= floor).nonzero().flatten()  # a bad row's NaN reaches nothing
    return positions_C, exact(positions_C, query_D)


def _best(positions_C: Tensor, values_C: Tensor, k: int) -> Top:
    order = values_C.argsort(descending=True, stable=True)[:k]
    return Top(values_C[order], positions_C[order])
