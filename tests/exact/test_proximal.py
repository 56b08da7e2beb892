"""The proximal response and PBRF against closed forms, and against influence where that is exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import numpy as np
import pytest
import torch
from benchmarks.small import RootRows, Tanh, at_minimum, changes, cross_entropy, query_gradients, row_gradients, squared_loss, without
from torch import Tensor

from headwater.progress import quiet
from headwater.truth.objective import Pair, SmallModel, total, value_and_gradient
from headwater.truth.optimum import LBFGS, Curved, Descent, Newton
from headwater.truth.pbrf import pbrf
from headwater.truth.proximal import proximal
from headwater.truth.response import retrained, training_loss
from headwater.types import Truth, UsageError

N, WIDTH, QUERIES = 30, 5, 4
DAMPING = 0.03
FINE = LBFGS(relative=1e-11, absolute=0)


@pytest.fixture(autouse=True)
def _quiet():
    with quiet():
        yield


def linear(kind: type[SmallModel] = SmallModel, *, decay: float = 0.0) -> SmallModel:
    """Linear outputs, squared loss; the start is no minimum."""
    generator = torch.Generator().manual_seed(0)
    x_NI, y_N1, queries_QI, start_I1 = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((N, WIDTH), (N, 1), (QUERIES, WIDTH), (WIDTH, 1))
    )
    return kind(lambda t: (x_NI @ t)[:, None], squared_loss(y_N1[:, 0]), lambda t: queries_QI @ t, start_I1[:, 0], decay=decay)


def softmax(*, seed: int = 0) -> SmallModel:
    net, generator = Tanh((WIDTH, 6, 3)), torch.Generator().manual_seed(seed)
    x_NI, queries_QI = (torch.randn(n, WIDTH, generator=generator, dtype=torch.float64) for n in (N, QUERIES))
    y_N = torch.randint(3, (N,), generator=generator)
    return SmallModel(lambda t: net(t, x_NI), cross_entropy(y_N), lambda t: net(t, queries_QI).log_softmax(1)[:, 0], net.drawn(seed))


def influence(model: SmallModel, damping: float) -> Tensor:
    """[N, Q] the predicted change when a row is removed: `(1/N) grad f (G + damping)^-1 grad L_n`."""
    matrix_DD = RootRows.of(model).matrix() + damping * torch.eye(len(model.start_D), dtype=torch.float64)
    return row_gradients(model) @ torch.linalg.solve(matrix_DD, query_gradients(model).T) / len(model.train_ids)


def moved(truth: Truth, model: SmallModel) -> Tensor:
    assert all(end["status"] == "converged" for end in truth.recipe["optimisations"]), truth.recipe["optimisations"]
    return torch.from_numpy(changes(truth, model.measures(model.start_D)))


class Linearised(SmallModel):
    """The rows' own losses by their first order at the start: what makes the proximal Bregman objective of a linear model influence."""

    def loss(self, theta_D: Tensor, weights_N: Tensor) -> Pair:
        slope_D = weights_N @ self.slopes_ND / len(weights_N)
        return slope_D @ theta_D, slope_D

    def divergence(self, theta_D: Tensor, weights_N: Tensor) -> Pair:
        return total(super().divergence(theta_D, torch.zeros_like(weights_N)), self.loss(theta_D, weights_N))

    @cached_property
    def slopes_ND(self) -> Tensor:
        return row_gradients(self)


def test_the_linearised_bregman_response_is_damped_gauss_newton_influence() -> None:
    model = linear(Linearised)
    truth = pbrf(model, without(N, range(N)), damping=DAMPING, minimise=FINE)
    torch.testing.assert_close(moved(truth, model), influence(model, DAMPING), rtol=1e-8, atol=1e-10)


def test_a_linear_models_bregman_response_is_influence_over_one_minus_leverage() -> None:
    """The removed row's own curvature goes too: `(G + lambda - x x' / N)^-1` by Sherman and Morrison."""
    model = linear()
    matrix_DD = RootRows.of(model).matrix() + DAMPING * torch.eye(WIDTH, dtype=torch.float64)
    x_NI = RootRows.of(model).rows_RD
    leverage_N = (torch.linalg.solve(matrix_DD, x_NI.T).T * x_NI).sum(1) / N
    truth = pbrf(model, without(N, range(N)), damping=DAMPING, minimise=FINE)
    torch.testing.assert_close(moved(truth, model), influence(model, DAMPING) / (1 - leverage_N)[:, None], rtol=1e-8, atol=1e-10)
    twice = pbrf(model, without(N, range(N)), damping=DAMPING, row_change=1.0, minimise=FINE)
    torch.testing.assert_close(moved(twice, model), -influence(model, DAMPING) / (1 + leverage_N)[:, None], rtol=1e-8, atol=1e-10)


