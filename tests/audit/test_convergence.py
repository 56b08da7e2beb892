"""Convergence: the mean gradient by hand, agreement across planted members, and what is unknown without them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import headwater
from headwater.audit.convergence import Convergence, Course, MeanGradient, mean_gradient
from headwater.audit.run import run_checks
from headwater.audit.subject import Subject
from headwater.evaluate.figure import mean_figure
from headwater.index.member_files import MemberRecord, member_home, write_member
from headwater.testing.toys import toy_rows
from headwater.types import Finding
from tests.audit_world import AuditWorld

MEMBERS = (("checkpoint-0", "checkpoint", 0.0), ("checkpoint-9", "checkpoint", 0.9), ("seed-7", "seed", 1.05))
"""Name, role, and where on the way from the base model to the trained one."""


def named(findings: object, name: str) -> Finding:
    return next(finding for finding in findings if finding.name == f"convergence: {name}")  # pyright: ignore


@pytest.fixture(scope="module")
def with_members(audit_world: AuditWorld, tmp_path_factory: pytest.TempPathFactory) -> AuditWorld:
    """The world's run with its base model as an early checkpoint, one halfway between, and one of other weights as another seed."""
    folder = tmp_path_factory.mktemp("members") / "world"
    shutil.copytree(audit_world.folder, folder)
    world = AuditWorld(folder)
    for order, (name, role, share) in enumerate(MEMBERS):
        model = between(world, share, folder / name)
        made = headwater.index(model, folder / "rows.jsonl", folder / f"run-{name}").path
        shutil.move(made, member_home(world.run, name))
        write_member(world.run, MemberRecord(name, role, order, step=int(name.split("-")[1]) if role == "checkpoint" else None))  # pyright: ignore
    return world


def between(world: AuditWorld, share: float, out: Path) -> Path:
    """Weights on the way from the base model to the trained one."""
    from transformers import AutoModelForCausalLM

    base, trained = (AutoModelForCausalLM.from_pretrained(path) for path in (world.base, world.model))
    with torch.no_grad():
        for start, end in zip(base.parameters(), trained.parameters(), strict=True):
            start.copy_(start + share * (end - start))
    shutil.copytree(world.model, out)
    base.save_pretrained(out)
    return out


def test_without_members_only_the_gradient_is_known(subject: Subject) -> None:
    report = Convergence()(subject)
    assert [finding.name.removeprefix("convergence: ") for finding in report.findings] == ["gradient", "checkpoints", "seeds"]
    for what in ("checkpoints", "seeds"):
        found = named(report.findings, what)
        assert found.status == "unknown"
        assert found.next_step
    assert np.isnan(report.evidence["checkpoints"]).all()
    assert report.evidence["checkpoints"].shape == (len(subject.asked.queries),)
    found = named(report.findings, "gradient")
    assert found.status in ("ok", "warn")
    assert found.value is not None


def test_the_mean_gradient_is_that_of_the_rows() -> None:
    source = toy_rows(20, seed=1).index()
    rows_ND = torch.cat([rows_ND for _, rows_ND in source.blocks("gradient")]).double()
    found = mean_gradient(source)
    assert found.norm == pytest.approx(float(rows_ND.mean(0).norm()), rel=1e-6)
    assert found.root_mean_square == pytest.approx(float(rows_ND.square().sum(1).mean().sqrt()), rel=1e-6)
    bad = mean_gradient(toy_rows(20, seed=1).filled(3, torch.nan).index())
    assert bad.n_rows == 19
    assert np.isfinite(bad.norm)


@pytest.mark.parametrize(
    ("end", "along", "status"),
    [(0.05, [1.0, 0.5], "ok"), (0.9, [1.0, 0.5], "warn"), (0.19, [], "ok"), (0.9, [], "warn"), (0.2, [1.0], "ok")],
)
def test_the_gradient_is_held_against_the_training_and_against_chance(end: float, along: list[float], status: str) -> None:
    course = Course([(step, MeanGradient(norm, 1.0, 100)) for step, norm in enumerate(along)], MeanGradient(end, 1.0, 100))
    assert Convergence().gradient(course).status == status


def test_no_finite_gradient_is_unknown() -> None:
    assert Convergence().gradient(Course([], mean_gradient(toy_rows(3, seed=1).filled(slice(None), torch.nan).index()))).status == "unknown"


def test_checkpoints_and_seeds_are_compared_with_the_trace(with_members: AuditWorld) -> None:
    report = Convergence()(with_members.subject())
    checkpoints, seeds = named(report.findings, "checkpoints"), named(report.findings, "seeds")
    assert checkpoints.n == seeds.n == 8
    assert "2 other checkpoints" in checkpoints.because
    assert seeds.value is not None
    assert seeds.value > 0.5
    assert report.evidence["checkpoints"].shape == (8,)
    assert mean_figure(report.evidence["checkpoints"]).value == pytest.approx(checkpoints.value)
    (plot,) = report.plots
    overlap = next(series for series in plot.series if series.name.startswith("overlap"))
    assert list(overlap.x) == [0.0, 9.0]
    assert overlap.y[1] > overlap.y[0]  # pyright: ignore


def test_a_method_that_needs_members_has_a_stand_in(with_members: AuditWorld) -> None:
    trace = headwater.trace(
        with_members.run, queries=with_members.folder / "queries.jsonl", k=5, methods={"tracin": {"weights": "equal"}}, n_reference=0
    )
    report = Convergence()(with_members.subject(trace=trace.folder.name))
    assert "by grad_cos" in named(report.findings, "checkpoints").because


def test_sketches_of_the_same_weights_are_no_seeds(audit_world: AuditWorld, tmp_path: Path) -> None:
    shutil.copytree(audit_world.folder, tmp_path / "world")
    world = AuditWorld(tmp_path / "world")
    shutil.copytree(world.run, tmp_path / "again", ignore=shutil.ignore_patterns("members", "scores"))
    home = member_home(world.run, "seed-3")
    home.parent.mkdir(parents=True)
    shutil.move(tmp_path / "again", home)
    write_member(world.run, MemberRecord("seed-3", "seed", 0))
    found = named(Convergence()(world.subject()).findings, "seeds")
    assert found.status == "unknown"
    assert "other sketches of the same weights" in found.because


@pytest.mark.parametrize(("overlap", "status"), [(0.9, "ok"), (0.4, "warn"), (0.1, "fail")])
def test_rankings_that_share_nothing_fail(overlap: float, status: str) -> None:
    values_Q = overlap + 0.02 * np.random.default_rng(0).normal(size=20)
    assert Convergence().judged(mean_figure(values_Q), chance=0.1) == status


def test_without_a_trace_it_is_unknown(subject: Subject) -> None:
    found = run_checks(replace(subject, trace=None), [Convergence()]).findings
    assert [one.status for one in found] == ["unknown"]
