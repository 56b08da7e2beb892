"""A gradient row as it is stored: float32, bfloat16, or int8 with a scale for each row and block.

N rows · D numbers of a row · K blocks of the layout
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from headwater.types import Layout

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
SMALLEST = 2.0**-126  # a float32 below it has lost digits, and the processor may read and write zero for it
NORM_NUMBERS = 1 << 17  # whose float64 copies are held at once when norms are taken: a megabyte stays in the cache


class Stored(NamedTuple):
    """Rows in their stored dtype. `scale_NK` is there for int8 alone: the number is `values * scale` of its block."""

    values_ND: Tensor
    scale_NK: Tensor | None = None

    def rows(self, positions: slice | Tensor) -> Stored:
        """Chosen rows; `index_select` copies whole rows, where indexing with a tensor takes five times as long."""
        select = (lambda part: part[positions]) if isinstance(positions, slice) else (lambda part: part.index_select(0, positions))
        return Stored(select(self.values_ND), None if self.scale_NK is None else select(self.scale_NK))


def encode(rows_ND: Tensor, dtype: str, layout: Layout) -> Stored:
    """float32 rows in the dtype of the index. int8 is symmetric: `scale = max|x| / 127` over the row's numbers in a block.

    What is not finite stays so: in int8 the whole block of that row gets a NaN scale.
    """
    if dtype != "int8":
        return Stored(rows_ND.to(TORCH_DTYPES[dtype]).contiguous())
    values_ND = torch.empty(rows_ND.shape, dtype=torch.int8)
    scales = []
    for start, stop in _spans(layout):
        block = rows_ND[:, start:stop]
        scale_N1 = block.abs().amax(1, keepdim=True) / 127
        levels = block / scale_N1
        if not bool(((scale_N1 >= SMALLEST) & (scale_N1 < torch.inf)).all()):
            scale_N1[~torch.isfinite(scale_N1)] = torch.nan
            levels = torch.nan_to_num(levels, nan=0.0).clamp_(-127, 127)  # 0/0 of a block of zeros, NaN of one that is not finite
        values_ND[:, start:stop] = levels.round_()
        scales.append(scale_N1)
    return Stored(values_ND, torch.cat(scales, 1))


def decode(stored: Stored, layout: Layout | None) -> Tensor:
    """[N, D] float32: the numbers that the index holds. float32 rows are not copied."""
    rows_ND = stored.values_ND.float()
    if stored.scale_NK is not None:
        assert layout is not None, "int8 rows are scaled by the blocks of a layout"
        for k, (start, stop) in enumerate(_spans(layout)):
            rows_ND[:, start:stop] *= stored.scale_NK[:, k : k + 1]
    return rows_ND


def norms(stored: Stored, layout: Layout | None) -> Tensor:
    """[N] float32 Euclidean norms of the stored numbers; NaN for a row that is not finite.

    numpy's sums do not depend on the number of threads, torch's may; these norms are written to disk, where bytes count.
    """
    n, width = stored.values_ND.shape
    step = max(1, NORM_NUMBERS // max(width, 1))
    parts = (decode(stored.rows(slice(i, i + step)), layout).numpy().astype(np.float64) for i in range(0, n, step))
    squares_N = np.concatenate([np.zeros(0), *(np.square(part, out=part).sum(1) for part in parts)])
    with np.errstate(over="ignore"):  # a finite row can be longer than float32 can say
        return torch.from_numpy(np.where(np.isfinite(squares_N), np.sqrt(squares_N), np.nan).astype(np.float32))


def _spans(layout: Layout) -> list[tuple[int, int]]:
    return list(zip(layout.offsets[:-1], layout.offsets[1:], strict=True))
