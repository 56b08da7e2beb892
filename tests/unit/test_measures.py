"""Measures against their formulas, and on inputs that lack what they need."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from headwater.model import measures
from headwater.types import Batch, UsageError

MASK_BT = torch.tensor([[False, False, True, True], [False, True, True, False]])
LOG_P_BT = torch.tensor([[0.0, 0.0, -1.0, -2.0], [0.0, -0.5, -0.25, 0.0]])
OTHER_BT = torch.tensor([[0.0, 0.0, -4.0, 0.0], [0.0, -3.0, 0.0, 0.0]])
LOGITS_BC = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 1.5]])


@dataclass
class Fake:
    """Outputs with known numbers."""

    log_probs: Tensor
    alternative: Fake | None = None

    def token_log_probs(self) -> Tensor:
        return self.log_probs

    def class_logits(self) -> Tensor:
        return LOGITS_BC


def batch(**changes: object) -> Batch:
    base = Batch(("a", "b"), torch.zeros(2, 4, dtype=torch.long), MASK_BT, torch.tensor([4, 3]), torch.tensor([1, 0]))
    return replace(base, **changes)  # pyright: ignore[reportArgumentType]


def value(name: str, outputs: Fake, rows: Batch) -> list[float]:
    return measures.get(name).fn(outputs, rows).tolist()


def test_sums_over_the_response() -> None:
    assert value("response_log_probability", Fake(LOG_P_BT), batch()) == [-3.0, -0.75]
    assert value("token_span_log_probability", Fake(LOG_P_BT), batch()) == [-3.0, -0.75]
    assert value("loss", Fake(LOG_P_BT), batch()) == [3.0, 0.75]
    assert value("mean_loss", Fake(LOG_P_BT), batch()) == [1.5, 0.375]


def test_a_contrast_is_a_difference_and_needs_both_sides() -> None:
    assert value("contrast", Fake(LOG_P_BT, Fake(OTHER_BT)), batch(alternative=batch())) == [1.0, 2.25]
    with pytest.raises(UsageError, match="alternative"):
        value("contrast", Fake(LOG_P_BT), batch())


def test_the_margin_of_a_class_is_its_log_odds() -> None:
    labels_B = torch.tensor([0, 2])
    p_BC = LOGITS_BC.softmax(-1)
    own_B = p_BC[[0, 1], labels_B]
    got_B = measures.get("class_logit_margin").fn(Fake(LOG_P_BT), batch(labels_B=labels_B))
    torch.testing.assert_close(got_B, (own_B / (1 - own_B)).log())
    with pytest.raises(UsageError, match="label"):
        value("class_logit_margin", Fake(LOG_P_BT), batch())


def test_the_loss_of_a_class_is_its_cross_entropy() -> None:
    labels_B = torch.tensor([0, 2])
    got_B = measures.LOSS.fn(Fake(LOG_P_BT), batch(labels_B=labels_B))
    torch.testing.assert_close(got_B, torch.nn.functional.cross_entropy(LOGITS_BC, labels_B, reduction="none"))


def test_rows_do_not_share_a_loss() -> None:
    """The loss of a batch is one number a row, and each depends on its own row alone."""
    log_p_BT = LOG_P_BT.clone().requires_grad_()
    measures.LOSS.fn(Fake(log_p_BT), batch())[0].backward()
    assert log_p_BT.grad is not None
    assert log_p_BT.grad[1].abs().sum() == 0
    assert (log_p_BT.grad[0] == -1).all()  # a sum, not a mean


def test_names_and_units() -> None:
    assert measures.get("loss") is measures.LOSS
    assert {m.unit for m in measures.MEASURES.values()} == {"nats", "nats per token"}
    with pytest.raises(UsageError, match=r"vibes.*response_log_probability"):
        measures.get("vibes")


def test_a_measure_of_ones_own_is_what_is_given() -> None:
    own = measures.custom("first", lambda outputs, rows: outputs.token_log_probs()[:, 2], unit="nats")
    assert own.fn(Fake(LOG_P_BT), batch()).tolist() == [-1.0, -0.25]
    assert (own.name, own.unit) == ("first", "nats")
    with pytest.raises(UsageError, match="built-in"):
        measures.custom("loss", own.fn, unit=None)
