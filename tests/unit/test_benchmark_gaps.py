"""The benchmarks of small models at sizes that take seconds: every figure is there, and what has to hold at any size holds."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import fragile, lds_small, pbrf, removal, small

from headwater.curvature import Fisher
from headwater.progress import quiet
from headwater.truth.optimum import LBFGS, Descent, Reached
from headwater.truth.response import retrained, training_loss
from headwater.types import UsageError

GAPS = pbrf.Size(rows=60, steps=40, removals=4, queries=3, subsets=6)


@pytest.fixture(scope="module")
def found() -> dict:
    patch = pytest.MonkeyPatch()
    patch.setattr(pbrf, "LOGISTIC_ROWS", (40,))
    patch.setattr(pbrf, "DAMPINGS", (0.1,))
    patch.setattr(pbrf, "accepted", lambda result: {})
    with quiet():
        yield pbrf.measure(GAPS, seeds=[0])
    patch.undo()


def test_the_five_gaps_add_up_on_a_network(found: dict) -> None:
    one = found["by_seed"][0]["0.1"]
    assert one["n"] == 4 * 3
    assert one["telescoping_error"] <= 1e-10
    assert set(one["sizes"]) == {"warm_start", "proximity", "non_convergence", "linearisation", "solver_error"}
    assert set(one["pearson"]) == {"cold", "cold, same start", "warm", "proximal", "pbrf"}
    assert one["pearson"]["pbrf"] > 0.8


def test_a_broken_solver_moves_its_own_gap_only(found: dict) -> None:
    one = found["by_seed"][0]["0.1"]
    assert one["broken"]["others_moved"] == 0
    assert one["broken"]["solver_error"] > 10 * one["sizes"]["solver_error"]


def test_ridge_is_exact_and_softmax_regression_ranks_halves(found: dict) -> None:
    assert found["ridge"]["largest_relative_error"] < 1e-6
    assert found["ridge"]["without the leverage"] > 1e-3
    assert found["logistic_lds"]["40"]["lds"] > 0.5


def test_finished_parts_are_not_done_again(tmp_path: Path) -> None:
    done: list[str] = []

    def jobs(*names: str) -> dict:
        return {name: lambda name=name: done.append(name) or {"name": name} for name in names}

    small.resumed(jobs("a", "b"), kept=tmp_path / "kept.json")
    assert small.resumed(jobs("a", "b", "c"), kept=tmp_path / "kept.json") == {name: {"name": name} for name in "abc"}
    assert done == ["a", "b", "c"]
    assert set(json.loads((tmp_path / "kept.json").read_text())) == {"a", "b", "c"}


# ------------------------------------------------------------------------------------------------------- shared parts


def test_root_rows_have_the_gauss_newton_matrix() -> None:
    """Of softmax regression the Gauss-Newton matrix is the Hessian; so what solves on stored rows solves on it."""
    net, generator = small.Tanh((3, 4)), torch.Generator().manual_seed(0)
    x_NI, y_N = torch.randn(9, 3, generator=generator, dtype=torch.float64), torch.arange(9) % 4
    model = small.SmallModel(lambda t: net(t, x_NI), small.cross_entropy(y_N), lambda t: net(t, x_NI)[:2, 0], net.drawn(1))
    source = small.RootRows.of(model)
    torch.testing.assert_close(source.matrix(), small.hessian(model), rtol=1e-8, atol=1e-10)
    fisher, b_KD = Fisher(0.1, joint=True), small.query_gradients(model)
    expected_KD = torch.linalg.solve(small.hessian(model) + 0.1 * torch.eye(net.size).double(), b_KD.T).T
    torch.testing.assert_close(fisher.solve(fisher.fit(source), source, b_KD).value, expected_KD, rtol=1e-7, atol=1e-9)


def test_gauss_newton_is_the_sum_over_rows_and_for_a_linear_model_the_hessian() -> None:
    """`J' (diag p - p p') J` row by row, of softmax; a tanh layer bends, so there the Hessian is another and has a negative part."""
    linear, bent = (fragile.network(fragile.drawn(fragile.Size(rows=7), 0), depth, 0.05, 0) for depth in (0, 2))
    torch.testing.assert_close(small.gauss_newton(linear), small.hessian(linear), rtol=1e-9, atol=1e-12)
    jacobians_NOD = torch.func.jacrev(bent.outputs)(bent.start_D)
    expected_DD = 0.05 * torch.eye(len(bent.start_D)).double()
    for p_O, jacobian_OD in zip(bent.outputs(bent.start_D).softmax(-1), jacobians_NOD, strict=True):
        expected_DD += jacobian_OD.T @ (torch.diag(p_O) - torch.outer(p_O, p_O)) @ jacobian_OD / 7
    torch.testing.assert_close(small.gauss_newton(bent), expected_DD, rtol=1e-9, atol=1e-12)
    assert torch.linalg.eigvalsh(small.gauss_newton(bent))[0] > 0.05 - 1e-9
    assert torch.linalg.eigvalsh(small.hessian(bent))[0] < 0


def test_networks_trained_together_are_trained_apart() -> None:
    net, rng = small.Tanh((3, 4, 2)), np.random.default_rng(0)
    x_NI, y_N = torch.from_numpy(rng.normal(size=(12, 3))), torch.arange(12) % 2
    kept_SN = np.stack([np.ones(12, dtype=bool), np.arange(12) < 6])
    both_SD = small.trained_together(net, x_NI, y_N, kept_SN, [1, 2], steps=20, decay=0.01)
    for s in range(2):
        alone_SD = small.trained_together(net, x_NI[kept_SN[s]], y_N[kept_SN[s]], np.ones((1, kept_SN[s].sum()), dtype=bool), [s + 1],
                                          steps=20, decay=0.01)  # fmt: skip
        torch.testing.assert_close(both_SD[s], alone_SD[0], rtol=1e-6, atol=1e-8)
    assert (both_SD[0] - net.drawn(1)).abs().max() > 0.1


def test_agreement_is_undetermined_where_a_side_does_not_vary() -> None:
    ramp_M = np.arange(6.0)
    assert small.agreement(ramp_M, 2 * ramp_M) == pytest.approx({"pearson": 1, "spearman": 1, "slope": 2})
    for other_M in (np.ones(6), np.full(6, np.nan), np.zeros(6), 5 + 1e-12 * ramp_M):
        assert small.agreement(ramp_M, other_M) is None
        assert small.agreement(other_M, ramp_M) is None
    assert small.agreement(ramp_M[:2], ramp_M[:2]) is None
    both = small.mean_agreement(np.stack([ramp_M, ramp_M]), np.stack([ramp_M, np.ones(6)]))
    assert (both["pearson"], both["undetermined"]) == (pytest.approx(1), 1)


def test_training_that_does_not_end_is_an_error() -> None:
    net = small.Tanh((3, 2))
    x_NI, y_N = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.arange(6) % 2
    model = small.SmallModel(lambda t: net(t, x_NI), small.cross_entropy(y_N), lambda t: net(t, x_NI)[:1, 0], net.drawn(0), decay=0.01)
    with pytest.raises(RuntimeError, match="max_steps"):
        small.at_minimum(model, LBFGS(max_steps=1))
    assert isinstance(Descent(1, 0.1)(lambda t: model.loss(t, torch.ones(6).double()), model.start_D), Reached)


# ------------------------------------------------------------------------------------------------------------- fragile


def test_depth_and_decay_have_a_cell_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fragile, "STEPS", 200)
    with quiet():
        result = fragile.measure(fragile.Size(rows=30, depths=(1,), removals=5, noise=(1,)), seeds=[0])
    cells = result["cells"]
    assert set(cells) == {"ridge", "softmax regression", "depth 1, decay", "depth 1"}
    assert cells["ridge"]["spearman"] > 0.8
    assert cells["depth 1, decay"]["lam_max"] > cells["depth 1, decay"]["lam_min"] > 0
    assert result["by_seed"]["depth 1, decay"][0]["gradient"] <= fragile.GRADIENT
    assert result["by_seed"]["depth 1, decay"][0]["removals"] == 5
    assert result["noise"]["depth 1, decay"][0]["starts"] == 2
    assert result["accepted"]["decay better at depth 4"] == "undetermined"
    for cell in cells.values():
        assert cell["seeds"] + len(cell["undetermined"]) == 1
        assert cell["seeds"] or cell["spearman"] is None


GOOD = {"agreement": {"spearman": 0.5, "pearson": 0.4, "slope": 1.0}, "undetermined": None, "lam_min": 0.1, "lam_max": 1.0}
BAD = GOOD | {"agreement": None, "undetermined": "nothing moved"}


def test_a_seed_without_figures_is_in_no_mean() -> None:
    cell = fragile.summary([GOOD, BAD])
    assert (cell["spearman"], cell["seeds"], cell["undetermined"]) == (0.5, 1, ["nothing moved"])
    assert cell["spearman_by_seed"] == [0.5, "undetermined"]
    for most in ([GOOD, BAD, BAD], [BAD]):
        none = fragile.summary(most)
        assert (none["spearman"], none["pearson"], none["slope"]) == (None, None, None)
        assert none["seeds"] == sum(one is GOOD for one in most)


def test_each_line_is_reached_missed_or_undetermined() -> None:
    cells = {f"depth {depth}{decay}": {"spearman": value} for depth, decay, value in
             ((1, ", decay", 0.9), (6, ", decay", 0.8), (2, ", decay", 0.9), (2, "", 0.7), (4, ", decay", 0.8), (4, "", None))}  # fmt: skip
    assert fragile.accepted(cells) == {
        "depth 1 with decay >= .75": "reached",
        "depth 6 at least .15 lower": "missed",
        "decay better at depth 2": "reached",
        "decay better at depth 4": "undetermined",
        "ridge > .95": "undetermined",
        "softmax regression > .95": "undetermined",
    }


def test_what_says_nothing_is_said() -> None:
    ramp_M = np.arange(1.0, 6.0)
    assert fragile.still(ramp_M, 0.1) == ""
    assert "below the noise of the rule" in fragile.still(ramp_M, 3.5)
    assert "below the noise of the rule" in fragile.still(0 * ramp_M, 0.0)
    assert "saddle" in fragile.saddle(-0.1)
    assert fragile.saddle(-1e-9) == ""


def test_a_network_that_reached_no_optimum_is_judged_by_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    size = fragile.Size(rows=30, removals=4)
    monkeypatch.setattr(fragile, "STEPS", 2)
    with quiet():
        network = fragile.judged(fragile.named_model(size, 0, "depth 1"), size)
    assert network["agreement"] is None
    assert "the rule asks for 1e-05" in network["undetermined"]


def test_trainings_without_a_row_that_did_not_end_are_counted() -> None:
    size = fragile.Size(rows=30, removals=4)
    model = replace(fragile.named_model(size, 0, "softmax regression"), decay=0.1)
    kept_MN = small.without(30, range(4))
    with quiet():
        short, whole = (retrained(model, kept_MN, LBFGS(max_steps=steps)) for steps in (1, 100))
    assert fragile.late(short).startswith("4 of 4 trainings without a row did not end")
    assert fragile.late(whole) == ""


def test_trainings_at_once_are_trainings_apart() -> None:
    """With no momentum each is plain gradient descent on its own loss; in two parts it is the same, for momentum is carried on."""
    model = fragile.named_model(fragile.Size(rows=12), 0, "depth 2, decay")
    kept_RN, rest = small.without(12, [3, 5, 3]), small.Underway.at_rest(model.start_D).copies(3)
    both = small.trained_on(model, kept_RN, rest, small.Momentum(0.1, 0.0), steps=30)
    for r, kept_N in enumerate(kept_RN):
        alone = Descent(30, 0.1)(training_loss(model, torch.from_numpy(kept_N).double()), model.start_D)
        torch.testing.assert_close(both.theta_RD[r], alone.theta_D, rtol=1e-9, atol=1e-11)
    whole = small.trained_on(model, kept_RN, rest, fragile.BUDGET, steps=40)
    part = small.trained_on(model, kept_RN, rest, fragile.BUDGET, steps=25)
    torch.testing.assert_close(small.trained_on(model, kept_RN, part, fragile.BUDGET, steps=15).theta_RD, whole.theta_RD, rtol=0, atol=0)
    assert (whole.theta_RD[0] == whole.theta_RD[2]).all()
    assert (whole.theta_RD[0] != whole.theta_RD[1]).any()


def underway(model: small.SmallModel, steps: int) -> tuple[fragile.Judged, small.Underway]:
    every_1N = np.ones((1, len(model.train_ids)), dtype=bool)
    at = small.trained_on(model, every_1N, small.Underway.at_rest(model.start_D), fragile.BUDGET, steps=steps)
    return fragile.Judged.at(model, fragile.stopped(model, at.theta_RD[0])), at


@pytest.mark.parametrize("name", ["ridge", "softmax regression"])
def test_where_training_ends_an_equal_budget_is_training_to_the_minimum(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fragile, "FURTHER_STEPS", 2500)
    model = replace(fragile.named_model(fragile.Size(rows=30), 0, name), decay=0.1)
    one, at = underway(model, 2500)
    removed_M = one.strongest(5)
    with quiet():
        truth = retrained(one.model, small.without(30, removed_M), LBFGS(relative=0, absolute=1e-11))
    changes_M, drift, noise = fragile.further(one, at, removed_M)
    np.testing.assert_allclose(changes_M, truth.outcomes_DSQ[:, 0, 0] - one.before, rtol=1e-3)
    assert abs(drift) < 1e-3 * np.abs(changes_M).min()
    assert noise < 1e-9


def test_the_drift_that_all_share_cancels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Far from any end one step without row n is the control's, plus rate / N times the row's own gradient, to first order."""
    model = fragile.named_model(fragile.Size(rows=30), 0, "depth 2")
    one, at = underway(model, 20)
    monkeypatch.setattr(fragile, "FURTHER_STEPS", 1)
    changes_M, drift, noise = fragile.further(one, at, np.arange(5))
    slopes_M = small.row_gradients(one.model)[:5] @ small.query_gradients(one.model)[0]
    np.testing.assert_allclose(changes_M, fragile.BUDGET.rate / 30 * slopes_M.numpy(), rtol=0.1)
    assert abs(drift) > 100 * np.abs(changes_M).max()
    assert 0 < noise < 1e-9


