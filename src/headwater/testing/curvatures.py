"""The checks of a curvature: what any approximation of `(C + lambda)^-1`, C positive semi-definite, must do.

Letters: K right-hand sides · D numbers of a row · L blocks of the layout.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from headwater.curvature.operators import spread
from headwater.testing.outcomes import RELATIVE, Check, Outcome, expect, ratio, refuses, run_checks
from headwater.testing.toys import Toy, toy_rows
from headwater.types import LayoutMismatch, Solve, SolveStatus, Source, State

MakeSource = Callable[[Sequence[int]], Source]


@dataclass(frozen=True)
class CurvatureCase:
    """What a check is given: a curvature, a way to make a source of chosen rows, and right-hand sides."""

    curvature: Any
    make: MakeSource
    n_rows: int
    b_KD: Tensor

    def source(self, positions: Sequence[int] | None = None) -> Source:
        return self.make(range(self.n_rows) if positions is None else positions)

    def solve(self, *, source: Source | None = None, b_KD: Tensor | None = None, **options: Any) -> Solve:
        """Fitted and solved, with some of the curvature's options changed."""
        source, curvature = source or self.source(), replace(self.curvature, **options)
        return curvature.solve(curvature.fit(source), source, self.b_KD if b_KD is None else b_KD)

    def damping_D(self) -> Tensor:
        source = self.source()
        return spread(self.curvature.fit(source)["damping"], source.layout)


