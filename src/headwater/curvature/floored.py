"""The second moment of rows, block by block, with a floor under its eigenvalues: inverted without ever being ill-conditioned.

Letters: N rows · K vectors · D numbers of a row · d numbers of a block · r eigenvectors kept · L blocks of the layout.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from headwater.curvature.gram import by_examples, panels, smaller_products
from headwater.curvature.operators import check_width, pieces
from headwater.types import Layout, Source, State

NEGLIGIBLE = 1e-12  # of the largest eigenvalue: below this float64's rounding in `G G'` is all that is left


def fit_floored(source: Source, floor: float) -> State:
    """`R = sum_n g_n g_n'` of each block, each eigenvalue raised to `floor` times their mean where it is less.

    {"vectors/l" [d, r], "values/l" [r], "floor" [L]}, float64. A direction outside the r eigenvectors has the floor's value. Cost: one scan
    with N d min(N, d) multiplications and an eigendecomposition of min(N, d) a block; a second scan where N < d.
    """
    parts = pieces(source.layout, joint=False)
    products, _ = smaller_products(source, parts)
    floors = [floor * product.trace() / (part.stop - part.start) for product, part in zip(products, parts, strict=True)]
    state: dict[str, Tensor] = {"floor": torch.stack(floors)}
    by_rows = [by_examples(len(source), part.stop - part.start) for part in parts]
    for i, (product, of_rows) in enumerate(zip(products, by_rows, strict=True)):
        values_r, vectors = _leading(product) if of_rows else torch.linalg.eigh(product)
        state |= {f"values/{i}": values_r.clamp(min=floors[i]), f"vectors/{i}": vectors}
    return {**state, **_carried_over(source, state, [(i, part) for i, part in enumerate(parts) if by_rows[i]])}


def solve_floored(state: State, layout: Layout, b_KD: Tensor) -> Tensor:
    """[K, D] float64 `R^-1 b`. A block where no row has anything gives 0: no evidence there."""
    check_width(b_KD, layout)
    x_KD = b_KD.double()
    for i, part in enumerate(pieces(layout, joint=False)):
        floor, values_r, vectors_dr = state["floor"][i], state[f"values/{i}"], state[f"vectors/{i}"]
        weights_r = 1 / values_r - 1 / floor
        along_Kr = x_KD[:, part] @ vectors_dr
        x_KD[:, part] = x_KD[:, part] / floor + (along_Kr * weights_r) @ vectors_dr.T if floor > 0 else 0.0
    return x_KD


def _leading(product_NN: Tensor) -> tuple[Tensor, Tensor]:
    """([r], [N, r]) eigenvalues of `G G'` beyond rounding, and `V / sqrt(values)`, which `G'` turns into eigenvectors of `G'G`."""
    values_N, vectors_NN = torch.linalg.eigh(product_NN)
    kept_N = values_N > NEGLIGIBLE * values_N[-1:].clamp(min=torch.finfo(values_N.dtype).tiny)
    return values_N[kept_N], vectors_NN[:, kept_N] / values_N[kept_N].sqrt()


def _carried_over(source: Source, state: State, of_rows: Sequence[tuple[int, slice]]) -> State:
    """Eigenvectors over numbers from those over examples: `G' V / sqrt(values)`, in one scan for all blocks."""
    if not of_rows:
        return {}
    found = {i: torch.zeros(part.stop - part.start, state[f"vectors/{i}"].shape[1], dtype=torch.float64) for i, part in of_rows}
    for here, rows_ND in panels(source):
        for i, part in of_rows:
            found[i] += rows_ND[:, part].double().T @ state[f"vectors/{i}"][here]
    return {f"vectors/{i}": vectors_dr for i, vectors_dr in found.items()}
