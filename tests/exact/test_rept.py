"""The RepT feature against autograd on transformers' own hidden states, and what the method makes of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from headwater.gradient.extra import make_features
from headwater.gradient.rows import row_engine
from headwater.gradient.scope import find_scope, make_layout
from headwater.gradient.sketch import SketchSpec
from headwater.index.memory import MemoryIndex
from headwater.methods import get
from headwater.model import measures
from headwater.model.session import Session
from headwater.rank.hubs import ReferenceQueries
from headwater.types import Batch, Layout, Measure, UsageError
from tests.exact.models import make_batch, make_session, single


def layout_of(session: Session, include: tuple[str, ...] = ("*",)) -> Layout:
    return make_layout(session.model, find_scope(session.model, include=include, exclude=()), SketchSpec(rank=3, whole_below=0))


def captured(session: Session, batch: Batch, layer: int, *, include: tuple[str, ...] = ("*",), measure: Measure = measures.LOSS) -> Tensor:
    with row_engine(session, layout_of(session, include), extra={"rept": {"width": 0, "layer": layer}}) as engine:
        return engine.rows(batch, measure).extra["rept"]


def by_autograd(session: Session, batch: Batch, row: int, layer: int) -> Tensor:
    """One row alone: transformers' hidden state at the last prompt token, and the derivative of its loss by it."""
    one = single(batch, row)
    out = session.network(input_ids=one.tokens_BT, output_hidden_states=True)
    state_1TH = out.hidden_states[layer]
    state_1TH.retain_grad()
    if session.task == "sequence-classification":
        loss, place = torch.nn.functional.cross_entropy(out.logits, one.labels_B), 0
    else:
        rows, before = one.loss_mask_BT[:, 1:].nonzero(as_tuple=True)
        loss = torch.nn.functional.cross_entropy(out.logits[rows, before], one.tokens_BT[rows, before + 1], reduction="sum")
        place = int(one.last_prompt_B)
    loss.backward()
    assert state_1TH.grad is not None
    return torch.cat([state_1TH[0, place], state_1TH.grad[0, place]]).detach()


@pytest.mark.parametrize("layer", [1, -1])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "llama_lora", "bert"])
def test_hidden_state_and_its_derivative(name: str, layer: int) -> None:
    session = make_session(name)
    batch = make_batch(session)
    expected = torch.stack([by_autograd(session, batch, row, layer) for row in range(3)])
    torch.testing.assert_close(captured(session, batch, layer), expected)
    assert expected[:, 16:].abs().sum(1).min() > 0


def test_a_layer_counts_from_either_end() -> None:
    session = make_session("llama")
    batch = make_batch(session)
    for first, last in ((1, -2), (2, -1)):
        torch.testing.assert_close(captured(session, batch, first), captured(session, batch, last), rtol=0, atol=0)


def test_the_derivative_reaches_a_layer_below_the_scope() -> None:
    """Nothing trainable stands at or below the first layer's output: the pass must still be differentiated there."""
    session = make_session("llama")
    batch = make_batch(session)
    torch.testing.assert_close(captured(session, batch, 1, include=("lm_head*",)), captured(session, batch, 1))


def test_the_feature_leaves_no_trace_and_changes_no_gradient() -> None:
    session = make_session("llama")
    batch, layout = make_batch(session), layout_of(session)
    with row_engine(session, layout) as engine:
        plain = engine.rows(batch, measures.LOSS)
    with row_engine(session, layout, extra={"rept": {"width": 32, "layer": 1}}) as engine:
        beside = engine.rows(batch, measures.LOSS)
    torch.testing.assert_close(beside.gradient_BD, plain.gradient_BD, rtol=0, atol=0)
    assert plain.extra == {}
    assert not any(module._forward_hooks for module in session.model.modules())


def test_a_contrast_is_watched_on_its_first_response() -> None:
    session = make_session("llama")
    batch = make_batch(session)
    contrast = replace(batch, alternative=make_batch(session, seed=5, lengths=(4, 8, 6)))
    measure = measures.get("contrast")
    found, alone = captured(session, contrast, 1, measure=measure), captured(session, batch, 1)
    torch.testing.assert_close(found[:, :16], alone[:, :16])
    torch.testing.assert_close(found[:, 16:], -alone[:, 16:])  # of the measure, whose first part is minus the loss


def test_a_row_equal_to_the_query_scores_one() -> None:
    """As a query with its measure, and as a reference query in the hub correction; another row does not."""
    session = make_session("llama")
    batch, layout = make_batch(session), layout_of(session)
    described = {"rept": {"width": 32, "layer": -1}}
    feature = make_features(session, described)[0]
    with row_engine(session, layout, extra=described) as engine:
        rows, asked = (engine.rows(batch, measure) for measure in (measures.LOSS, measures.get("response_log_probability")))
    index = MemoryIndex(batch.ids, layout, "loss", {"rept": rows.extra["rept"]}, {"bad": np.zeros(3, dtype=bool)})
    queries = MemoryIndex(batch.ids, layout, "measure", {"rept": feature.of_query(asked.extra["rept"])})
    method = get("rept")
    for side in (queries, ReferenceQueries(index, np.arange(3))):
        values_QN = torch.from_numpy(method.score(method.fit(index), index, side).values_QN)
        torch.testing.assert_close(values_QN.diag(), torch.ones(3))
        assert values_QN.fill_diagonal_(0).abs().max() < 0.999
    unturned = MemoryIndex(batch.ids, layout, "measure", asked.extra)
    assert (method.score(method.fit(index), index, unturned).values_QN.diagonal() < 0.999).all()


def test_a_layer_that_there_is_not_is_refused() -> None:
    for layer in (0, 3, -3):
        with pytest.raises(UsageError, match=rf"rept_layer is {layer}, expected 1 to 2 or -1 to -2: llama has 2 layers"):
            captured(make_session("llama"), make_batch(make_session("llama")), layer)