def curvature_checks(curvature: Any, *, source: MakeSource | None = None, n_rows: int = 20) -> list[tuple[str, Check]]:
    """(id, check) for every check that applies; a check returns nothing, or raises.

    The rows are a toy's, and then some checks edit their numbers; or those of `source(positions)`, the source of these of `n_rows` rows in
    this order: for a curvature that needs a live model.
    """
    make = source or (lambda positions: toy_rows(n_rows, seed=1).rows(positions).index())
    first = make(range(n_rows))
    dtype = next(iter(first.blocks("gradient")))[1].dtype
    b_KD = torch.randn(3, first.layout.size, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(dtype)
    case = CurvatureCase(curvature, make, n_rows, b_KD)
    chosen = [*OF_ANY_SOURCE, *(() if source else OF_EDITED_ROWS)]
    return [(check.__name__.removeprefix("check_"), partial(check, case)) for check in chosen]


def check_curvature(
    curvature: Any, *, source: MakeSource | None = None, n_rows: int = 20, known_failures: Mapping[str, str] | None = None
) -> list[Outcome]:
    """Run every check. `known_failures` maps a check's id to the reason why this curvature need not pass it.

    Raises AssertionError that lists each failed check; also where a declared failure passes, so that declarations stay true.
    UsageError for an id that no check has.
    """
    return run_checks(curvature.name, curvature_checks(curvature, source=source, n_rows=n_rows), known_failures or {})


# ------------------------------------------------------------------------------------------------ checks of any source


def check_declares_what_it_is(case: CurvatureCase) -> None:
    """name, summary, damping, and the lines that a table shows."""
    for attribute in ("name", "summary", "reference", "cost"):
        value = getattr(case.curvature, attribute, None)
        expect(isinstance(value, str) and value, f"{attribute} is {value!r}, expected a text")
    expect(hasattr(case.curvature, "damping"), "it has no damping, expected a field: a number, or a rule")


def check_shape_and_status(case: CurvatureCase) -> None:
    """[K, D] finite numbers in the dtype of b, a status that there is, one residual for each right-hand side where it was taken."""
    solve = case.solve()
    expect(solve.value.shape == case.b_KD.shape, f"value is {tuple(solve.value.shape)}, expected {tuple(case.b_KD.shape)}")
    expect(solve.value.dtype == case.b_KD.dtype, f"value is {solve.value.dtype}, expected {case.b_KD.dtype}, the dtype of b")
    expect(bool(torch.isfinite(solve.value).all()), "the value has numbers that are not finite: give the best iterate, and say diverged")
    expect(solve.status in get_args(SolveStatus), f"status is {solve.status!r}, expected one of {', '.join(get_args(SolveStatus))}")
    if solve.residual_K is not None:
        expect(solve.residual_K.shape == (len(case.b_KD),), f"residual_K is {tuple(solve.residual_K.shape)}, expected one for each b")
        expect(solve.residual_of, "a residual without residual_of, the name of the operator it is of")


def check_damping_in_the_state(case: CurvatureCase) -> None:
    """[L] float64 and positive: the absolute lambda of each block."""
    source = case.source()
    damping_L = case.curvature.fit(source).get("damping")
    expect(isinstance(damping_L, Tensor), 'the state has no tensor "damping"')
    found, expected = (damping_L.shape, damping_L.dtype), ((len(source.layout.blocks),), torch.float64)
    expect(found == expected, f'state["damping"] is {found}, expected {expected}')
    expect(bool((damping_L > 0).all()), f"damping is {damping_L.tolist()}, expected numbers above 0")


def check_determinism(case: CurvatureCase) -> None:
    """The same input, the same bits; nothing reads a global generator."""
    first = case.solve().value
    torch.manual_seed(torch.initial_seed() + 1)
    expect(torch.equal(first, case.solve().value), "two runs on the same input differ")


def check_inputs_untouched(case: CurvatureCase) -> None:
    """Rows, right-hand sides and state hold the same numbers afterwards."""
    source, b_KD = case.source(), case.b_KD.clone()
    rows = [rows_ND.clone() for _, rows_ND in source.blocks("gradient")]
    state = case.curvature.fit(source)
    kept = {name: tensor.clone() for name, tensor in state.items()}
    case.curvature.solve(state, source, b_KD)
    expect(torch.equal(b_KD, case.b_KD), "b changed in place")
    changed = [name for name, tensor in kept.items() if not torch.equal(tensor, state[name])]
    expect(not changed, f"{changed} of the state changed in place")
    same = all(torch.equal(old, new) for old, (_, new) in zip(rows, source.blocks("gradient"), strict=True))
    expect(same, "the rows changed in place")


def check_one_at_a_time(case: CurvatureCase) -> None:
    """What a right-hand side gets does not depend on which others are solved beside it, nor on their order."""
    together = case.solve().value
    alone = [case.solve(b_KD=case.b_KD[[k]]).value for k in range(len(case.b_KD))]
    _same(torch.cat(alone), together, "one at a time and together")
    _same(case.solve(b_KD=case.b_KD.flip(0)).value.flip(0), together, "in another order")


def check_linear(case: CurvatureCase) -> None:
    """`x(2 b1 - b2) = 2 x(b1) - x(b2)`."""
    x_KD = case.solve().value
    mixed = case.solve(b_KD=2 * case.b_KD[[0]] - case.b_KD[[1]]).value
    _same(mixed, 2 * x_KD[[0]] - x_KD[[1]], "for a sum of right-hand sides, against the sum of the solutions")


def check_symmetric(case: CurvatureCase) -> None:
    """`b2'x1 = b1'x2`: the inverse of a symmetric matrix is symmetric."""
    products_KK = case.solve().value.double() @ case.b_KD.double().T
    _same(products_KK.T, products_KK, "in b2'x1 against b1'x2: is this the inverse of a symmetric matrix?")


def check_between_zero_and_no_curvature(case: CurvatureCase) -> None:
    """`0 < b'x <= b'b / lambda`: C is positive semi-definite and lambda is added to it, so that curvature only ever shortens x."""
    for rows in (case.n_rows, 3):
        few = replace(case, n_rows=rows)
        found_K = (few.solve().value.double() * few.b_KD.double()).sum(1)
        most_K = (few.b_KD.double().square() / few.damping_D()).sum(1)
        said = f"b'x is {found_K.tolist()}, b'b / lambda {most_K.tolist()}, with {rows} rows: is the sign of the damping right?"
        expect(bool(((found_K > 0) & (found_K <= (1 + RELATIVE) * most_K)).all()), said)


def check_huge_damping(case: CurvatureCase) -> None:
    """Where lambda is far above every eigenvalue, x is b / lambda."""
    damping = 1e7 * case.b_KD.shape[1] * float(case.damping_D().max())
    _same(damping * case.solve(damping=damping).value, case.b_KD, "times a huge lambda, against b (is lambda squared, or subtracted?)")


def check_layout_mismatch_refused(case: CurvatureCase) -> None:
    """Right-hand sides of another length come from other parameters."""
    for b_KD in (case.b_KD[:, :-1], torch.cat([case.b_KD, case.b_KD], 1), case.b_KD[0]):
        refuses(partial(case.solve, b_KD=b_KD), LayoutMismatch, f"b of shape {tuple(b_KD.shape)}")


def check_zero_and_none(case: CurvatureCase) -> None:
    """A b of zeros gives zeros, also beside others; no b at all gives none."""
    beside = case.solve(b_KD=torch.cat([case.b_KD[:1], torch.zeros_like(case.b_KD[:1])])).value
    expect(bool((beside[1] == 0).all()), f"a b of zeros gives {beside[1, :4].tolist()}, expected zeros")
    none = case.solve(b_KD=case.b_KD[:0]).value
    expect(none.shape == case.b_KD[:0].shape, f"no right-hand side gives {tuple(none.shape)}, expected {tuple(case.b_KD[:0].shape)}")


def check_state_round_trip(case: CurvatureCase) -> None:
    """The state is tensors, and solves the same after being written and read."""
    from safetensors.torch import load_file, save_file

    source = case.source()
    state: State = case.curvature.fit(source)
    wrong = {name: type(value).__name__ for name, value in state.items() if not isinstance(value, Tensor)}
    expect(not wrong, f"the state holds {wrong}, expected tensors only")
    with tempfile.TemporaryDirectory() as folder:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, Path(folder) / "state.safetensors")
        again = case.curvature.solve(load_file(Path(folder) / "state.safetensors"), source, case.b_KD).value
    expect(torch.equal(again, case.curvature.solve(state, source, case.b_KD).value), "solutions differ after it")


