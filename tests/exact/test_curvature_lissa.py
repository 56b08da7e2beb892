"""LiSSA: what it converges to, when, how it notices that it does not, and how its noise falls; and the released variant of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from headwater.curvature import LiSSA, LiSSAReleased, lissa
from headwater.curvature.operators import largest_eigenvalue, pieces
from headwater.types import UsageError
from tests.exact.sources import BLOCKS, Rows, SoftmaxSource, dense_fisher, dense_solve, random_rows, vectors


def spread_rows(n: int = 48) -> Rows:
    """Rows of like lengths in all directions: the smallest eigenvalues are not far below the damping."""
    return Rows(torch.randn(n, 39, generator=torch.Generator().manual_seed(5), dtype=torch.float64), BLOCKS)


def exact(source: Rows, damping_L: Tensor, b_KD: Tensor) -> Tensor:
    return dense_solve(dense_fisher(source), damping_L, BLOCKS, b_KD)


def test_it_converges_to_the_dense_solve_by_its_own_residual() -> None:
    source, b_KD, config = spread_rows(), vectors(3), LiSSA(tolerance=1e-6, max_steps=5000)
    state = config.fit(source)
    solve = config.solve(state, source, b_KD)
    damping_D = state["damping"].repeat_interleave(torch.tensor([block.size for block in BLOCKS.blocks]))
    residual_KD = solve.value @ (dense_fisher(source) + torch.diag(damping_D)) - b_KD
    assert solve.status == "converged"
    assert solve.residual_K is not None
    torch.testing.assert_close(solve.residual_K, residual_KD.norm(dim=1) / b_KD.norm(dim=1))
    assert float(solve.residual_K.max()) <= 1e-6
    torch.testing.assert_close(solve.value, exact(source, state["damping"], b_KD), rtol=1e-4, atol=1e-5)


def test_the_damping_is_lambda_itself() -> None:
    """Not lambda times the scale, as in the Koh-Liang recursion: that solution is another one, nearly the gradient (SYSTEMS: 0.3)."""
    source, b_KD, config = spread_rows(), vectors(2), LiSSA(damping=0.5, tolerance=1e-8, max_steps=5000)
    state = config.fit(source)
    solve = config.solve(state, source, b_KD)
    scale = 1e4
    h_KD = b_KD.clone()
    for _ in range(2000):
        h_KD = b_KD + (1 - 0.5) * h_KD - h_KD @ dense_fisher(source) / scale
    torch.testing.assert_close(h_KD / scale, exact(source, torch.full((3,), 0.5 * scale), b_KD), rtol=1e-6, atol=1e-12)
    assert float(torch.cosine_similarity(h_KD, b_KD).min()) > 0.999, "with an effective damping of 5000 it is the gradient"
    torch.testing.assert_close(solve.value, exact(source, state["damping"], b_KD), rtol=1e-6, atol=1e-8)
    assert float(torch.cosine_similarity(solve.value, b_KD).max()) < 0.99


def test_the_scale_is_just_above_the_largest_eigenvalue() -> None:
    source = random_rows(40)
    state = LiSSA().fit(source)
    largest = float(torch.linalg.eigvalsh(dense_fisher(source))[-1])
    assert largest + float(state["damping"].max()) < float(state["scale"]) < 1.2 * (largest + float(state["damping"].max()))
    start_1D = vectors(1)
    assert largest_eigenvalue(lambda v: 0 * v, start_1D) == 0.0
    assert largest * 0.95 < largest_eigenvalue(lambda v: v @ dense_fisher(source), start_1D) <= largest * (1 + 1e-9)


def test_decay_says_when_there_were_too_few_steps() -> None:
    """After J steps an eigenvector's share is `1 - (1 - (mu + lambda) / s)^J`."""
    source, config = spread_rows(), LiSSA(damping=0.01, max_steps=20)
    state = config.fit(source)
    values, turns = torch.linalg.eigh(dense_fisher(source))
    solve = config.solve(state, source, turns[:, :1].T.contiguous())
    scale = float(state["scale"])
    share = float(solve.value @ turns[:, 0]) * float(values[0] + 0.01)
    assert share == pytest.approx(1 - (1 - float(values[0] + 0.01) / scale) ** 20)
    assert solve.facts == {"scale": scale, "decay": pytest.approx(20 * 0.01 / scale)}
    assert (solve.status, solve.steps) == ("max_steps", 20)


