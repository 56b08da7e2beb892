"""A causal language model as an Objective: its sums against one row at a time, and its responses against influence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from benchmarks.small import without
from torch import Tensor

from headwater.model import measures
from headwater.progress import quiet
from headwater.truth import causal
from headwater.truth.causal import CausalRows
from headwater.truth.optimum import LBFGS
from headwater.truth.pbrf import pbrf
from headwater.truth.proximal import proximal
from headwater.types import DataError, Example, UsageError
from tests.exact.models import VOCABULARY, make_session

LENGTHS = (9, 5, 7, 4, 6, 8)
NOTHING_N = torch.zeros(len(LENGTHS), dtype=torch.float64)
NAMES = {
    "gpt2": ("transformer.h.0.mlp.c_fc.weight", "transformer.h.1.mlp.c_proj.bias"),
    "llama": ("model.layers.1.mlp.up_proj.weight", "lm_head.weight"),
    "gemma3": ("model.layers.0.mlp.down_proj.weight", "model.embed_tokens.weight"),
    "llama_lora": ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight",),
}


def examples(n: int = len(LENGTHS), *, seed: int = 0, name: str = "row") -> list[Example]:
    rng = np.random.default_rng(seed)
    return [
        Example(f"{name}-{i}", rng.integers(2, VOCABULARY, size=length), np.arange(length) >= max(1, length // 3))
        for i, length in enumerate(LENGTHS[:n])
    ]


def objective(architecture: str = "gpt2", *, token_budget: int = 16, names: Sequence[str] | None = None) -> CausalRows:
    """Rows in several batches, so that their sums have to be right."""
    session = make_session(architecture)
    measure = measures.get("response_log_probability")
    chosen = NAMES[architecture] if names is None else names
    return CausalRows(session, examples(), examples(3, seed=1, name="query"), measure, chosen, token_budget)


def log_probs(found: CausalRows, example: Example) -> Tensor:
    """[P, V] of one row by itself, from the model's own logits."""
    logits_TV = found.session.model(input_ids=torch.from_numpy(example.tokens)[None], use_cache=False).logits[0]
    return logits_TV.log_softmax(-1)[np.flatnonzero(example.loss_mask) - 1]


