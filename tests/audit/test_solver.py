"""The solver's check: the exact solve by another way, what the paper's released LiSSA did, and planted faults of the curvature in use."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import headwater
from headwater import curvature
from headwater.audit.artefacts import Artefacts
from headwater.audit.check import Report
from headwater.audit.convergence import Convergence
from headwater.audit.run import run_checks
from headwater.audit.solver import Bench, Solver, effective_damping, returned_gradient
from headwater.audit.subject import Subject
from headwater.curvature import Fisher, LiSSAReleased
from headwater.curvature.operators import spread
from headwater.testing.toys import toy_rows
from headwater.types import Finding, Solve, Source, State, UsageError
from tests.audit_faults import Subtracted
from tests.audit_world import AuditWorld

SCORES = Path("../shared/data/paper/scores/llama-2-7b-chat")
ALONE = Solver(curvatures=(), queries=4)


@pytest.fixture(scope="module")
def world(audit_world: AuditWorld, tmp_path_factory: pytest.TempPathFactory) -> AuditWorld:
    """A copy, into whose run further traces may be written."""
    folder = tmp_path_factory.mktemp("solver") / "world"
    shutil.copytree(audit_world.folder, folder)
    return AuditWorld(folder)


def traced(world: AuditWorld, method: str, **options: object) -> Report:
    """The check of a trace by this method."""
    return ALONE(traced_subject(world, method, **options))


def traced_subject(world: AuditWorld, method: str, **options: object) -> Subject:
    trace = headwater.trace(
        world.run, queries=world.folder / "queries.jsonl", k=5, methods={method: options, "grad_dot": {}}, n_reference=0
    )
    return world.subject(trace=trace.folder.name)


def named(report: Report, name: str) -> Finding:
    return next(finding for finding in report.findings if finding.name == name)


# ------------------------------------------------------------------------------------------------------ healthy solvers


def test_a_trace_that_solves_nothing_has_no_solver_to_doubt(subject: Subject) -> None:
    report = Solver(queries=3)(subject)
    assert named(report, "solver").status == "ok"
    assert {finding.status for finding in report.findings} == {"ok"}
    told = {finding.name.removeprefix("solver: "): finding for finding in report.findings if finding.name.startswith("solver: ")}
    assert set(told) == {*Solver().curvatures, "damping"}
    assert "returned the gradient" in told["lissa_released"].because
    assert "returned the gradient" not in told["fisher"].because
    assert told["nystrom"].value is not None
    assert told["nystrom"].value < 1e-4  # its rank is that of all rows: an exact solve by another way
    assert "correlates with the exact one by 1.00" in told["nystrom"].because
    assert [plot.title for plot in report.plots] == ["Damping sweep", "Solvers on one reference operator"]


@pytest.mark.parametrize("method", ["fisher", "cg"])
def test_a_sound_solver_is_ok(world: AuditWorld, method: str) -> None:
    found = named(traced(world, method), f"solver: {method}")
    assert found.status == "ok", found.because
    assert found.value is not None
    assert found.n == 4


def test_the_live_model_is_the_reference_where_the_trace_solves_there(world: AuditWorld) -> None:
    found = named(traced(world, "ekfac", mode="model"), "solver: ekfac")
    assert found.status in ("ok", "warn"), found.because
    assert found.n == 2


# --------------------------------------------------------------------------------------------------------- planted faults


def test_a_lissa_that_never_left_the_gradient_fails(world: AuditWorld) -> None:
    report = traced(world, "lissa_released")
    found = named(report, "solver: lissa_released")
    assert found.status == "fail"
    assert "this solver returned the gradient" in found.because
    assert "they are the gradient product under another name" in found.because
    assert found.next_step
    assert [finding.name for finding in report.findings if finding.status == "fail"] == ["solver: lissa_released"]


def test_a_damping_that_drowns_the_curvature_fails_as_the_gradient(world: AuditWorld) -> None:
    found = named(traced(world, "fisher", damping=effective_damping(5e-3, 1e7)), "solver: fisher")
    assert found.status == "fail"
    assert "times the mean eigenvalue" in found.because


@dataclass(frozen=True)
class Diverging(Fisher):
    joint: bool = True
    name = "diverging"

    def solve(self, state: State, source: Source, b_KD: Tensor) -> Solve:
        return replace(super().solve(state, source, b_KD), value=1e6 * b_KD / float(state["damping"][0]), status="max_steps")


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for fault in (Subtracted, Diverging):
        monkeypatch.setitem(curvature._curvatures, fault.name, fault)


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize("method", ["lissa_released", "subtracted"])
def test_a_broken_solver_fails_no_other_check(world: AuditWorld, method: str) -> None:
    found = run_checks(traced_subject(world, method), [ALONE, Convergence(), Artefacts()]).findings
    assert [finding.name for finding in found if finding.status == "fail"] == [f"solver: {method}"]


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize(("method", "said"), [("subtracted", "as if the damping were subtracted"), ("diverging", "diverged")])
def test_a_broken_solver_fails_and_no_other_finding(world: AuditWorld, method: str, said: str) -> None:
    report = traced(world, method)
    found = named(report, f"solver: {method}")
    assert found.status == "fail"
    assert said in found.because
    assert [finding.name for finding in report.findings if finding.status == "fail"] == [found.name]


# ----------------------------------------------------------------------------------------------------------- its numbers


def test_the_exact_solve_with_a_damping_for_each_block_is_that_of_the_dense_matrix() -> None:
    source = toy_rows(20, seed=1).index()
    rows_ND = torch.cat([rows_ND for _, rows_ND in source.blocks("gradient")]).double()
    v_KD = torch.randn(3, source.layout.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    damping_L = torch.linspace(0.1, 2.0, len(source.layout.blocks), dtype=torch.float64)
    found_KD = Bench(source, v_KD, True).exact(damping_L)
    matrix_DD = rows_ND.T @ rows_ND / len(rows_ND) + torch.diag(spread(damping_L, source.layout))
    torch.testing.assert_close(found_KD, torch.linalg.solve(matrix_DD, v_KD.T).T, rtol=1e-8, atol=1e-10)
    told = Bench(source, v_KD, True).measure(Fisher(damping=0.5, joint=True))
    assert told.residual < 1e-4
    assert told.error is not None
    assert told.error < 1e-4
    assert not told.far_side
    assert not told.diverged


def test_a_literature_setting_damps_by_50() -> None:
    """FastIF's damping 5e-3 at a scale of 1e4: the recursion ends at `(H + 50)^-1 v`, which is the gradient but for its length."""
    assert effective_damping(5e-3, 1e4) == 50
    generator = torch.Generator().manual_seed(0)
    rows_ND = torch.randn(60, 30, generator=generator, dtype=torch.float64)
    matrix_DD, v_D = rows_ND.T @ rows_ND / 60, torch.randn(30, generator=generator, dtype=torch.float64)
    x_D = v_D
    for _ in range(20_000):
        x_D = v_D + (1 - 5e-3) * x_D - matrix_DD @ x_D / 1e4
    exact_D = torch.linalg.solve(matrix_DD + effective_damping(5e-3, 1e4) * torch.eye(30, dtype=torch.float64), v_D)
    torch.testing.assert_close(x_D / 1e4, exact_D, rtol=1e-8, atol=0)
    assert torch.nn.functional.cosine_similarity(x_D, v_D, dim=0) > 0.999