def test_a_scale_that_is_too_small_is_doubled_until_it_holds() -> None:
    source, b_KD, config = spread_rows(), vectors(3), LiSSA(tolerance=1e-6, max_steps=5000)
    state = config.fit(source)
    tight = {**state, "scale": state["scale"] / 40}
    solve = config.solve(tight, source, b_KD)
    assert solve.status == "converged"
    assert solve.facts["scale"] == float(state["scale"]) / 40 * 32, "half the eigenvalue is enough, and 16/40 is less"
    torch.testing.assert_close(solve.value, exact(source, state["damping"], b_KD), rtol=1e-4, atol=1e-5)


def test_a_batch_beyond_the_scale_is_noticed_and_the_run_begins_again() -> None:
    """One row of a hundred times the length is in few batches; the mean over all rows does not show what it does to them."""
    source = spread_rows()
    source.rows_ND[7] *= 30
    b_KD, config = vectors(3), LiSSA(damping=5.0, batch_rows=2, max_steps=3000, tolerance=0.0)
    state = config.fit(source)
    solve = config.solve(state, source, b_KD)
    batch_largest = float(source.rows_ND[7].square().sum()) / 2
    assert 2 * float(state["scale"]) < batch_largest, "else nothing would have to be noticed"
    assert solve.facts["scale"] > batch_largest / 2
    assert solve.status == "max_steps"
    assert solve.residual_K is not None
    assert float(solve.residual_K.max()) < 1


def test_an_iterate_that_is_too_long_is_noticed_between_two_steps_of_all_rows() -> None:
    """`||x|| <= ||v|| / lambda` for every s that holds: twenty steps of 2 of 48 rows, in which no true residual is taken."""
    source, b_KD, config = spread_rows(), vectors(3), LiSSA(damping=5.0, batch_rows=2, max_steps=20)
    state = config.fit(source)
    solve = config.solve({**state, "scale": state["scale"] / 64}, source, b_KD)
    assert solve.status == "max_steps"
    assert solve.facts["scale"] > float(state["scale"])
    assert bool((solve.value.norm(dim=1) <= b_KD.norm(dim=1) / 5.0).all())


def test_where_it_does_not_come_to_hold_the_best_iterate_is_given_and_said_to_be_one() -> None:
    """Too few steps for enough doublings. Never a NaN, never the iterate that ran away."""
    source, b_KD, config = spread_rows(), vectors(2), LiSSA(max_steps=6)
    state = config.fit(source)
    hopeless = {**state, "scale": state["scale"] * 1e-30}
    solve = config.solve(hopeless, source, b_KD)
    assert solve.status == "diverged"
    assert bool((solve.value == 0).all())
    assert solve.residual_K is not None
    assert solve.residual_K.tolist() == [1.0, 1.0]


def test_an_overflow_is_no_value() -> None:
    source, b_KD = spread_rows(), vectors(2)
    config = LiSSA(damping=1e-3, max_steps=400)
    state = {**config.fit(source), "scale": torch.tensor([1e-200], dtype=torch.float64)}
    assert bool(torch.isfinite(config.solve(state, source, b_KD).value).all())


