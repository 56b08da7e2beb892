"""Rows of Adam's update and of gradients over the root of the second moment, against autograd and the formula written out."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from headwater.gradient.rows import row_engine
from headwater.gradient.scope import find_scope, make_layout
from headwater.gradient.sketch import SketchSpec, sides
from headwater.gradient.transform import AdamUpdate, SecondMoment, Transform
from headwater.model import measures
from headwater.model.session import Session
from headwater.training.optimizer import AdamState
from headwater.types import Batch, Layout, LayoutMismatch, UsageError
from tests.exact.models import make_batch, make_session
from tests.exact.test_gradients import reference_gradients

SKETCH = SketchSpec(rank=3, whole_below=30, seed=5)
ARCHITECTURES = ["llama", "gpt2", "mixtral", "gemma3", "bert", "llama_lora"]  # gpt2 and gemma3 tie head and embedding: several uses


@pytest.fixture(autouse=True)
def _double_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in test_gradients: norms and routers in float64 too."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch, "float", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self.double())


def moments(session: Session, *, steps: int = 4) -> AdamState:
    rng = torch.Generator().manual_seed(3)
    first, second = {}, {}
    for name, p in session.model.named_parameters():
        if p.requires_grad:
            first[name] = 0.1 * torch.randn(p.shape, generator=rng, dtype=torch.float64)
            second[name] = torch.rand(p.shape, generator=rng, dtype=torch.float64) * 0.01
    return AdamState(first, second, dict.fromkeys(second, steps), (0.9, 0.95), 1e-3)


def captured(session: Session, layout: Layout, batch: Batch, transform: Transform) -> dict[str, Tensor]:
    with row_engine(session, layout, transform=transform) as engine:
        return layout.split(engine.rows(batch, measures.LOSS).gradient_BD)


def sketched(layout: Layout, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for block in layout.blocks:
        value = whole[block.name]
        for i, side in enumerate(sides(block, layout.sketch_seed, dtype=torch.float64), start=1):
            value = side.project(value.movedim(i, -1)).movedim(-1, i)
        found[block.name] = value
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_adam_row_is_the_step_that_torch_takes_with_that_row_alone(architecture: str) -> None:
    """torch.optim.Adam itself, from the same state, given the row's autograd gradient and a rate of 1: the weights move by -Gamma."""
    session = make_session(architecture)
    batch, state = make_batch(session), moments(session)
    layout = make_layout(session.model, find_scope(session.model), SKETCH)
    gradients = reference_gradients(session, batch)
    expected = {}
    for name, g_B in gradients.items():
        moved = []
        for g in g_B:
            weight = torch.nn.Parameter(torch.zeros_like(g))
            adam = torch.optim.Adam([weight], lr=1.0, betas=state.betas, eps=state.eps)
            first, second = (moment[name].reshape(g.shape).clone() for moment in (state.first, state.second))
            adam.state[weight] = {"step": torch.tensor(float(state.steps[name])), "exp_avg": first, "exp_avg_sq": second}
            weight.grad = g.clone()
            adam.step()
            moved.append(-weight.detach())
        expected[name] = torch.stack(moved)
    got = captured(session, layout, batch, AdamUpdate(state))
    assert any(block.sketched for block in layout.blocks)
    for name, rows in sketched(layout, expected).items():
        torch.testing.assert_close(got[name], rows, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_second_moment_row_is_the_gradient_over_the_root_of_the_factored_moment(architecture: str) -> None:
    session = make_session(architecture)
    batch, state = make_batch(session), moments(session)
    layout = make_layout(session.model, find_scope(session.model), SKETCH)
    expected = {}
    for name, g_B in reference_gradients(session, batch).items():
        v = state.second[name].reshape(g_B.shape[1:]) / (1 - 0.95**4)
        factored = v if v.dim() == 1 else v.sum(1, keepdim=True) * v.sum(0, keepdim=True) / v.sum()
        expected[name] = g_B / factored.sqrt()
    got = captured(session, layout, batch, SecondMoment(state))
    for name, rows in sketched(layout, expected).items():
        torch.testing.assert_close(got[name], rows, rtol=1e-9, atol=1e-11)


def test_how_many_rows_are_whole_at_a_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    session = make_session("llama")
    layout, batch = make_layout(session.model, find_scope(session.model), SKETCH), make_batch(session)
    together = captured(session, layout, batch, AdamUpdate(moments(session)))
    monkeypatch.setattr("headwater.gradient.transform.DENSE_NUMBERS", 2 * 16 * 16)  # two rows of q_proj, one of the larger ones
    for name, rows in captured(session, layout, batch, AdamUpdate(moments(session))).items():
        torch.testing.assert_close(rows, together[name], rtol=1e-9, atol=1e-12)


def test_the_factored_moment_of_a_matrix_of_rank_one_is_the_moment_itself() -> None:
    session = make_session("llama")
    layout = make_layout(session.model, find_scope(session.model, include=["*q_proj.weight"]), SketchSpec(rank=None))
    block = layout.blocks[0]
    r, c = (torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) + 0.1 for n in block.shape)
    state = AdamState({}, {block.name: torch.outer(r, c)}, {block.name: 7}, (0.9, 0.999), 1e-8)
    left, right = SecondMoment(state).scales(block)
    torch.testing.assert_close(torch.outer(left, right), (torch.outer(r, c) / (1 - 0.999**7)).rsqrt())


def test_where_no_row_ever_had_a_gradient_nothing_is_blown_up() -> None:
    session = make_session("llama")
    layout = make_layout(session.model, find_scope(session.model), SketchSpec(rank=None))
    state, batch = moments(session), make_batch(session)
    name = "model.embed_tokens.weight"
    token = int(batch.tokens_BT[0, 0])
    state.second[name][token] = 0
    got = captured(session, layout, batch, SecondMoment(state))[name]
    assert bool(torch.isfinite(got).all())
    assert float(got[:, token].abs().max()) == 0 < float(got.abs().max())


def test_moments_of_other_parameters_are_refused() -> None:
    session = make_session("llama")
    layout, state = make_layout(session.model, find_scope(session.model), SKETCH), moments(session)
    lacking = {name: moment for name, moment in state.second.items() if "q_proj" not in name}
    for transform in (AdamUpdate, SecondMoment):
        with pytest.raises(LayoutMismatch, match="no moments of 4 of"):
            captured(session, layout, make_batch(session), transform(AdamState(state.first, lacking, state.steps, (0.9, 0.95), 1e-8)))


def test_an_adam_update_has_no_parts_by_position() -> None:
    session = make_session("llama")
    layout = make_layout(session.model, find_scope(session.model), SKETCH)
    with (
        pytest.raises(UsageError, match="single position"),
        row_engine(session, layout, per_token=True, transform=AdamUpdate(moments(session))),
    ):
        pass