def test_a_groups_response_is_the_solution_without_all_of_it() -> None:
    model, group = linear(), [2, 5, 11]
    kept_1N = np.ones((1, N), dtype=bool)
    kept_1N[0, group] = False
    x_NI = RootRows.of(model).rows_RD
    matrix_DD = (x_NI.T @ x_NI - x_NI[group].T @ x_NI[group]) / N + DAMPING * torch.eye(WIDTH, dtype=torch.float64)
    expected_Q = query_gradients(model) @ torch.linalg.solve(matrix_DD, row_gradients(model)[group].sum(0) / N)
    torch.testing.assert_close(moved(pbrf(model, kept_1N, damping=DAMPING, minimise=FINE), model)[0], expected_Q, rtol=1e-8, atol=1e-10)


def test_the_proximal_response_of_a_linear_model_is_its_normal_equation() -> None:
    decay = 0.2
    model = linear(decay=decay)
    x_NI, eye = RootRows.of(model).rows_RD, torch.eye(WIDTH, dtype=torch.float64)
    truth = proximal(model, np.concatenate([np.ones((1, N), dtype=bool), without(N, [7])]), damping=DAMPING, minimise=FINE)
    gradient_ND = row_gradients(model)
    for found_Q, kept in zip(moved(truth, model), (range(N), [n for n in range(N) if n != 7]), strict=True):
        chosen = list(kept)
        slope_D = gradient_ND[chosen].sum(0) / N + decay * model.start_D
        step_D = -torch.linalg.solve(x_NI[chosen].T @ x_NI[chosen] / N + (decay + DAMPING) * eye, slope_D)
        torch.testing.assert_close(found_Q, query_gradients(model) @ step_D, rtol=1e-8, atol=1e-10)


def test_cold_training_of_a_linear_model_forgets_where_it_began() -> None:
    model = linear(decay=0.1)
    starts = [torch.zeros(WIDTH, dtype=torch.float64), torch.ones(WIDTH, dtype=torch.float64)]
    cold = retrained(model, without(N, [0, 1]), FINE, starts=starts)
    warm = retrained(model, without(N, [0, 1]), FINE)
    assert (cold.kind, cold.seeds, warm.kind, warm.seeds) == ("cold", (0, 1), "warm", (0,))
    for s in range(2):
        torch.testing.assert_close(cold.outcomes_DSQ[:, s], warm.outcomes_DSQ[:, 0], rtol=1e-8, atol=1e-10)


def test_with_every_row_kept_the_bregman_optimum_is_the_start_and_the_proximal_one_is_not() -> None:
    model, everything = softmax(), np.ones((1, N), dtype=bool)
    assert float(moved(pbrf(model, everything, damping=DAMPING), model).abs().max()) == 0
    assert float(moved(proximal(model, everything, damping=DAMPING), model).abs().max()) > 0.01


def test_a_small_up_weighting_moves_a_network_as_influence_says() -> None:
    """First order in epsilon: the response over epsilon tends to `-(G + lambda)^-1 grad L`, Gauss-Newton and not the Hessian."""
    model, change = softmax(), 1e-3
    kept_MN = without(N, [0, 3, 9])
    found = [moved(pbrf(model, kept_MN, damping=0.1, row_change=sign * change, minimise=LBFGS(relative=1e-8)), model) for sign in (1, -1)]
    expected = -influence(model, 0.1)[[0, 3, 9]]
    torch.testing.assert_close((found[0] - found[1]) / (2 * change), expected, rtol=1e-5, atol=1e-7)


# --------------------------------------------------------------------------------------------------------- divergences


def test_the_bregman_divergence_of_cross_entropy_is_kl_whatever_the_targets() -> None:
    model = softmax()
    theta_D = Tanh((WIDTH, 6, 3)).drawn(5)
    before_NO, now_NO = (model.outputs(t).log_softmax(1) for t in (model.start_D, theta_D))
    kl_N = (before_NO.exp() * (before_NO - now_NO)).sum(1)
    torch.testing.assert_close(model.divergences(model.outputs(theta_D)), kl_N, rtol=1e-10, atol=1e-12)
    other = SmallModel(model.outputs, cross_entropy(torch.zeros(N, dtype=torch.long)), model.queries, model.start_D)
    torch.testing.assert_close(other.divergences(model.outputs(theta_D)), kl_N, rtol=1e-10, atol=1e-12)


def test_the_bregman_divergence_of_a_squared_loss_is_half_the_squared_change() -> None:
    model, theta_D = linear(), torch.ones(WIDTH, dtype=torch.float64)
    expected_N = (model.outputs(theta_D) - model.outputs(model.start_D)).square()[:, 0] / 2
    torch.testing.assert_close(model.divergences(model.outputs(theta_D)), expected_N, rtol=1e-10, atol=1e-12)