@pytest.mark.parametrize("title", fragile.CURVATURES)
def test_by_an_equal_budget_every_network_has_a_figure_or_a_reason(title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fragile, "BUDGET_STEPS", 300)
    monkeypatch.setattr(fragile, "FURTHER_STEPS", 300)
    size = fragile.Size(rows=30, depths=(1, 2), removals=5)
    with quiet():
        result = fragile.by_budget(size, title, seeds=[0, 1])
    assert set(result["cells"]) == set(fragile.cell_names(size)) == set(result["by_seed"])
    for found in result["by_seed"].values():
        assert all((one["agreement"] is None) == bool(one["undetermined"]) for one in found)
    assert result["cells"]["ridge"]["seeds"] == 2
    assert result["gain_by_decay"]["depth 1"]["seeds"] <= 2
    assert result["accepted"][f"decay better at depth 4 ({title})"] == "undetermined"
    saddles = [cell for cell in result["cells"].values() if any("saddle" in reason for reason in cell["undetermined"])]
    assert bool(saddles) == (title == fragile.EQUAL_BUDGET)


def test_an_effect_of_nothing_has_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A measure that does not depend on the weights is moved by nothing, and neither is its noise."""
    monkeypatch.setattr(fragile, "BUDGET_STEPS", 20)
    monkeypatch.setattr(fragile, "FURTHER_STEPS", 20)
    model = fragile.named_model(fragile.Size(rows=12), 0, "softmax regression")
    found = fragile.judged_by_budget(replace(model, queries=lambda theta_D: 0 * theta_D[:1]), fragile.Size(rows=12, removals=3))
    assert found["agreement"] is None
    assert (found["median_effect"], found["drift"], found["noise_of_the_rule"]) == (0, 0, 0)
    assert "below the noise of the rule" in found["undetermined"]
    assert fragile.lost(np.array([0.0, np.nan])) == "1 of 2 trainings without a row are no longer numbers"


def test_what_decay_changes_is_asked_of_the_same_seeds() -> None:
    better = GOOD | {"agreement": GOOD["agreement"] | {"spearman": 0.8}}
    found = fragile.gain([better, better, GOOD], [GOOD, BAD, GOOD])
    assert found["by_seed"] == [pytest.approx(0.3), "undetermined", 0]
    assert (found["mean"], found["seeds"]) == (pytest.approx(0.15), 2)
    assert found["interval"][0] < 0 < found["interval"][1]
    few = fragile.gain([better, better, GOOD], [GOOD, BAD, BAD])
    assert (few["mean"], few["interval"], few["seeds"]) == (None, None, 1)
    lines = fragile.accepted_by_budget({"depth 2": found, "depth 4": few})
    assert list(lines.values()) == ["reached", "undetermined"]
    assert fragile.accepted_by_budget({"depth 4": {"mean": -0.1}})["decay better at depth 4 (equal budget)"] == "missed"


def test_a_rule_that_was_not_run_stays_as_recorded() -> None:
    known = {"command": "a", "cells": 1, "accepted": {"x": "reached"}}
    both = fragile.joined(known, {fragile.EQUAL_BUDGET: {"command": "b", "accepted": {"y": "missed"}}})
    assert (both["command"], both["cells"], both[fragile.EQUAL_BUDGET]["command"]) == ("a", 1, "b")
    assert both["accepted"] == {"x": "reached", "y": "missed"}
    again = fragile.joined(both, {"command": "c", "cells": 2, "accepted": {"x": "missed"}})
    assert (again["command"], again["cells"], again[fragile.EQUAL_BUDGET]["command"]) == ("c", 2, "b")
    assert again["accepted"] == {"x": "missed", "y": "missed"}
    third = fragile.joined(again, {fragile.GAUSS_NEWTON: {"command": "d", "accepted": {"z": "reached"}}})
    assert [third[title]["command"] for title in fragile.CURVATURES] == ["b", "d"]
    assert third["accepted"] == {"x": "missed", "y": "missed", "z": "reached"}


# ---------------------------------------------------------------------------------------------------------- lds, removal


def test_lds_of_digits_by_each_method() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 10
    pixels = np.eye(10)[labels] @ rng.normal(size=(10, 64)) + 0.5 * rng.normal(size=(80, 64))
    size = lds_small.Size(rows=60, queries=6, subsets=8, seeds=2, steps=30, ensemble=2)
    with quiet():
        result = lds_small.measure(size, data=(pixels, labels))
    for model in ("logistic regression", "network"):
        assert {"cg, the default", "cg, the weight decay", "trak_1", "trak_2", "random", "ceiling"} <= set(result[model])
        assert all(-1 <= one["lds"] <= 1 for one in result[model].values())
        assert sum("best_of_the_dampings" in one for one in result[model].values()) == 1
    assert result["logistic regression"]["cg, the weight decay"]["lds"] > 0.4


def test_without_scikit_learn_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UsageError, match="pip install -c constraints"):
        lds_small.digits()


def test_removal_designs_are_each_querys_own() -> None:
    size = removal.Size(rows=30, queries=2, seeds=5, draws=2, steps=20)
    scores, truth = removal.tables(size, world=0)
    assert truth.outcomes_DSQ.shape == (1 + 2 * 3 + 2, 5, 2)
    for q in range(2):
        gone = np.flatnonzero(~truth.kept_DN[truth.designs.index(f"most/3/{q}")])
        assert set(gone) == set(np.argsort(-scores.values_QN[q])[:3])
    world = removal.one_world(size, world=0)
    assert world["status"] in ("ok", "fail", "unknown")
    assert {point["pick"] for point in world["points"]} == {"none", "most", "least", "zero", "random"}
    assert all(math.isfinite(point["change"]) for point in world["points"])
