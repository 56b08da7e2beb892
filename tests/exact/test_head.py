"""The chunked head against its plain twin, in value, in both derivatives, and in what it leaves for the head's own gradient."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from headwater.model import head as head_module
from headwater.model.head import Head

POSITIONS, HIDDEN, VOCABULARY = 150, 8, 31


@dataclass
class Tap:
    """Keeps everything, so that the head's gradient can be put together."""

    parts: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def project(self, dlogits_CV: Tensor) -> Tensor:
        return dlogits_CV

    def receive(self, positions_P: Tensor, projected_PK: Tensor, hidden_PH: Tensor) -> None:
        self.parts.append((projected_PK, hidden_PH))

    def gradient(self) -> Tensor:
        return torch.stack([left.T @ right for left, right in self.parts]).sum(0)


@pytest.fixture(
    params=[(1.0, None, False), (0.25, None, True), (1.0, 2.5, False), (3.0, 2.0, True)], ids=["plain", "scaled", "capped", "both"]
)
def head(request: pytest.FixtureRequest) -> Head:
    scale, softcap, bias = request.param
    torch.manual_seed(0)
    return Head(nn.Linear(HIDDEN, VOCABULARY, bias=bias).double(), scale=scale, softcap=softcap)


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = 3 * torch.randn(POSITIONS, HIDDEN, dtype=torch.float64, generator=generator)
    targets = torch.randint(0, VOCABULARY, (POSITIONS,), generator=generator)
    weights = torch.randn(POSITIONS, dtype=torch.float64, generator=generator)
    return hidden, targets, weights


def test_chunks_give_the_plain_numbers(head: Head, inputs: tuple[Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(head_module.CHUNK_BYTES, "cpu", 1)
    monkeypatch.setattr(head_module, "MIN_CHUNK", 64)  # three chunks, the last one short
    hidden, targets, weights = inputs
    plain_hidden, fast_hidden = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    plain = head.log_probs_plain(plain_hidden, targets)
    (plain * weights).sum().backward()
    expected_weight = head.linear.weight.grad
    head.linear.requires_grad_(False)
    tap = Tap()
    fast = head.log_probs(fast_hidden, targets, positions_P=torch.arange(POSITIONS), tap=tap)
    (fast * weights).sum().backward()
    torch.testing.assert_close(fast.detach(), plain.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fast_hidden.grad, plain_hidden.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(tap.gradient(), expected_weight, rtol=1e-10, atol=1e-12)


def test_large_logits_do_not_overflow() -> None:
    head = Head(nn.Linear(HIDDEN, VOCABULARY, bias=False))
    hidden = torch.full((4, HIDDEN), 1e4, requires_grad=True)
    log_probs = head.log_probs(hidden, torch.arange(4))
    log_probs.sum().backward()
    assert log_probs.isfinite().all()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


def test_a_target_too_improbable_for_its_probability_keeps_its_logarithm() -> None:
    head, hidden = Head(nn.Linear(HIDDEN, VOCABULARY)), 200 * torch.randn(40, HIDDEN, generator=torch.Generator().manual_seed(0))
    targets = head.logits(hidden).argmin(-1)
    expected = Head(nn.Linear(HIDDEN, VOCABULARY).double())
    expected.linear.load_state_dict({name: x.double() for name, x in head.linear.state_dict().items()})
    exact = expected.log_probs_plain(hidden.double(), targets)
    assert exact.min() < -150  # exp of it is no float32
    torch.testing.assert_close(head.log_probs(hidden, targets).double(), exact, rtol=1e-6, atol=1e-6)


def test_without_a_gradient_nothing_is_kept(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    head = Head(nn.Linear(HIDDEN, VOCABULARY).double())
    with torch.no_grad():
        assert not head.log_probs(inputs[0], inputs[1]).requires_grad


def test_the_head_alone_has_its_gradient(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    """Where nothing below the head is in scope, its input asks for no gradient; its weight's must still come."""
    hidden, targets, weights = inputs
    head, tap = Head(nn.Linear(HIDDEN, VOCABULARY).double()), Tap()
    (head.log_probs_plain(hidden, targets) * weights).sum().backward()
    expected = head.linear.weight.grad
    head.linear.requires_grad_(False)
    (head.log_probs(hidden, targets, positions_P=torch.arange(POSITIONS), tap=tap) * weights).sum().backward()
    torch.testing.assert_close(tap.gradient(), expected, rtol=1e-10, atol=1e-12)
    assert hidden.grad is None