def test_its_gradient_is_zero_at_the_start() -> None:
    model = softmax()
    value, gradient_D = model.divergence(model.start_D, torch.zeros(N, dtype=torch.float64))
    assert float(value) == 0
    assert float(gradient_D.abs().max()) < 1e-15


# ---------------------------------------------------------------------------------------------------------- the record


def test_an_optimum_that_was_not_reached_is_marked_and_has_no_outcome() -> None:
    model, kept_DN = linear(), without(N, [0, 1])
    short = pbrf(softmax(), kept_DN, damping=0.01, minimise=LBFGS(max_steps=2))
    assert [end["status"] for end in short.recipe["optimisations"]] == ["max_steps"] * 2
    assert all(end["gradient_norm"] > end["tolerance"] for end in short.recipe["optimisations"])
    assert short.diverged_DS is not None
    assert not short.diverged_DS.any()
    assert np.isnan(short.outcomes_DSQ).all()
    broken = retrained(model, kept_DN, Descent(30, 1e200))
    assert [end["status"] for end in broken.recipe["optimisations"]] == ["diverged"] * 2
    assert broken.diverged_DS is not None
    assert broken.diverged_DS.all()
    assert np.isnan(broken.outcomes_DSQ).all()


def test_the_record_names_designs_damping_and_minimiser() -> None:
    model = linear()
    kept_DN = np.concatenate([np.ones((1, N), dtype=bool), without(N, [4])])
    truth = pbrf(model, kept_DN, damping=torch.linspace(0.1, 1, WIDTH).double())
    assert truth.designs == ("all", "without/row-4")
    assert truth.kind == "pbrf"
    assert truth.recipe["damping"] == {"least": pytest.approx(0.1), "largest": pytest.approx(1.0)}
    assert truth.recipe["minimiser"]["name"] == "LBFGS"
    assert proximal(model, kept_DN, damping=0.5, designs=["a", "b"]).designs == ("a", "b")


def test_each_parameter_has_its_own_damping() -> None:
    model, damping_D = linear(), torch.linspace(0.1, 1, WIDTH).double()
    x_NI = RootRows.of(model).rows_RD
    matrix_DD = (x_NI.T @ x_NI - torch.outer(x_NI[3], x_NI[3])) / N + torch.diag(damping_D)
    expected_Q = query_gradients(model) @ torch.linalg.solve(matrix_DD, row_gradients(model)[3] / N)
    truth = pbrf(model, without(N, [3]), damping=damping_D, minimise=FINE)
    torch.testing.assert_close(moved(truth, model)[0], expected_Q, rtol=1e-8, atol=1e-10)


def test_what_cannot_be_meant_is_refused() -> None:
    model, kept = linear(), without(N, [0])
    with pytest.raises(UsageError, match="damping is 0"):
        pbrf(model, kept, damping=0)
    with pytest.raises(UsageError, match="damping is"):
        proximal(model, kept, damping=torch.ones(3))
    with pytest.raises(UsageError, match=r"expected booleans \[designs, 30 rows\]"):
        pbrf(model, kept[:, 1:], damping=1)
    with pytest.raises(UsageError, match="names for 1 designs"):
        pbrf(model, kept, damping=1, designs=["a", "b"])
    with pytest.raises(UsageError, match="expected a float64 vector"):
        SmallModel(model.outputs, model.losses, model.queries, model.start_D.float())
    with pytest.raises(UsageError, match="one number for each"):
        SmallModel(model.outputs, lambda outputs_NO: outputs_NO.sum(), model.queries, model.start_D)
    with pytest.raises(UsageError, match="tolerance above 0"):
        LBFGS(relative=0, absolute=0)
    with pytest.raises(UsageError, match="at least one step"):
        Descent(0, 0.1)
    with pytest.raises(UsageError, match="tolerance above 0"):
        Newton(max_steps=0)
    with pytest.raises(UsageError, match="without its Hessian"):
        pbrf(model, kept, damping=1, minimise=Newton())


# --------------------------------------------------------------------------------------------------------- minimisers


def test_lbfgs_goes_on_where_values_have_no_digits_left() -> None:
    """A bowl of condition 1e4 on a plateau of 1: its value is flat to rounding long before its gradient is."""
    scales_D = torch.logspace(0, 4, 40, dtype=torch.float64)
    reached = LBFGS(relative=1e-10)(
        lambda t: value_and_gradient(lambda u: 1 + (1e-6 * scales_D * (u - 1) ** 2).sum(), t), torch.zeros(40, dtype=torch.float64)
    )
    assert reached.status == "converged"
    torch.testing.assert_close(reached.theta_D, torch.ones(40, dtype=torch.float64), rtol=0, atol=1e-4)


