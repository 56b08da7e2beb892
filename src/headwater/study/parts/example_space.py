"""Weight tensors in example space: what a preconditioner makes of a score follows from the products and the rows' Gram matrix alone.

Q queries · N rows · D numbers of a gradient row · d numbers of one weight tensor · L layers · C = (1/N) sum_n g_n g_n' of one tensor
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from headwater.curvature.damping import RULE, Damping
from headwater.types import Layout

DAMPING = Damping.parse(RULE).factor  # the paper's lambda of a tensor: a tenth of its mean eigenvalue


@dataclass(frozen=True, eq=False)
class Piece:
    """One weight tensor of `size` numbers in layer `layer`: `products_QN` is `v_q . g_n`, `gram_NN` is `g_n . g_m`. float64."""

    layer: int
    size: int
    products_QN: Tensor
    gram_NN: Tensor

    @property
    def squares_N(self) -> Tensor:
        return self.gram_NN.diagonal()

    @property
    def mean_eigenvalue(self) -> float:
        """trace(C) / d."""
        return float(self.squares_N.mean()) / self.size

    @cached_property
    def eigenvalues_N(self) -> Tensor:
        """Of `G G' / N`, in ascending order: those of C that are not zero are among them. Cost N^3, once."""
        return self._spectrum[0].clamp(min=0) / len(self.gram_NN)

    @property
    def vectors_NN(self) -> Tensor:
        return self._spectrum[1]

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        values_N, vectors_NN = torch.linalg.eigh(self.gram_NN)
        return values_N, vectors_NN


def pieces(layout: Layout, rows_ND: Tensor, queries_QD: Tensor) -> Iterator[Piece]:
    """The tensors one at a time; one whose gradient is zero in every row has no part in any score. Cost N (N + Q) d each."""
    for name, part in parts(layout):
        rows_Nd = rows_ND[:, part].double()
        gram_NN = rows_Nd @ rows_Nd.T
        if gram_NN.diagonal().any():
            yield Piece(layer_of(name), part.stop - part.start, queries_QD[:, part].double() @ rows_Nd.T, gram_NN)


def parts(layout: Layout) -> list[tuple[str, slice]]:
    """(name, where its numbers lie in a row) of each tensor."""
    return [(block.name, slice(*ends)) for block, ends in zip(layout.blocks, pairwise(layout.offsets), strict=True)]


def layer_of(name: str) -> int:
    """The number of the layer in a parameter's name; -1 where it is in none."""
    return next((int(part) for part in name.split(".") if part.isdigit()), -1)


# ------------------------------------------------------------------------------------------------------ preconditioners


class Preconditioned(NamedTuple):
    """`v_q' P g_n` and `g_n' P g_n` of one tensor."""

    products_QN: Tensor
    effects_N: Tensor


Preconditioner = Callable[[Piece], Preconditioned]


def plain(piece: Piece) -> Preconditioned:
    """P = 1."""
    return Preconditioned(piece.products_QN, piece.squares_N)


def damped(piece: Piece, *, factor: float = DAMPING) -> Preconditioned:
    """P = 1 / lambda: what is left of any inverse where the curvature is far below its damping."""
    damping = factor * piece.mean_eigenvalue
    return Preconditioned(piece.products_QN / damping, piece.squares_N / damping)


def datainf(piece: Piece, *, factor: float = DAMPING) -> Preconditioned:
    """P = (1/N) sum_i (g_i g_i' + lambda)^-1 = (1/N) sum_i [1 - g_i g_i' / (lambda + |g_i|^2)] / lambda (Kwon et al. 2024, eq. 5)."""
    damping, n = factor * piece.mean_eigenvalue, len(piece.gram_NN)
    weights_N = 1 / (n * (damping + piece.squares_N))
    taken_QN = (piece.products_QN * weights_N) @ piece.gram_NN
    taken_N = (piece.gram_NN.square() * weights_N).sum(1)
    return Preconditioned((piece.products_QN - taken_QN) / damping, (piece.squares_N - taken_N) / damping)


def fisher(piece: Piece, *, factor: float = DAMPING) -> Preconditioned:
    """P = (C + lambda)^-1, exactly: `G P = (G G'/N + lambda)^-1 G`. Any further damping costs two products, no decomposition."""
    damping = factor * piece.mean_eigenvalue
    inverse_N = 1 / (piece.eigenvalues_N + damping)
    products_QN = (piece.products_QN @ piece.vectors_NN * inverse_N) @ piece.vectors_NN.T
    effects_N = piece.vectors_NN.square() @ (len(piece.gram_NN) * piece.eigenvalues_N * inverse_N)
    return Preconditioned(products_QN, effects_N)


def preconditioners(dampings: Sequence[float]) -> dict[str, Preconditioner]:
    """By name; "fisher 10" is the exact Fisher matrix with a damping of 10 times the tensor's mean eigenvalue."""
    exact = {fisher_name(factor): partial(fisher, factor=factor) for factor in dampings}
    return {"none": plain, "tensor damping": damped, "datainf": datainf, **exact}


def fisher_name(factor: float) -> str:
    return f"fisher {factor:g}"


# ------------------------------------------------------------------------------------------------------------- by layer


@dataclass(frozen=True, eq=False)
class Layers:
    """Summed over the tensors of each layer: `v' P g`, `g' P g` and `|g|^2`. `numbers` are those of the layers."""

    numbers: tuple[int, ...]
    products_LQN: Tensor
    effects_LN: Tensor
    squares_LN: Tensor

    @staticmethod
    def zeros(numbers: Sequence[int], n_queries: int, n_rows: int) -> Layers:
        shape = len(numbers), n_queries, n_rows
        by_row_LN = torch.zeros(2, len(numbers), n_rows, dtype=torch.float64)
        return Layers(tuple(numbers), torch.zeros(shape, dtype=torch.float64), by_row_LN[0], by_row_LN[1])

    def add(self, layer: int, found: Preconditioned, squares_N: Tensor) -> None:
        at = self.numbers.index(layer)
        self.products_LQN[at] += found.products_QN
        self.effects_LN[at] += found.effects_N
        self.squares_LN[at] += squares_N


def by_layer(layout: Layout, rows_ND: Tensor, queries_QD: Tensor, named: Mapping[str, Preconditioner]) -> dict[str, Layers]:
    """{name: what that preconditioner makes of the gradients}. Cost: a Gram matrix and its decomposition a tensor, in float64."""
    found = {name: Layers.zeros(layer_numbers(layout), len(queries_QD), len(rows_ND)) for name in named}
    for piece in pieces(layout, rows_ND, queries_QD):
        for name, preconditioner in named.items():
            found[name].add(piece.layer, preconditioner(piece), piece.squares_N)
    return found


def by_layer_solved(layout: Layout, rows_ND: Tensor, solved_QD: Tensor, solved_ND: Tensor) -> Layers:
    """The same of a preconditioner that is applied to whole rows: `solved_QD` is `P v_q`, `solved_ND` is `P g_n`."""
    found = Layers.zeros(layer_numbers(layout), len(solved_QD), len(rows_ND))
    for name, part in parts(layout):
        rows_Nd = rows_ND[:, part].double()
        products_QN = solved_QD[:, part].double() @ rows_Nd.T
        effects_N = (solved_ND[:, part].double() * rows_Nd).sum(1)
        found.add(layer_of(name), Preconditioned(products_QN, effects_N), rows_Nd.square().sum(1))
    return found


def layer_numbers(layout: Layout) -> list[int]:
    return sorted({layer_of(block.name) for block in layout.blocks})