def test_what_one_gets_does_not_depend_on_a_neighbour_that_starts_again() -> None:
    """An eigenvector of the smallest eigenvalue holds at a scale at which the others run away."""
    source, config = spread_rows(), LiSSA(tolerance=1e-6, max_steps=5000)
    state = config.fit(source)
    tight = {**state, "scale": state["scale"] / 8}
    easy_1D = torch.linalg.eigh(dense_fisher(source)).eigenvectors[:, :1].T
    alone = config.solve(tight, source, vectors(1))
    together = config.solve(tight, source, torch.cat([vectors(1), easy_1D]))
    torch.testing.assert_close(together.value[:1], alone.value)


# ---------------------------------------------------------------------------------------------------------- batches


class Looked(Rows):
    """Rows that can be looked up, as those of an index."""

    def take(self, feature: str, positions: list[int]) -> Tensor:
        return self.rows_ND[positions]


def estimates(repeats: int, n_seeds: int, **options: object) -> Tensor:
    """[S, D] what so many seeds give for one right-hand side."""
    source, b_1D = Looked(spread_rows().rows_ND, BLOCKS, size=48), vectors(1)
    configs = [LiSSA(damping=2.0, batch_rows=4, repeats=repeats, seed=s, tolerance=0.0, **options) for s in range(n_seeds)]  # type: ignore[arg-type]
    state = {**configs[0].fit(source), "scale": torch.tensor([30.0], dtype=torch.float64)}
    return torch.cat([config.solve(state, source, b_1D).value for config in configs])


def test_the_variance_of_an_average_of_runs_falls_with_their_number() -> None:
    """A quarter with four runs, to within 30 %; and the mean is the dense solution's, to within its standard error."""
    one_SD, four_SD = estimates(1, 48, max_steps=60), estimates(4, 24, max_steps=60)
    ratio = float(one_SD.var(0).sum() / four_SD.var(0).sum())
    assert 4 * 0.7 < ratio < 4 * 1.3
    expected_D = exact(spread_rows(), torch.full((3,), 2.0), vectors(1))[0]
    not_there_yet = (1 - 2 / 30) ** 60 * float(expected_D.norm())
    assert float((one_SD.mean(0) - expected_D).norm()) < 5 * float((one_SD.var(0).sum() / 48).sqrt()) + not_there_yet


def test_batches_are_drawn_from_the_seed() -> None:
    first, again = (estimates(1, 2, max_steps=20) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])


def test_as_many_rows_as_there_are_is_all_of_them() -> None:
    source, b_KD = spread_rows(), vectors(2)
    for batch_rows in (48, 1000):
        some, every = LiSSA(batch_rows=batch_rows), LiSSA()
        assert torch.equal(some.solve(some.fit(source), source, b_KD).value, every.solve(every.fit(source), source, b_KD).value)


def test_a_live_model_s_batches_are_rows_of_its_operator() -> None:
    source = SoftmaxSource.drawn(24, seed=2)
    b_KD = vectors(2, source.layout)
    config = LiSSA(damping=0.5, batch_rows=6, max_steps=200, repeats=10, tolerance=0.0)
    solve = config.solve(config.fit(source), source, b_KD)
    expected_KD = dense_solve(source.dense_gauss_newton, torch.tensor([0.5]), source.layout, b_KD)
    assert float((solve.value - expected_KD).norm() / expected_KD.norm()) < 0.1
    assert solve.residual_of == "ggn"


def test_bad_rows_are_in_no_batch() -> None:
    source = spread_rows()
    source.rows_ND[3] = torch.nan
    config = LiSSA(damping=2.0, batch_rows=8, max_steps=100)
    solve = config.solve(config.fit(source), source, vectors(2))
    assert solve.status != "diverged"
    assert bool(torch.isfinite(solve.value).all())


@pytest.mark.parametrize("option", ["max_steps", "batch_rows", "repeats"])
def test_wrong_options_are_refused(option: str) -> None:
    with pytest.raises(UsageError, match=f"lissa: {option} is 0, expected 1 or more"):
        LiSSA(**{option: 0})  # type: ignore[arg-type]


