"""One forward pass, computed as far as a measure asks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headwater.model.head import HeadTap
from headwater.types import Batch

if TYPE_CHECKING:
    from headwater.model.session import Session


@dataclass
class SessionOutputs:
    """`types.Outputs` over a live session. The backbone runs on first use; logits exist for target positions only."""

    session: Session
    batch: Batch
    tap: HeadTap | None = None

    @cached_property
    def _forward(self) -> tuple[Tensor, Tensor | None]:
        return self.session.forward(self.batch)

    @property
    def hidden_BTH(self) -> Tensor:
        """[B, T, H] the last layer's hidden states after the final norm: what the head reads."""
        return self._forward[0]

    def class_logits(self) -> Tensor:
        logits = self._forward[1]
        if logits is None or self.session.task != "sequence-classification":
            raise _no_classes(self.session)
        return logits

    def logits(self) -> Tensor:
        """[B, T, V] whole, as the model makes them: where the head's own weight is differentiated."""
        hidden, logits = self._forward
        if logits is not None:
            return logits
        assert self.session.head is not None, "a session without a plain head computes logits itself"
        return self.session.head.logits(hidden)

    def token_log_probs(self) -> Tensor:
        if self.session.task != "causal-lm":
            raise _no_tokens(self.session)
        rows, before = self.batch.loss_mask_BT[:, 1:].nonzero(as_tuple=True)
        targets_P = self.batch.tokens_BT[rows, before + 1]
        log_probs_P = self._target_log_probs(rows, before, targets_P)
        out_BT = torch.zeros(self.batch.tokens_BT.shape, dtype=log_probs_P.dtype, device=log_probs_P.device)
        return out_BT.index_put((rows, before + 1), log_probs_P)

    def _target_log_probs(self, rows: Tensor, before: Tensor, targets_P: Tensor) -> Tensor:
        head, logits_BTV = self.session.head, self._forward[1]
        if head is not None:
            positions_P = rows * self.batch.tokens_BT.shape[1] + before
            return head.log_probs(self.hidden_BTH[rows, before], targets_P, positions_P=positions_P, tap=self.tap)
        assert logits_BTV is not None, "a session without a plain head computes logits itself"
        logits_PV = logits_BTV[rows, before]
        logits_PV = logits_PV.to(torch.promote_types(logits_PV.dtype, torch.float32))
        return logits_PV.log_softmax(-1).gather(-1, targets_P[:, None]).squeeze(-1)

    @property
    def alternative(self) -> SessionOutputs | None:
        return self._alternative

    @cached_property
    def _alternative(self) -> SessionOutputs | None:
        other = self.batch.alternative
        return None if other is None else SessionOutputs(self.session, other, self.tap)

    def answer_positions(self) -> Tensor:
        """[B] where the answer begins: the last prompt token, which predicts the response's first; a classifier's the one that it pools."""
        if self.session.task == "causal-lm":
            return self.batch.last_prompt_B
        return torch.zeros_like(self.batch.lengths_B) if self.session.bidirectional else self.batch.lengths_B - 1

    @torch.no_grad()
    def representations(self) -> tuple[Tensor, Tensor]:
        """([B, H], [B, H]) hidden state where the answer begins, and the mean over the response tokens' own positions.

        A classifier has no response: there the second is the mean over all tokens.
        """
        hidden = self.hidden_BTH.detach()
        inside_BT = torch.arange(hidden.shape[1], device=hidden.device) < self.batch.lengths_B[:, None]
        meant_BT = self.batch.loss_mask_BT if self.session.task == "causal-lm" else inside_BT
        rows = torch.arange(len(hidden), device=hidden.device)
        return hidden[rows, self.answer_positions()], _masked_mean(hidden, meant_BT)


def _masked_mean(hidden_BTH: Tensor, mask_BT: Tensor) -> Tensor:
    weights = mask_BT.to(hidden_BTH.dtype)
    return torch.bmm(weights[:, None], hidden_BTH).squeeze(1) / weights.sum(-1, keepdim=True).clamp(min=1)


def _no_classes(session: Session) -> Exception:
    from headwater.types import UsageError

    return UsageError(
        f"{session.name} is a causal language model and has no class logits; measure its response instead (response_log_probability)"
    )


def _no_tokens(session: Session) -> Exception:
    from headwater.types import UsageError

    return UsageError(f"{session.name} is a sequence classifier and has no token probabilities; use the class_logit_margin measure")
