"""Deliberately broken curvatures, each with a silent fault: the check that is there for it must turn red."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from headwater.curvature import CG, DataInf, Fisher
from headwater.curvature.operators import check_width, finite_blocks, mean_eigenvalues, spread
from headwater.testing import check_curvature
from headwater.types import Solve, Source, State


def dense(source: Source) -> tuple[Tensor, int]:
    """(sum of g g', N) of the finite rows: the plain way, in which faults are easily planted."""
    rows_ND = torch.cat(list(finite_blocks(source))).double()
    return rows_ND.T @ rows_ND, len(rows_ND)


def inverse_times(matrix_DD: Tensor, b_KD: Tensor) -> Solve:
    return Solve(torch.linalg.solve(matrix_DD, b_KD.double().T).T.to(b_KD.dtype), "closed_form")


@dataclass(frozen=True)
class Dense(Fisher):
    """The joint Fisher matrix inverted the plain way, with the damping of each block: correct, so that a fault is what breaks it."""

    def fit(self, source: Source) -> State:
        return {"damping": super().fit(source)["damping"]}

    def matrix(self, state: State, source: Source) -> Tensor:
        total_DD, n = dense(source)
        return total_DD / n + torch.diag(spread(state["damping"], source.layout))

    def solve(self, state: State, source: Source, b_KD: Tensor) -> Solve:
        check_width(b_KD, source.layout)
        return inverse_times(self.matrix(state, source), b_KD)


@dataclass(frozen=True)
class WithoutOneOverN(Dense):
    def matrix(self, state: State, source: Source) -> Tensor:
        return dense(source)[0] + torch.diag(spread(state["damping"], source.layout))


@dataclass(frozen=True)
class DampingSubtracted(Dense):
    def matrix(self, state: State, source: Source) -> Tensor:
        return super().matrix(state, source) - 2 * torch.diag(spread(state["damping"], source.layout))


@dataclass(frozen=True)
class DampingSquared(Dense):
    def matrix(self, state: State, source: Source) -> Tensor:
        damping_D = spread(state["damping"], source.layout)
        return super().matrix(state, source) + torch.diag(damping_D.square() - damping_D)


@dataclass(frozen=True)
class DampingTimesN(Dense):
    """Woodbury's `N lambda` taken outside: the damping grows with the corpus."""

    def matrix(self, state: State, source: Source) -> Tensor:
        return super().matrix(state, source) + (len(source) - 1) * torch.diag(spread(state["damping"], source.layout))


@dataclass(frozen=True)
class OneBlocksDampingForAll(DataInf):
    """A rule resolved to a constant: the damping does not follow the rows."""

    def fit(self, source: Source) -> State:
        return {"damping": torch.full((len(source.layout.blocks),), 0.1, dtype=torch.float64)}


@dataclass(frozen=True)
class StepLengthOfTheBatch(CG):
    """CG with one step length for all right-hand sides, as one long vector: each gets what suits the others."""

    def solve(self, state: State, source: Source, b_KD: Tensor) -> Solve:
        check_width(b_KD, source.layout)
        total_DD, n = dense(source)
        matrix_DD = total_DD / n + torch.diag(spread(state["damping"], source.layout))
        x_KD, r_KD = torch.zeros_like(b_KD, dtype=torch.float64), b_KD.double()
        p_KD = r_KD
        for _ in range(6):
            alpha = r_KD.square().sum() / (p_KD * (p_KD @ matrix_DD)).sum().clamp(min=1e-30)
            x_KD, before = x_KD + alpha * p_KD, r_KD.square().sum()
            r_KD = r_KD - alpha * p_KD @ matrix_DD
            p_KD = r_KD + r_KD.square().sum() / before.clamp(min=1e-30) * p_KD
        return Solve(x_KD.to(b_KD.dtype), "max_steps")


@dataclass(frozen=True)
class GlobalGenerator(Fisher):
    def solve(self, state: State, source: Source, b_KD: Tensor) -> Solve:
        solve = super().solve(state, source, b_KD)
        return replace(solve, value=solve.value * (1 + 0.01 * torch.rand(())))


@dataclass(frozen=True)
class NanRowsAreZeros(Dense):
    """The sum leaves a bad row out, and N counts it."""

    def matrix(self, state: State, source: Source) -> Tensor:
        total_DD, _ = dense(source)
        return total_DD / len(source) + torch.diag(spread(state["damping"], source.layout))


@dataclass(frozen=True)
class FirstRowsOnly(Dense):
    """Fitted on the head of the corpus, for speed."""

    def matrix(self, state: State, source: Source) -> Tensor:
        rows_ND = torch.cat(list(finite_blocks(source))).double()[: len(source) // 2 + 1]
        return rows_ND.T @ rows_ND / len(rows_ND) + torch.diag(spread(state["damping"], source.layout))


@dataclass(frozen=True)
class Transposed(Dense):
    """Not symmetric: one block's curvature acts on the other's numbers and not the other way round."""

    def matrix(self, state: State, source: Source) -> Tensor:
        return super().matrix(state, source).triu()


@dataclass(frozen=True)
class AcceptsAnyWidth(DataInf):
    def solve(self, state: State, source: Source, b_KD: Tensor) -> Solve:
        wide_KD = torch.zeros(len(b_KD), source.layout.size)
        width = min(b_KD.shape[-1], source.layout.size)
        wide_KD[:, :width] = b_KD[..., :width]
        return super().solve(state, source, wide_KD)


@dataclass(frozen=True)
class NanForZeros(Fisher):
    def solve(self, state: State, source: Source, b_KD: Tensor) -> Solve:
        norms_K1 = b_KD.norm(dim=1, keepdim=True)
        solve = super().solve(state, source, b_KD / norms_K1)
        return replace(solve, value=solve.value * norms_K1)


@dataclass(frozen=True)
class ResidualOfItsOwnMatrix(DataInf):
    """It reports how well it solves its own problem under the name of the shared operator."""

    def solve(self, state: State, source: Source, b_KD: Tensor) -> Solve:
        solve = super().solve(state, source, b_KD)
        return replace(solve, residual_K=torch.zeros(len(b_KD)), residual_of="fisher")


@dataclass(frozen=True)
class NotLinear(Fisher):
    """A solution clipped against outliers."""

    def solve(self, state: State, source: Source, b_KD: Tensor) -> Solve:
        solve = super().solve(state, source, b_KD)
        return replace(solve, value=solve.value.clamp(-1, 1))


@dataclass(frozen=True)
class ScalesInPlace(DataInf):
    def fit(self, source: Source) -> State:
        for rows_ND in finite_blocks(source):
            rows_ND /= rows_ND.norm(dim=1, keepdim=True)
        return super().fit(source)


@dataclass(frozen=True)
class DampingInFloat32(DataInf):
    def fit(self, source: Source) -> State:
        return {"damping": mean_eigenvalues(finite_blocks(source), source.layout).float()}


@dataclass(frozen=True)
class StateOfLists(DataInf):
    def fit(self, source: Source) -> Any:
        return {**super().fit(source), "sizes": [block.size for block in source.layout.blocks]}


FAULTS = {
    WithoutOneOverN: {"every_row_twice"},
    DampingSubtracted: {"huge_damping", "between_zero_and_no_curvature"},
    DampingSquared: {"huge_damping"},
    DampingTimesN: {"huge_damping", "every_row_twice"},
    OneBlocksDampingForAll: {"damping_follows_its_rule"},
    StepLengthOfTheBatch: {"one_at_a_time", "linear"},
    GlobalGenerator: {"determinism"},
    NanRowsAreZeros: {"bad_rows_left_out"},
    FirstRowsOnly: {"rows_in_another_order"},
    Transposed: {"symmetric"},
    AcceptsAnyWidth: {"layout_mismatch_refused"},
    NanForZeros: {"zero_and_none"},
    ResidualOfItsOwnMatrix: {"residual_is_true"},
    NotLinear: {"linear"},
    ScalesInPlace: {"inputs_untouched"},
    DampingInFloat32: {"damping_in_the_state"},
    StateOfLists: {"state_round_trip"},
}


def failures(curvature: Any) -> set[str]:
    with pytest.raises(AssertionError) as caught:
        check_curvature(curvature)
    return {line.split(":")[0] for line in str(caught.value).splitlines()[1:]}


@pytest.mark.parametrize(("broken", "expected"), FAULTS.items(), ids=[broken.__name__ for broken in FAULTS])
def test_the_right_check_turns_red(broken: Any, expected: set[str]) -> None:
    assert expected <= failures(broken())


def test_without_a_fault_nothing_turns_red() -> None:
    assert {outcome.status for outcome in check_curvature(Dense())} == {"passed"}


def test_a_fault_and_nothing_else() -> None:
    """The suite says what is wrong, not only that something is."""
    assert failures(WithoutOneOverN()) == {"every_row_twice"}
    assert failures(NanRowsAreZeros()) == {"bad_rows_left_out"}
    assert failures(ResidualOfItsOwnMatrix()) == {"residual_is_true"}


def test_a_missing_factor_is_seen_at_a_glance() -> None:
    with pytest.raises(AssertionError, match=r"against b \(is lambda squared, or subtracted\?\): ratio -1"):
        check_curvature(DampingSubtracted())
