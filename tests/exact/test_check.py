"""The check before a run: what capture gets wrong leaves the scope by name, and nothing else does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from headwater.gradient.check import autograd_row, check_capture, checked_layout
from headwater.gradient.rows import row_engine
from headwater.gradient.scope import find_scope, make_layout
from headwater.gradient.sketch import SketchSpec
from headwater.model import measures
from headwater.types import UsageError
from tests.exact.models import ARCHITECTURES, make_batch, make_session, single

SPEC = SketchSpec(rank=4, whole_below=40)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_capture_passes_its_own_check_in_float32(architecture: str) -> None:
    session = make_session(architecture, dtype=torch.float32)
    batch = make_batch(session)
    layout = make_layout(session.model, find_scope(session.model), SPEC)
    check = check_capture(session, layout, batch, [single(batch, i) for i in range(3)], measures.LOSS)
    assert not check.wrong
    assert check.largest < 1e-3


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_a_bfloat16_model_is_captured(architecture: str) -> None:
    session = make_session(architecture, dtype=torch.bfloat16)
    batch = make_batch(session)
    layout = make_layout(session.model, find_scope(session.model), SPEC)
    check = check_capture(session, layout, batch, [single(batch, i) for i in range(3)], measures.LOSS)
    assert not check.wrong
    with row_engine(session, layout) as engine:
        assert engine.rows(batch, measures.LOSS).gradient_BD.dtype == torch.float32


class Unforeseen(nn.Module):
    """Uses its weight in a way that no site knows: an elementwise square."""

    def __init__(self, inner: nn.Module, size: int) -> None:
        super().__init__()
        self.inner, self.weight = inner, nn.Parameter(torch.ones(size, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * self.weight[:, 0].square()


def test_an_unforeseen_use_leaves_the_scope_by_name() -> None:
    session = make_session("llama", dtype=torch.float32)
    mlp = session.network.model.layers[0].mlp
    mlp.down_proj = Unforeseen(mlp.down_proj, 16)
    batch = make_batch(session)
    scope = find_scope(session.model)
    layout, kept, check = checked_layout(session, scope, SPEC, batch, [single(batch, i) for i in range(3)], measures.LOSS)
    assert check.wrong == ["model.layers.0.mlp.down_proj.weight"]
    assert set(scope.names) - set(kept.names) == {"model.layers.0.mlp.down_proj.weight"}
    assert [block.name for block in layout.blocks] == list(kept.names)
    listed = kept.to_json()["outside"]
    assert listed[0]["names"] == check.wrong
    assert listed[0]["parameters"] == 16
    assert kept.n_inside == scope.n_inside - 16


def test_scope_counts_and_names_what_is_outside() -> None:
    session = make_session("llama_lora", dtype=torch.float32)
    scope = find_scope(session.model, exclude=["*lora_A*"])
    value = scope.to_json()
    assert {group["reason"] for group in value["outside"]} == {"frozen: not trained", "left out by exclude"}
    assert value["in_scope"] + sum(group["parameters"] for group in value["outside"]) == value["parameters"]
    assert value["parameters"] == sum(p.numel() for p in session.model.parameters())
    assert all("lora_B" in name for name in scope.names)


def test_a_scope_without_parameters_is_refused() -> None:
    session = make_session("llama", dtype=torch.float32)
    with pytest.raises(UsageError, match="no parameter is in scope"):
        find_scope(session.model, include=["*.nothing"])


def test_the_reference_row_agrees_with_capture_for_a_tied_head() -> None:
    session = make_session("gemma3", dtype=torch.float32)
    assert session.head is not None
    batch = make_batch(session)
    layout = make_layout(session.model, find_scope(session.model, include=["*embed_tokens*"]), SPEC)
    with row_engine(session, layout) as engine:
        got = engine.rows(batch, measures.LOSS).gradient_BD
    expected = torch.stack([autograd_row(session, layout, single(batch, i), measures.LOSS) for i in range(3)])
    torch.testing.assert_close(got, expected.float(), rtol=1e-3, atol=1e-4)
