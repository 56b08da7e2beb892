"""A tail patch is its first-order prediction for a small step, and leaves the model as it was, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.exact.models import VOCABULARY, make_session

from headwater.model import measures
from headwater.model.session import Session
from headwater.truth.bank import read_bank, write_bank
from headwater.truth.design import Designs
from headwater.truth.tail_patch import RESPONSE, Patch, changes, tail_patch, unlearn_step
from headwater.types import Example, Measure, UsageError


@pytest.fixture(params=["gpt2", "gpt2_partly", "llama_lora"])
def session(request: pytest.FixtureRequest) -> Session:
    """Float64; GPT-2 all through, Llama but for its norms. "partly": only the MLPs are trained."""
    made = make_session(request.param.removesuffix("_partly"))
    if request.param == "gpt2_partly":
        for name, parameter in made.model.named_parameters():
            parameter.requires_grad_(".mlp." in name)
    return made


@pytest.fixture
def exact(session: Session) -> Session:
    if session.name == "llama_lora":
        pytest.skip("its norms are computed in float32")
    return session


def sides(session: Session, n: int = 5) -> tuple[list[Example], list[Example]]:
    rng = np.random.default_rng(0)
    made = [example(rng, f"e{i}", length=int(rng.integers(5, 12))) for i in range(n + 3)]
    return made[:n], made[n:]


def example(rng: np.random.Generator, name: str, *, length: int) -> Example:
    return Example(id=name, tokens=rng.integers(2, VOCABULARY, size=length), loss_mask=np.arange(length) > 2)


def gradient(session: Session, measure: Measure, example: Example) -> torch.Tensor:
    """By autograd on the model's own logits."""
    parameters = [p for p in session.model.parameters() if p.requires_grad]
    logits_TV = session.model(input_ids=torch.from_numpy(example.tokens)[None]).logits[0].log_softmax(-1)
    targets = np.flatnonzero(example.loss_mask)
    log_probability = logits_TV[targets - 1, example.tokens[targets]].sum()
    value = log_probability if measure is RESPONSE else -log_probability
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])


def test_a_small_step_changes_the_measure_as_predicted(exact: Session) -> None:
    rows, queries = sides(exact)
    h_QD = torch.stack([gradient(exact, RESPONSE, query) for query in queries])
    g_ND = torch.stack([gradient(exact, measures.LOSS, row) for row in rows])
    predicted_NQ = -(g_ND @ h_QD.T).numpy()
    for lr, tolerance in ((1e-6, 1e-3), (1e-8, 1e-5)):  # the error is of the order of the step
        down, up = (changes(patch(exact, rows, queries, Patch(lr=lr))) / lr for patch in (tail_patch, unlearn_step))
        np.testing.assert_allclose(down, predicted_NQ, rtol=tolerance, atol=tolerance * abs(predicted_NQ).max())
        np.testing.assert_allclose(up, -predicted_NQ, rtol=tolerance, atol=tolerance * abs(predicted_NQ).max())


def test_a_set_is_the_sum_of_its_rows_and_adam_takes_signs(exact: Session) -> None:
    rows, queries = sides(exact)
    sets = Designs(("two", "all"), np.array([[True, False, True, False, False], [True] * 5]))
    h_QD = torch.stack([gradient(exact, RESPONSE, query) for query in queries])
    g_ND = torch.stack([gradient(exact, measures.LOSS, row) for row in rows])
    found = changes(tail_patch(exact, rows, queries, Patch(lr=1e-8), sets=sets)) / 1e-8
    expected = -torch.stack([h_QD @ g_ND[[0, 2]].sum(0), h_QD @ g_ND.sum(0)]).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())
    adam = changes(tail_patch(exact, rows, queries, Patch(lr=1e-8, optimizer="adamw"), sets=sets)) / 1e-8
    signs_D = torch.stack([g / (g.abs() + 1e-8) for g in (g_ND[[0, 2]].sum(0), g_ND.sum(0))])  # Adam's first step, its epsilon in it
    np.testing.assert_allclose(adam, -(signs_D @ h_QD.T).numpy(), rtol=1e-3, atol=1e-3 * abs(adam).max())