def test_three_released_steps_are_four_gradients() -> None:
    toy = toy_rows(20, seed=1)
    source = toy.scaled(1e-3).index()
    rows_ND = torch.cat([rows_ND for _, rows_ND in source.blocks("gradient")])
    released = LiSSAReleased()
    x_KD = released.solve(released.fit(source), source, rows_ND[:4]).value
    found = returned_gradient((x_KD @ rows_ND.T).numpy(), (rows_ND[:4] @ rows_ND.T).numpy())
    assert found.gradient
    assert found.ratio == pytest.approx(4.0, abs=1e-3)
    assert "4.00 times" in str(found)


@pytest.mark.skipif(not SCORES.is_dir(), reason="the paper's scores are not here")
@pytest.mark.parametrize("name", ["math_10", "mixedS_50", "grammars_10"])
def test_the_papers_own_scores(name: str) -> None:
    """DataInf's are no gradient product; LiSSA's, where they are here, are four of them."""
    gradient_QN = read_scores(SCORES / f"{name}_gmatch.csv")
    assert not returned_gradient(read_scores(SCORES / f"{name}_inf.csv"), gradient_QN).gradient
    released = SCORES / f"{name}_lissa.csv"
    if released.is_file():
        found = returned_gradient(read_scores(released), gradient_QN)
        assert found.gradient
        assert found.ratio == pytest.approx(2.56 if name == "grammars_10" else 4.0, abs=0.01)


def read_scores(path: Path) -> np.ndarray:
    return np.loadtxt(path, delimiter=",", skiprows=1)[:, 1:]


def test_scores_of_other_queries_are_refused() -> None:
    with pytest.raises(UsageError, match="the same"):
        returned_gradient(np.ones((2, 3)), np.ones((3, 3)))


def test_without_a_trace_it_is_unknown(subject: Subject) -> None:
    found = run_checks(replace(subject, trace=None), [Solver()]).findings
    assert [(one.name, one.status) for one in found] == [("solver", "unknown")]


def test_where_the_rows_are_too_many_only_the_traces_own_curvature_is_measured(subject: Subject) -> None:
    report = Solver(numbers=10)(subject)
    assert not [finding for finding in report.findings if finding.name == "solver: lissa"]