def check_rows_in_another_order(case: CurvatureCase) -> None:
    order = [(7 * i + 3) % case.n_rows for i in range(case.n_rows)] if case.n_rows % 7 else list(range(case.n_rows))[::-1]
    _same(case.solve(source=case.source(order)).value, case.solve().value, "with the rows in another order")


def check_every_row_twice(case: CurvatureCase) -> None:
    """C is a mean over rows: every row standing twice leaves it as it is."""
    damping, twice = float(case.damping_D().median()), [*range(case.n_rows), *range(case.n_rows)]
    doubled = case.solve(source=case.source(twice), damping=damping).value
    _same(doubled, case.solve(damping=damping).value, "with every row twice (is 1/N missing?)")


# ------------------------------------------------------------------------------------------------ checks of edited rows


def check_bad_rows_left_out(case: CurvatureCase) -> None:
    """A row of NaN has no curvature: the others give what they give without it."""
    without = [i for i in range(case.n_rows) if i != 3]
    bad = _toy(case).filled(3, torch.nan).index()
    _same(case.solve(source=bad).value, case.solve(source=case.source(without)).value, "beside a row of NaN, against without that row")


def check_scaled_rows(case: CurvatureCase) -> None:
    """Rows twice as long make C four times as large: with a damping four times as large, x is a quarter."""
    damping = float(case.damping_D().median())
    scaled = case.solve(source=_toy(case).scaled(2.0).index(), damping=4 * damping).value
    _same(4 * scaled, case.solve(damping=damping).value, "with rows twice as long and four times the damping, times 4")


def check_damping_follows_its_rule(case: CurvatureCase) -> None:
    """A damping by rule grows with C; one that is a number is that number."""
    before, after = (case.curvature.fit(toy.index())["damping"] for toy in (_toy(case), _toy(case).scaled(2.0)))
    factor = 4.0 if isinstance(case.curvature.damping, str) else 1.0
    _same(after, factor * before, f"in the damping of rows twice as long, against {factor:g} times that of the rows")
    number = replace(case.curvature, damping=0.25).fit(_toy(case).index())["damping"]
    expect(bool((number == 0.25).all()), f"damping=0.25 became {number.tolist()}")


def check_residual_is_true(case: CurvatureCase) -> None:
    """`||(C + lambda) x - b|| / ||b||` on the empirical Fisher of the rows, taken by the dense matrix in float64."""
    solve, rows_ND = case.solve(), _toy(case).features["gradient"].double()
    if solve.residual_K is None or solve.residual_of != "fisher":
        return
    matrix_DD = rows_ND.T @ rows_ND / len(rows_ND) + torch.diag(case.damping_D())
    x_KD, b_KD = solve.value.double(), case.b_KD.double()
    expected_K = (x_KD @ matrix_DD - b_KD).norm(dim=1) / b_KD.norm(dim=1)
    rounding_K = RELATIVE * (1 + matrix_DD.norm() * x_KD.norm(dim=1) / b_KD.norm(dim=1))
    close = (solve.residual_K.double() - expected_K).abs() <= rounding_K + RELATIVE * expected_K
    expect(bool(close.all()), f"residual_K is {solve.residual_K.tolist()}, the dense matrix gives {expected_K.tolist()}")
    if solve.status == "converged" and hasattr(case.curvature, "tolerance"):
        expect(bool((expected_K <= case.curvature.tolerance + rounding_K).all()), f"converged, with residuals {expected_K.tolist()}")


OF_ANY_SOURCE = (
    check_declares_what_it_is,
    check_shape_and_status,
    check_damping_in_the_state,
    check_determinism,
    check_inputs_untouched,
    check_one_at_a_time,
    check_linear,
    check_symmetric,
    check_between_zero_and_no_curvature,
    check_huge_damping,
    check_layout_mismatch_refused,
    check_zero_and_none,
    check_state_round_trip,
    check_rows_in_another_order,
    check_every_row_twice,
)
OF_EDITED_ROWS = (check_bad_rows_left_out, check_scaled_rows, check_damping_follows_its_rule, check_residual_is_true)


def _toy(case: CurvatureCase) -> Toy:
    return toy_rows(case.n_rows, seed=1)


def _same(found: Tensor, expected: Tensor, when: str) -> None:
    """Equal to within sums of another order; the ratio of the two shows a missing factor at a glance."""
    found, expected = found.double(), expected.double()
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    if found.shape == expected.shape and torch.allclose(found, expected, rtol=RELATIVE, atol=RELATIVE * scale):
        return
    if found.shape != expected.shape:
        raise AssertionError(f"shapes {tuple(found.shape)} and {tuple(expected.shape)} {when}")
    raise AssertionError(f"solutions differ {when}: ratio {ratio(found.numpy(), expected.numpy())}")