def test_several_steps_are_those_of_an_optimizer_by_hand(exact: Session) -> None:
    rows, queries = sides(exact, 2)
    found = tail_patch(exact, rows, queries, Patch(lr=0.01, steps=3))
    other = copy.deepcopy(exact.model)
    parameters = [p for p in other.parameters() if p.requires_grad]
    stepped = Session(other, None, "causal-lm", name="by hand")
    for _ in range(3):
        loss_B = loss_of(stepped, rows[:1])
        for parameter, g in zip(parameters, torch.autograd.grad(loss_B.sum(), parameters), strict=True):
            parameter.data -= 0.01 * g
    np.testing.assert_allclose(found.outcomes_DSQ[1, 0], -loss_of(stepped, queries).detach().numpy(), rtol=1e-10)
    assert found.designs == ("none", f"step/{rows[0].id}", f"step/{rows[1].id}")


def loss_of(session: Session, examples: Sequence[Example]) -> torch.Tensor:
    losses = []
    for example in examples:
        logits_TV = session.model(input_ids=torch.from_numpy(example.tokens)[None]).logits[0].log_softmax(-1)
        targets = np.flatnonzero(example.loss_mask)
        losses.append(-logits_TV[targets - 1, example.tokens[targets]].sum())
    return torch.stack(losses)


@pytest.mark.parametrize("patch", [Patch(lr=0.1, steps=3), Patch(lr=0.1, optimizer="adamw"), Patch(lr=1e200)])
def test_the_model_is_afterwards_as_it_was(session: Session, patch: Patch) -> None:
    rows, queries = sides(session, 3)
    first = next(p for p in session.model.parameters() if p.requires_grad)
    first.grad = torch.full_like(first, 7.0)
    session.model.train()
    before, flags = copy.deepcopy(session.model.state_dict()), [p.requires_grad for p in session.model.parameters()]
    tail_patch(session, rows, queries, patch)
    torch.testing.assert_close(session.model.state_dict(), before, rtol=0, atol=0)
    assert [p.requires_grad for p in session.model.parameters()] == flags
    assert session.model.training
    assert first.grad is not None
    assert (first.grad == 7.0).all()
    assert sum(p.grad is not None for p in session.model.parameters()) == 1


def test_an_error_on_the_way_leaves_it_as_it_was_too(session: Session) -> None:
    rows, queries = sides(session, 2)
    before = copy.deepcopy(session.model.state_dict())
    calls = []

    def fails_later(outputs: Any, batch: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("planned")
        return outputs.token_log_probs().sum(-1)

    with pytest.raises(RuntimeError, match="planned"):
        tail_patch(session, rows, queries, Patch(lr=0.1), measure=measures.custom("fails", fails_later, unit=None))
    torch.testing.assert_close(session.model.state_dict(), before, rtol=0, atol=0)


def test_a_step_that_is_not_finite_is_marked(session: Session, tmp_path: Path) -> None:
    rows, queries = sides(session, 2)
    found = tail_patch(session, rows, queries, Patch(lr=1e200, steps=2))
    assert found.diverged_DS is not None
    assert found.diverged_DS[:, 0].tolist() == [False, True, True]
    assert np.isfinite(found.outcomes_DSQ[0]).all()
    assert np.isnan(changes(found)).all()
    write_bank(tmp_path / "bank", found)
    assert read_bank(tmp_path / "bank").kind == "tail_patch"


def test_what_cannot_be_stepped_is_refused(session: Session) -> None:
    rows, queries = sides(session, 2)
    for wrong in ({"lr": 0.0}, {"lr": 0.1, "steps": 0}, {"lr": 0.1, "optimizer": "adagrad"}, {"lr": float("nan")}):
        with pytest.raises(UsageError, match="expected lr above 0"):
            Patch(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="the sets are of 3 rows, and there are 2"):
        tail_patch(session, rows, queries, Patch(lr=0.1), sets=Designs(("a",), np.ones((1, 3), dtype=bool)))
    session.model.requires_grad_(False)
    with pytest.raises(UsageError, match="nothing to step on"):
        tail_patch(session, rows, queries, Patch(lr=0.1))
