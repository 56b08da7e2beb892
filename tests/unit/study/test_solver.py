"""Cause 1: Theorem 1's regime against dense matrices, and what each solver is found to make of a gradient."""

from dataclasses import replace

import pytest
import torch

from headwater.study.metrics import class_figures
from headwater.study.parts.example_space import Piece
from headwater.study.parts.solver import FACTORS, MADE_OF, Solver, cosine_within, regime, sweep
from headwater.study.world import World
from headwater.types import Block, Layout, UsageError


@pytest.fixture(scope="module")
def outcome(world: World):
    return Solver(lissa_steps=50)(world)


@pytest.fixture(scope="module")
def found(outcome):
    return {(cell.method, cell.metric, cell.variant): cell.value for cell in outcome.cells}


@pytest.mark.parametrize("n_numbers", [4, 30])
def test_the_regime_is_that_of_the_matrix(n_numbers):
    g_ND = torch.randn(9, n_numbers, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = regime(Piece(0, n_numbers, torch.zeros(1, 9, dtype=torch.float64), g_ND @ g_ND.T))
    c_DD, eye_DD = g_ND.T @ g_ND / 9, torch.eye(n_numbers, dtype=torch.float64)
    damping = 0.1 * float(c_DD.trace()) / n_numbers
    eigenvalues_D = torch.linalg.eigvalsh(c_DD)
    rank = min(9, n_numbers)
    assert found.largest == pytest.approx(float(eigenvalues_D.max()) / damping)
    assert found.mean == pytest.approx(float(eigenvalues_D[-rank:].mean()) / damping)
    assert found.rank == pytest.approx(rank / 9)
    error = torch.linalg.matrix_norm(eye_DD / damping - torch.linalg.inv(c_DD + damping * eye_DD), ord=2)
    assert found.error == pytest.approx(float(error) * damping)
    assert found.bound == pytest.approx(float(eigenvalues_D.max()) / damping**2 * damping)
    assert found.error < found.bound


def test_theorem_1_is_told_with_the_median_over_tensors(outcome, world: World):
    cells = {cell.metric: cell for cell in outcome.cells if cell.method == "theorem 1"}
    assert cells["mean eigenvalue over damping"].value >= 10 * 32 / len(
        world.rows
    )  # trace over N directions at most, lambda a tenth of it over d
    assert cells["error"].value < 1 < cells["bound on the error"].value
    assert cells["error"].n == len(world.index.layout.blocks)
    assert cells["error"].over == "tensors"


def test_every_solver_has_every_metric_once(outcome):
    keys = [(cell.method, cell.metric, cell.variant) for cell in outcome.cells]
    assert len(keys) == len(set(keys))
    for solver in Solver().solvers:
        assert all((solver, metric, "") in keys for metric in MADE_OF)


def test_the_released_lissa_never_leaves_the_gradient(found):
    assert found["lissa_released", "cosine to gradient", ""] > 0.999
    assert found["lissa_released", "cosine to gradient within a tensor", ""] > 0.999
    assert found["lissa_released", "rank correlation to dot", ""] > 0.999
    assert found["lissa_released", "residual", ""] > 1  # no answer at all is nearer


def test_the_exact_fisher_is_its_own_reference(found):
    assert found["fisher", "residual", ""] < 1e-6
    assert found["fisher", "rank correlation to exact Fisher", ""] == pytest.approx(1)
    assert found["fisher", "cosine to gradient within a tensor", ""] < 0.9
    assert found["fisher", "rank correlation to dot", ""] == pytest.approx(
        found["lissa_released", "rank correlation to exact Fisher", ""], abs=1e-3
    )


def test_a_joint_solver_solves_the_joint_equation(found):
    assert found["cg", "joint residual", ""] < 0.2 < found["cg", "residual", ""]
    assert found["datainf", "residual", ""] > found["fisher", "residual", ""]


def test_the_sweep_at_the_default_damping_is_the_packages_fisher(found, world: World):
    expected = class_figures(world.scores("fisher").values_QN, world.labels, world.k)
    for metric in ("accuracy", "cover", "auroc"):
        assert found["fisher", metric, "damping=0.1"] == pytest.approx(expected[metric].value)
    assert all(("fisher", "cover", f"damping={factor:g}") in found for factor in FACTORS)


def test_the_sweep_is_drawn(outcome, found):
    line = next(series for series in outcome.plots[0].series if series.name == "cover")
    assert list(line.x) == list(FACTORS)
    assert list(line.y) == [found["fisher", "cover", f"damping={factor:g}"] for factor in FACTORS]
    assert outcome.plots[0].log_x


def test_cosine_within_a_tensor_is_blind_to_their_weights():
    layout = Layout((Block("a", (2,), (2,)), Block("b", (2,), (2,)), Block("c", (1,), (1,))))
    v_KD = torch.tensor([[1.0, 2, 3, 4, 5]], dtype=torch.float64)
    weighed_KD = v_KD * torch.tensor([10.0, 10, 1, 1, 0.1])
    assert cosine_within(layout, weighed_KD, v_KD) == pytest.approx([1.0])
    turned_KD = torch.tensor([[2.0, -1, -4, 3, 5]], dtype=torch.float64)
    assert cosine_within(layout, turned_KD, v_KD) == pytest.approx([0.0])


def test_solvers_by_scans_are_left_out_where_scans_are_costly(world: World):
    cells = [cell for cell in Solver(numbers=1, solvers=("cg", "datainf"))(world).cells if cell.metric == "residual"]
    cg, datainf = sorted(cells, key=lambda cell: cell.method)
    assert cg.value is None
    assert "too many" in cg.because
    assert datainf.value is not None


def test_a_solver_that_cannot_solve_leaves_its_reason(world: World):
    unknown = Solver(solvers=("no such",))(world).cells
    assert any(cell.method == "no such" and cell.value is None and "no such" in cell.because for cell in unknown)


def test_without_any_gradient_there_is_nothing_to_solve(world: World):
    with pytest.raises(UsageError, match="every gradient of the index is zero"):
        sweep(world, [], [0.1])


def test_a_quick_world_takes_fewer_steps(world: World, monkeypatch: pytest.MonkeyPatch):
    steps = []
    monkeypatch.setattr(
        "headwater.study.parts.solver.solved",
        lambda world, name, v_KD, options: steps.append(options) or (v_KD, torch.ones(len(world.index.layout.blocks))),
    )
    for is_quick in (False, True):
        size = replace(world.size, is_quick=is_quick)
        Solver(solvers=("lissa",))(World(world.folder, world.task, world.model, world.base, size, world.seed))
    assert steps == [{"max_steps": 1000}, {"max_steps": 200}]