def test_no_margin_of_rounding_hides_a_divergence() -> None:
    """A scale just below half the largest eigenvalue: the residual grows by a little each step, and that is enough to notice."""
    source, config = spread_rows(), LiSSA(damping=0.5, max_steps=20_000, tolerance=1e-6)
    largest = float(torch.linalg.eigvalsh(dense_fisher(source))[-1])
    scale = (largest + 0.5) / 2 / 1.005
    solve = config.solve({**config.fit(source), "scale": torch.tensor([scale], dtype=torch.float64)}, source, vectors(1))
    assert solve.status == "converged"
    assert solve.facts["scale"] == pytest.approx(2 * scale)
    assert lissa.NO_WORSE < 1.01


# --------------------------------------------------------------------------------------------------------- released


def literal_released(source: Rows, b_KD: Tensor, steps: int) -> Tensor:
    """As the released code does it: weight by weight, row by row, for each query; damping a tenth of the mean square of the entries."""
    x_KD = b_KD.clone()
    for part in pieces(source.layout, joint=False):
        rows = source.rows_ND[:, part]
        damping = sum(float(row.square().mean()) for row in rows) / len(rows) / 10
        for k, v in enumerate(b_KD[:, part]):
            h = v.clone()
            for _ in range(steps):
                product = torch.zeros_like(h)
                for row in rows:
                    product += ((row @ h) * row - damping * h) / len(rows)
                h = v + h - product / 1000
            x_KD[k, part] = h
    return x_KD


@pytest.mark.parametrize("steps", [3, 10])
def test_the_released_variant_is_the_released_recursion(steps: int) -> None:
    source, b_KD, config = random_rows(14), vectors(3), LiSSAReleased(steps=steps)
    solve = config.solve(config.fit(source), source, b_KD)
    torch.testing.assert_close(solve.value, literal_released(source, b_KD, steps), rtol=1e-12, atol=1e-12)
    assert (solve.status, solve.steps) == ("max_steps", steps)


def test_the_released_variant_is_the_gradient_in_disguise() -> None:
    """With a curvature far below 1000 it gives (steps + 1) v: the factor of 4.00 in the authors' own published scores."""
    source, b_KD, config = spread_rows(), vectors(3), LiSSAReleased()
    solve = config.solve(config.fit(source), source, b_KD)
    torch.testing.assert_close(solve.value, 4 * b_KD, rtol=0.05, atol=0.05)
    assert solve.residual_K is not None
    assert float(solve.residual_K.min()) > 0.5


def test_the_released_damping_has_the_wrong_sign() -> None:
    """Where the curvature is nearly zero, more damping makes the result longer; of an inverse it makes it shorter."""
    source = Rows(1e-6 * spread_rows().rows_ND, BLOCKS)
    b_KD, damping = vectors(2), 500.0
    released, right = LiSSAReleased(damping=damping), LiSSA(damping=damping)
    assert float(released.solve(released.fit(source), source, b_KD).value.norm()) > 4 * float(b_KD.norm())
    found = right.solve(right.fit(source), source, b_KD).value
    torch.testing.assert_close(found, b_KD / damping, rtol=1e-3, atol=0.0)


def test_the_released_variant_says_what_it_is() -> None:
    assert "wrong sign" in LiSSAReleased.summary
    assert "study" in LiSSAReleased.summary


def test_rows_of_any_source_can_be_drawn() -> None:
    """A source need not be an index: rows are then found by a scan, those of an index are looked up."""
    source, b_KD = spread_rows(), vectors(2)

    config = LiSSA(damping=2.0, batch_rows=4, max_steps=40)
    looked = Looked(source.rows_ND, BLOCKS)
    scanned, found = (config.solve(config.fit(one), one, b_KD).value for one in (source, looked))
    assert torch.equal(scanned, found)
    in_blocks = replace(source, size=48)
    torch.testing.assert_close(config.solve(config.fit(in_blocks), in_blocks, b_KD).value, found)
