"""Per-example gradients equal autograd's, one example at a time, for every architecture that the README names."""

from __future__ import annotations

import pytest
import torch

from headwater.gradient.rows import row_engine
from headwater.gradient.scope import find_scope, make_layout, matrix_shape
from headwater.gradient.sketch import SketchSpec, sides
from headwater.model import measures
from headwater.model.session import Session
from headwater.types import Batch, Layout
from tests.exact.models import ARCHITECTURES, make_batch, make_session, single

WHOLE = SketchSpec(rank=None)


def reference_loss(session: Session, batch: Batch) -> torch.Tensor:
    """The model's own forward and a textbook cross-entropy on it: shares no code with what is tested."""
    if session.task == "sequence-classification":
        logits = session.model(input_ids=batch.tokens_BT, attention_mask=torch.ones_like(batch.tokens_BT)).logits
        return torch.nn.functional.cross_entropy(logits, batch.labels_B)
    logits = session.model(input_ids=batch.tokens_BT, use_cache=False).logits[0, :-1]
    log_probs = logits.log_softmax(-1)[torch.arange(len(logits)), batch.tokens_BT[0, 1:]]
    return -(log_probs * batch.loss_mask_BT[0, 1:]).sum()


def reference_gradients(session: Session, batch: Batch) -> dict[str, torch.Tensor]:
    """{parameter: [B, *matrix shape]}"""
    named = {name: p for name, p in session.model.named_parameters() if p.requires_grad}
    rows = []
    for row in range(len(batch)):
        grads = torch.autograd.grad(reference_loss(session, single(batch, row)), list(named.values()), allow_unused=True)
        rows.append([torch.zeros_like(p) if g is None else g for p, g in zip(named.values(), grads, strict=True)])
    return {name: torch.stack([row[i] for row in rows]).reshape(len(batch), *matrix_shape(p)) for i, (name, p) in enumerate(named.items())}


def captured(session: Session, layout: Layout, batch: Batch, **options: bool) -> dict[str, torch.Tensor]:
    with row_engine(session, layout, **options) as engine:
        return layout.split(engine.rows(batch, measures.LOSS).gradient_BD)


@pytest.fixture(autouse=True)
def _double_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' norms and routers compute in float32 whatever the model's dtype; here they must not, or 1e-9 means nothing."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch, "float", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self.double())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_captured_gradients_equal_autograd(architecture: str) -> None:
    session = make_session(architecture)
    batch = make_batch(session)
    scope = find_scope(session.model)
    layout = make_layout(session.model, scope, WHOLE)
    expected, got = reference_gradients(session, batch), captured(session, layout, batch)
    assert set(got) == set(expected), "every trained parameter is in the layout"
    largest = max(float(g.norm()) for g in expected.values())
    for name, reference in expected.items():
        error = float((got[name] - reference).norm()) / max(float(reference.norm()), 1e-3 * largest)
        assert error < 1e-9, f"{name}: relative error {error:.2e}, ratio of norms {float(got[name].norm() / reference.norm()):.6f}"
    assert sum(float(g.norm()) > 0 for g in expected.values()) > 0.8 * len(expected), "the reference itself is not zero"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_sketch_is_the_projection_of_the_whole_gradient(architecture: str) -> None:
    session = make_session(architecture)
    batch = make_batch(session)
    scope = find_scope(session.model)
    layout = make_layout(session.model, scope, SketchSpec(rank=3, whole_below=30, seed=5))
    whole = captured(session, make_layout(session.model, scope, WHOLE), batch)
    got = captured(session, layout, batch)
    assert any(block.sketched for block in layout.blocks)
    for block in layout.blocks:
        expected = whole[block.name]
        for i, side in enumerate(sides(block, 5, dtype=torch.float64)):
            expected = side.project(expected.movedim(i + 1, -1)).movedim(-1, i + 1)
        torch.testing.assert_close(got[block.name], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("architecture", ["llama", "mixtral", "gemma3", "gpt2", "bert"])
def test_positions_add_up_to_the_row(architecture: str) -> None:
    session = make_session(architecture)
    batch = make_batch(session)
    layout = make_layout(session.model, find_scope(session.model), SketchSpec(rank=4, whole_below=30))
    whole, by_position = captured(session, layout, batch), captured(session, layout, batch, per_token=True)
    for name, rows in whole.items():
        torch.testing.assert_close(by_position[name].sum(1), rows, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("architecture", ["llama", "mixtral", "bert", "llama_lora"])
def test_batch_mates_and_padding_change_nothing(architecture: str) -> None:
    session = make_session(architecture)
    batch = make_batch(session)
    layout = make_layout(session.model, find_scope(session.model), SketchSpec(rank=4, whole_below=30))
    together = captured(session, layout, batch)
    for row in range(len(batch)):
        alone = captured(session, layout, single(batch, row))
        for name in together:
            torch.testing.assert_close(together[name][row], alone[name][0], rtol=1e-9, atol=1e-11)


def test_the_model_is_left_as_it_was() -> None:
    session = make_session("llama_lora")
    session.model.train()
    flags = [p.requires_grad for p in session.model.parameters()]
    layout = make_layout(session.model, find_scope(session.model), WHOLE)
    captured(session, layout, make_batch(session))
    assert [p.requires_grad for p in session.model.parameters()] == flags
    assert session.model.training
    assert all(p.grad is None for p in session.model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in session.model.modules())