def test_a_slope_without_end_is_no_minimum() -> None:
    reached = LBFGS(max_steps=50)(lambda t: value_and_gradient(lambda u: -u.sum(), t), torch.zeros(3, dtype=torch.float64))
    assert reached.status in ("max_steps", "diverged")
    assert not reached.usable


def test_gradient_descent_takes_its_steps() -> None:
    reached = Descent(3, 0.5)(lambda t: value_and_gradient(lambda u: (u**2).sum() / 2, t), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(reached.theta_D, torch.full((2,), 0.125, dtype=torch.float64))
    assert (reached.status, reached.passes) == ("ran", 4)


def test_a_network_is_trained_to_a_small_gradient() -> None:
    model = SmallModel(*(getattr(softmax(), name) for name in ("outputs", "losses", "queries", "start_D")), decay=0.01)
    trained = at_minimum(model, LBFGS(relative=0, absolute=1e-9, max_steps=5000))
    assert float(trained.loss(trained.start_D, torch.ones(N).double())[1].add(0.01 * trained.start_D).norm()) <= 1e-9


def test_the_hessian_of_a_network_is_autograds() -> None:
    model, weights_N = softmax(), torch.linspace(0, 2, N, dtype=torch.float64)
    plain = torch.autograd.functional.hessian(lambda t: weights_N @ model.losses(model.outputs(t)) / N, model.start_D)
    torch.testing.assert_close(model.hessian(model.start_D, weights_N), plain, rtol=1e-10, atol=1e-12)
    decayed = training_loss(replace(model, decay=0.3), weights_N)
    assert isinstance(decayed, Curved)
    torch.testing.assert_close(decayed.hessian(model.start_D) - plain, 0.3 * torch.eye(len(plain)).double(), rtol=1e-10, atol=1e-12)


def test_newton_ends_a_quadratic_in_one_step() -> None:
    model, everything_N = linear(decay=0.1), torch.ones(N, dtype=torch.float64)
    model = replace(model, start_D=0.1 * model.start_D)  # near enough for a step that no trust region cuts short
    reached = Newton(relative=1e-10, max_steps=1)(training_loss(model, everything_N), model.start_D)
    x_NI = RootRows.of(model).rows_RD
    row_N = row_gradients(model).mean(0) + 0.1 * model.start_D
    step_D = torch.linalg.solve(x_NI.T @ x_NI / N + 0.1 * torch.eye(WIDTH, dtype=torch.float64), row_N)
    torch.testing.assert_close(reached.theta_D, model.start_D - step_D, rtol=1e-10, atol=1e-12)
    assert reached.status == "converged"
    assert reached.passes < 4 * WIDTH  # a Hessian for the step, one where it ended, no third one


def test_newton_ends_where_lbfgs_ends_and_closer() -> None:
    model = replace(softmax(), decay=0.01)
    everything = training_loss(model, torch.ones(N, dtype=torch.float64))
    rough = LBFGS(relative=1e-4)(everything, model.start_D)
    fine = Newton(relative=0, absolute=1e-12, first=LBFGS(relative=1e-2))(everything, model.start_D)
    assert (rough.status, fine.status) == ("converged", "converged")
    assert fine.gradient_norm <= 1e-12
    assert float(everything(fine.theta_D)[0]) <= float(everything(rough.theta_D)[0])
    trained = replace(model, start_D=fine.theta_D)
    kept_DN = without(N, [3, 8])
    slow, quick = (retrained(trained, kept_DN, way) for way in (LBFGS(relative=0, absolute=1e-10), Newton(relative=0, absolute=1e-10)))
    torch.testing.assert_close(moved(quick, trained), moved(slow, trained), rtol=1e-6, atol=1e-9)


def test_newton_leaves_a_saddle_and_marks_a_slope_without_end() -> None:
    """`(x^2 - 1)^2 + y^2` begun on its ridge: the gradient alone leads to the saddle at 0."""
    near_D = torch.tensor([1e-6, 0.5], dtype=torch.float64)
    reached = Newton()(curved(lambda u: (u[0] ** 2 - 1) ** 2 + u[1] ** 2), near_D)
    torch.testing.assert_close(reached.theta_D.abs(), torch.tensor([1.0, 0.0], dtype=torch.float64), rtol=0, atol=1e-5)
    endless = Newton(max_steps=20)(curved(lambda u: -u.sum()), torch.zeros(3, dtype=torch.float64))
    assert endless.status in ("max_steps", "diverged")


def curved(fn: Callable[[Tensor], Tensor]) -> Curved:
    return Curved(lambda t: value_and_gradient(fn, t), torch.func.jacrev(torch.func.grad(fn)))