def moved_weights(found: CausalRows, *, seed: int = 2, size: float = 0.05) -> Tensor:
    noise_D = torch.randn(len(found.start_D), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return found.start_D + size * noise_D


def written(found: CausalRows, theta_D: Tensor) -> CausalRows:
    """The same rows over a model that has these weights for good."""
    known, start = dict(found.session.model.named_parameters()), 0
    with torch.no_grad():
        for name in found.parameters:
            known[name].copy_(theta_D[start : start + known[name].numel()].view_as(known[name]))
            start += known[name].numel()
    return found


@pytest.mark.parametrize("architecture", NAMES)
def test_sums_over_batches_are_sums_over_rows(architecture: str) -> None:
    found, reference = objective(architecture), objective(architecture)
    theta_D, weights_N = moved_weights(found), torch.tensor([1.0, 0, -1, 2, 0, 0.5], dtype=torch.float64)
    before = [log_probs(reference, row).detach() for row in reference.rows]
    written(reference, theta_D)
    now = [log_probs(reference, row) for row in reference.rows]
    targets = [torch.from_numpy(row.tokens[row.loss_mask])[:, None] for row in reference.rows]
    losses_N = torch.stack([-one.gather(1, wanted).sum() for one, wanted in zip(now, targets, strict=True)])
    kl_N = torch.stack([(old.exp() * (old - new)).sum() for old, new in zip(before, now, strict=True)])
    known = dict(reference.session.model.named_parameters())
    tracked = [known[name] for name in reference.parameters]
    norms = {"rtol": 1e-3, "atol": 1e-5} if architecture == "gemma3" else {"rtol": 1e-8, "atol": 1e-10}  # Gemma's norms are float32
    for (value, gradient_D), expected in (
        (found.loss(theta_D, weights_N), (weights_N * losses_N).sum() / len(weights_N)),
        (found.divergence(theta_D, weights_N), (kl_N + weights_N * losses_N).mean()),
    ):
        gradients = torch.autograd.grad(expected, tracked, retain_graph=True)
        torch.testing.assert_close(value, expected.detach(), **norms)
        torch.testing.assert_close(gradient_D, torch.cat([one.flatten() for one in gradients]), **norms)
    queries_Q = [sum(log_probs(reference, q).gather(1, torch.from_numpy(q.tokens[q.loss_mask])[:, None])) for q in reference.queries]
    torch.testing.assert_close(found.measures(theta_D), torch.stack(queries_Q).flatten().detach(), **norms)


def test_a_model_is_left_as_it_was_even_after_an_error() -> None:
    found = objective()
    model = found.session.model.train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    frozen = next(iter(model.parameters())).requires_grad_(False)
    found.divergence(moved_weights(found), NOTHING_N)
    with pytest.raises(RuntimeError):
        found.loss(moved_weights(found), torch.ones(2, dtype=torch.float64)[None])
    torch.testing.assert_close(dict(model.named_parameters()), before, rtol=0, atol=0)
    assert model.training
    assert not frozen.requires_grad
    assert all(parameter.requires_grad for parameter in model.parameters() if parameter is not frozen)


def test_what_does_not_fit_in_memory_is_predicted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = objective()
    theta_D = moved_weights(kept)
    expected = kept.divergence(theta_D, NOTHING_N)
    monkeypatch.setattr(causal, "KEPT_BYTES", 0)
    torch.testing.assert_close(objective().divergence(theta_D, NOTHING_N), expected, rtol=0, atol=0)


def test_dropout_is_off() -> None:
    found = objective("llama_lora")
    found.session.model.train()
    torch.testing.assert_close(found.divergence(found.start_D, NOTHING_N)[0].item(), 0.0, rtol=0, atol=1e-15)


def test_with_a_large_damping_a_removal_moves_queries_along_the_gradient() -> None:
    """`+ (1/N) grad m . grad L / damping`, and every query at one minimisation for each removal."""
    found, damping = objective(), 1e5
    with quiet():
        truth = pbrf(found, without(len(LENGTHS), range(3)), damping=damping, minimise=LBFGS(relative=1e-9))
    assert [end["status"] for end in truth.recipe["optimisations"]] == ["converged"] * 3
    assert (truth.unit, truth.train_ids[1], truth.query_ids) == ("nats", "row-1", ("query-0", "query-1", "query-2"))
    known = dict(found.session.model.named_parameters())
    tracked = [known[name] for name in found.parameters]

    def gradient(example: Example) -> Tensor:
        picked = log_probs(found, example).gather(1, torch.from_numpy(example.tokens[example.loss_mask])[:, None]).sum()
        return torch.cat([one.flatten() for one in torch.autograd.grad(picked, tracked)])

    expected_MQ = torch.stack([-gradient(row) for row in found.rows[:3]]) @ torch.stack([gradient(q) for q in found.queries]).T
    moved_MQ = torch.from_numpy(truth.outcomes_DSQ[:, 0]) - found.measures(found.start_D)
    torch.testing.assert_close(moved_MQ, expected_MQ / len(LENGTHS) / damping, rtol=1e-3, atol=1e-8)


def test_the_proximal_response_moves_on_with_every_row_kept() -> None:
    found, everything = objective(), np.ones((1, len(LENGTHS)), dtype=bool)
    with quiet():
        stays, goes = (kind(found, everything, damping=1.0) for kind in (pbrf, proximal))
    before_Q = found.measures(found.start_D).numpy()
    np.testing.assert_allclose(stays.outcomes_DSQ[0, 0], before_Q, rtol=0, atol=1e-9)
    assert np.abs(goes.outcomes_DSQ[0, 0] - before_Q).max() > 1e-3


def test_what_is_no_row_of_a_language_model_is_refused() -> None:
    with pytest.raises(UsageError, match="such as transformer"):
        objective(names=["transformer.h.9.weight"])
    with pytest.raises(UsageError, match="expected some of the model's"):
        objective(names=[])
    measure = measures.get("response_log_probability")
    with pytest.raises(UsageError, match="expected a causal language model"):
        CausalRows(make_session("bert"), examples(), examples(2), measure, ["classifier.weight"])
    empty = Example("empty", np.array([3, 4]), np.array([False, False]))
    with pytest.raises(DataError, match="no target"):
        CausalRows(make_session("gpt2"), [empty], examples(2), measure, NAMES["gpt2"])
