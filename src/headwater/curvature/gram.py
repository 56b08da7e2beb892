"""Products of stored rows with themselves, in float64: `G G'` over examples, or `G'G` over numbers, whichever is smaller.

Letters: N rows · P rows held at once · D numbers of a row · M the smaller of N and the width of a piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from headwater.curvature.kronecker import accumulate
from headwater.curvature.operators import finite_blocks
from headwater.types import Source

HELD_BYTES = 1 << 30  # rows kept at once; more of them are read again for each such part
COLUMNS = 4096  # numbers of a row cast to float64 at once


def by_examples(n_rows: int, width: int) -> bool:
    """Whether Woodbury's form is the cheaper: `N^2 D + N^3/3` multiplications against `N D^2 + D^3/3`, which is to ask whether N < D."""
    return n_rows < width


def smaller_products(source: Source, parts: Sequence[slice]) -> tuple[list[Tensor], int]:
    """([M, M] float64 for each piece of a row, N): `G G'` [N, N] or `G'G` [D, D], symmetric; N counts the finite rows.

    One scan where the rows fit into `HELD_BYTES`, which nothing but `G G'` needs. Cost N M D multiplications, half of them by symmetry.
    """
    sizes = [min(len(source), part.stop - part.start) for part in parts]
    totals, n = [torch.zeros(size, size, dtype=torch.float64) for size in sizes], 0
    for i, (here, rows_PD) in enumerate(panels(source)):
        for total, part in zip(totals, parts, strict=True):
            if by_examples(len(source), part.stop - part.start):
                _add_gram(total[here, here], rows_PD[:, part])
                for before, earlier_PD in islice(panels(source), i):
                    total[before, here] = _cross(earlier_PD[:, part], rows_PD[:, part])
            else:
                _add_covariance(total, rows_PD[:, part])
        n = here.stop
    kept = [n if by_examples(len(source), part.stop - part.start) else part.stop - part.start for part in parts]
    return [_mirrored(total[:size, :size]) for total, size in zip(totals, kept, strict=True)], n


def panels(source: Source) -> Iterator[tuple[slice, Tensor]]:
    """(their places among the finite rows, the rows [P, D]), as many at a time as may be held."""
    held: list[Tensor] = []
    start = 0
    for rows_ND in finite_blocks(source):
        held.append(rows_ND)
        if sum(rows.nbytes for rows in held) >= HELD_BYTES:
            yield (place := slice(start, start + sum(map(len, held)))), _joined(held)
            start, held = place.stop, []
    if held:
        yield slice(start, start + sum(map(len, held))), _joined(held)


def _joined(held: list[Tensor]) -> Tensor:
    return held[0] if len(held) == 1 else torch.cat(held)


def _add_gram(total_PP: Tensor, rows_PD: Tensor) -> None:
    for columns_Pd in rows_PD.split(COLUMNS, dim=1):
        accumulate(total_PP, columns_Pd.double().T)


def _add_covariance(total_DD: Tensor, rows_PD: Tensor) -> None:
    for rows_nD in rows_PD.split(COLUMNS):
        accumulate(total_DD, rows_nD.double())


def _cross(earlier_PD: Tensor, rows_PD: Tensor) -> Tensor:
    pairs = zip(earlier_PD.split(COLUMNS, dim=1), rows_PD.split(COLUMNS, dim=1), strict=True)
    return sum((left.double() @ right.double().T for left, right in pairs), torch.zeros((), dtype=torch.float64))


def _mirrored(upper_MM: Tensor) -> Tensor:
    """The symmetric matrix of which only the upper triangle was computed."""
    return torch.triu(upper_MM) + torch.triu(upper_MM, 1).T
