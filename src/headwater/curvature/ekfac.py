"""EK-FAC: K-FAC's eigenbasis, with the variance of the gradients along each of its directions measured instead of multiplied out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from headwater.curvature.damping import RULE, Damping
from headwater.curvature.kronecker import (
    LARGEST_SIDE,
    Basis,
    Precision,
    SumsOfSquares,
    as_matrices,
    bases,
    enough_positions,
    fit_bases,
    mean_of,
    mean_squares,
    precision_over,
    rotated_positions,
    solve_in_basis,
    zip_blocks,
)
from headwater.curvature.operators import check_width, finite, finite_blocks, over_factors
from headwater.gradient.factors import each_dense
from headwater.types import FactorBatch, Factors, Labels, Layout, ModelSource, Solve, Source, State

FEW = 4  # positions for each output: with fewer, one draw chooses the basis and is measured along it


@dataclass(frozen=True)
class EKFAC:
    """`C = (Q_S (x) Q_A) diag(E_n[(Q_S' G_n Q_A)^2]) (Q_S (x) Q_A)'` per block, Q_S and Q_A the eigenvectors of K-FAC's S and A.

    George et al. 2018, eq. 10; Grosse et al. 2023, eq. 18-21, whose damping is the default. Among all matrices diagonal in that basis
    it is the closest to the Fisher matrix of the same gradients, so never further from it than K-FAC in that basis. `labels` "sampled"
    makes its eigenvalues those of the true Fisher (the Gauss-Newton matrix), "true" of the empirical one. `basis_labels` are those of the
    basis: where not given, beside sampled eigenvalues those of a second draw, since a draw that measures the basis it chose finds the
    eigenvalues too large and on few rows ranks worse (with fewer than four positions for each output it is one draw all the same: the basis
    of another would be poor, or in part arbitrary). Where the source is stored rows, the basis is that of the rows' own second moments:
    curvature of the sketch, in the sketch.

    `precision` is that of the products that are averaged over rows and positions; "auto" is bfloat16 where the processor is fast at it.

    Cost: two passes over the rows; one where the source keeps their factors; one where it keeps the rows, and then a further backward pass
    for as many batches, spread evenly, as give a second draw's basis 64 positions for each number of the longest side. A pass more where
    that basis turns out to have fewer than four positions for an output, and is left. Stored rows: two scans. Eigendecompositions; D
    numbers of state.
    """

    damping: float | str = RULE
    labels: Labels = "sampled"
    basis_labels: Labels | None = None
    precision: Precision = "auto"

    name = "ekfac"
    summary = "EK-FAC: K-FAC's eigenbasis with measured eigenvalues"
    reference = "George et al. 2018, eq. 10; Grosse et al. 2023, eq. 18-21"
    cost = "two passes over the rows (stored: two scans), eigendecompositions"

    @property
    def labels_of_basis(self) -> Labels:
        return self.basis_labels or ("resampled" if self.labels == "sampled" else self.labels)

    def fit(self, source: Source) -> State:
        precision = precision_over(source, self.precision)
        drawn_again = isinstance(source, ModelSource) and _keeps(source, self.labels) and not _keeps(source, self.labels_of_basis)
        enough = enough_positions(source.layout) if drawn_again else None  # a backward pass that is for the basis alone
        state = dict(fit_bases(source, self.labels_of_basis, precision, positions=enough))
        if self.basis_labels is None and _is_open(state, source):
            state = dict(fit_bases(source, self.labels, precision))
        eigenvalues_D = corrected_eigenvalues(state, source, self.labels, self.precision)
        means = [part.double().mean() for part in source.layout.split(eigenvalues_D).values()]
        return {**state, "eigenvalues": eigenvalues_D, "damping": Damping.parse(self.damping).resolve(torch.stack(means))}

    def solve(self, state: State, source: Source, b_KD: Tensor) -> Solve:
        check_width(b_KD, source.layout)
        return Solve(solve_in_basis(state, source.layout, b_KD, precision_over(source, self.precision)), "closed_form")


def _is_open(state: State, source: Source) -> bool:
    """Whether a block has fewer than `FEW` positions for each output: a draw's basis is then poor for others, or in part arbitrary."""
    if not isinstance(source, ModelSource):
        return False
    outputs_L = torch.tensor([block.shape[0] if block.shape[0] <= LARGEST_SIDE else 0 for block in source.layout.blocks])
    return bool((state["positions"] * len(source) < FEW * outputs_L).any())


def corrected_eigenvalues(state: State, source: Source, labels: Labels, precision: Precision = "float32") -> Tensor:
    """[D] `E_n[(Q_S' G_n Q_A)^2]` in the layout's order: squares of each row's whole gradient, not of its positions."""
    layout, rotated = source.layout, bases(state, source.layout)
    if isinstance(source, ModelSource) and not _keeps(source, labels):
        rotated = {name: basis.cast(precision) for name, basis in rotated.items()}

        def term(so_far: SumsOfSquares, batch: FactorBatch) -> None:
            so_far.add(len(batch.positions), _rotated_factors(batch, rotated, precision))

        return mean_of(over_factors(source, labels, lambda: SumsOfSquares(layout), term))
    rows = (finite(rows_BD) for _, rows_BD in source.rows(labels)) if isinstance(source, ModelSource) else finite_blocks(source)
    return mean_squares(layout, ((len(rows_BD), _rotated_rows(rows_BD, layout, rotated)) for rows_BD in rows))


def _keeps(source: ModelSource, labels: Labels) -> bool:
    keeps = getattr(source, "keeps", None)
    return bool(keeps and keeps(labels))


def _rotated_factors(batch: FactorBatch, rotated: Mapping[str, Basis], precision: Precision) -> Iterator[tuple[str, Tensor]]:
    """(block, [b, O, I]) `sum_t (Q_S' d_t)(Q_A' a_t)'`, row by row; an input that several blocks read is rotated once."""
    inputs: dict[int, Tensor] = {}
    for name, one in batch.factors.items():
        basis = rotated[name]
        if id(one.a_BTI) not in inputs:
            inputs[id(one.a_BTI)] = rotated_positions(basis.right, one.a_BTI, precision)
        turned = Factors(inputs[id(one.a_BTI)], rotated_positions(basis.left, one.g_BTO, precision))
        yield from ((name, g_bOI) for g_bOI in each_dense(turned))


def _rotated_rows(rows_ND: Tensor, layout: Layout, rotated: Mapping[str, Basis]) -> Iterator[tuple[str, Tensor]]:
    for block, part in zip_blocks(layout, rows_ND):
        yield block.name, rotated[block.name].rotate(as_matrices(part, block))
