"""Log-probabilities of targets from hidden states, without ever holding the logits of a whole batch.

Letters: P target positions · H hidden size · V vocabulary · C positions of one chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

CHUNK_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}  # of logits, what the caches hold
MIN_CHUNK = 256  # fewer positions, and the product with the vocabulary waits for its weights: a third slower at 64


class HeadTap(Protocol):
    """Someone who wants the gradient of the head's weight: sees `-d log p / d logits` chunk by chunk, and the scale at the end."""

    def project(self, dlogits_CV: Tensor) -> Tensor:
        """[C, K] what to keep of a chunk."""
        ...

    def receive(self, positions_P: Tensor, projected_PK: Tensor, hidden_PH: Tensor) -> None:
        """The kept parts, scaled by the derivative of what is measured, with their positions in the flattened batch and hidden states."""
        ...


@dataclass(frozen=True)
class Head:
    """The output layer: `logits = f(scale * (W h + b))`, f the identity or a soft cap `c tanh(z / c)`."""

    linear: nn.Linear
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """The plain way: the head as the model applies it."""
        logits = self.linear(hidden)
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def probabilities(self, hidden_CH: Tensor) -> tuple[Tensor, Tensor | None]:
        """([C, V] softmax of the logits, their derivative with respect to the linear layer's output where it is not 1)."""
        logits = self.logits(hidden_CH)
        logits = logits.to(_at_least_float32(logits.dtype))
        inner = _inner_slope(self, logits)
        return logits.softmax(-1), inner if inner is None else torch.as_tensor(inner, dtype=logits.dtype, device=logits.device)

    def log_probs_plain(self, hidden_PH: Tensor, targets_P: Tensor) -> Tensor:
        """[P] log p(target), through the whole [P, V] matrix of logits: the twin that `log_probs` is tested against."""
        logits = self.logits(hidden_PH)
        logits = logits.to(_at_least_float32(logits.dtype))
        return logits.log_softmax(-1).gather(-1, targets_P[:, None]).squeeze(-1)

    def log_probs(self, hidden_PH: Tensor, targets_P: Tensor, *, positions_P: Tensor | None = None, tap: HeadTap | None = None) -> Tensor:
        """[P] log p(target), in chunks; the derivative is found in the same sweep, so nothing of size V is kept.

        Cost 2 P H V multiplications forward, none of that size backward. Memory one chunk of logits.
        """
        if tap is not None and torch.is_grad_enabled() and not hidden_PH.requires_grad:
            hidden_PH = hidden_PH.detach().requires_grad_()  # nothing below is in scope: the head's own weight still is
        return _ChunkedLogProbs.apply(hidden_PH, targets_P, positions_P, self, tap)  # pyright: ignore[reportReturnType]


class _ChunkedLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_PH: Tensor, targets_P: Tensor, positions_P: Tensor | None, head: Head, tap: HeadTap | None) -> Tensor:
        dtype = _at_least_float32(hidden_PH.dtype)
        wanted = hidden_PH.requires_grad or tap is not None
        log_probs_P = torch.empty(len(hidden_PH), dtype=dtype, device=hidden_PH.device)
        slope_PH = torch.empty_like(hidden_PH) if wanted else None
        kept_PK: Tensor | None = None
        size = min(chunk_rows(head.linear, dtype), len(hidden_PH))
        room_CV = hidden_PH.new_empty(size, head.linear.out_features, dtype=dtype)  # for all chunks: new pages cost a tenth of a product
        for part in torch.arange(len(hidden_PH)).split(size):
            rows = slice(int(part[0]), int(part[-1]) + 1)
            log_probs_P[rows], dlogits_CV = _chunk(head, hidden_PH[rows], targets_P[rows], room_CV[: len(part)], wanted)
            if slope_PH is not None and dlogits_CV is not None:
                torch.mm(dlogits_CV, head.linear.weight, out=slope_PH[rows])
                if tap is not None:
                    projected_CK = tap.project(dlogits_CV)
                    kept_PK = projected_CK.new_empty(len(hidden_PH), projected_CK.shape[1]) if kept_PK is None else kept_PK
                    kept_PK[rows] = projected_CK  # a copy: it may be the chunk itself, whose room the next one takes
        ctx.tap = tap
        ctx.save_for_backward(slope_PH, hidden_PH, positions_P, kept_PK)
        return log_probs_P

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        slope_PH, hidden_PH, positions_P, kept_PK = ctx.saved_tensors
        scale_P1 = -grads[0][:, None].to(slope_PH.dtype)  # the slopes are of -log p
        if ctx.tap is not None and kept_PK is not None:
            ctx.tap.receive(positions_P, kept_PK * scale_P1, hidden_PH)
        return slope_PH * scale_P1, None, None, None, None


@torch.no_grad()
def _chunk(head: Head, hidden_CH: Tensor, targets_C: Tensor, room_CV: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
    """[C] log p(target) and, if wanted, [C, V] minus its derivative with respect to the linear layer's output. In place throughout."""
    logits = _linear(head.linear, hidden_CH, room_CV)
    if head.scale != 1.0:
        logits.mul_(head.scale)
    if head.softcap is not None:
        logits.div_(head.softcap).tanh_().mul_(head.softcap)
    inner_slope = _inner_slope(head, logits) if wanted else None
    logits = torch.softmax(logits, -1, out=logits if logits.device.type == "cpu" else None)  # in its own place: it stays in the cache
    target_C1 = logits.gather(-1, targets_C[:, None])
    log_probs_C = target_C1.squeeze(-1).log()
    improbable_C = target_C1.squeeze(-1) < torch.finfo(logits.dtype).tiny  # its probability has lost its digits, or is 0
    if improbable_C.any():
        log_probs_C[improbable_C] = head.log_probs_plain(hidden_CH[improbable_C], targets_C[improbable_C])
    if not wanted:
        return log_probs_C, None
    logits.scatter_(-1, targets_C[:, None], target_C1 - 1)
    if inner_slope is not None:
        logits.mul_(inner_slope)
    return log_probs_C, logits.to(hidden_CH.dtype)


def _linear(linear: nn.Linear, hidden_CH: Tensor, out_CV: Tensor) -> Tensor:
    """Its output, in `out` and in its dtype."""
    if hidden_CH.dtype != out_CV.dtype:
        return out_CV.copy_(linear(hidden_CH))
    torch.mm(hidden_CH, linear.weight.T, out=out_CV)
    return out_CV if linear.bias is None else out_CV.add_(linear.bias)


def _inner_slope(head: Head, capped: Tensor) -> Tensor | float | None:
    """The derivative of the final logits with respect to the linear layer's output; None where it is 1."""
    if head.softcap is not None:
        return (1 - (capped / head.softcap).square()) * head.scale
    return None if head.scale == 1.0 else head.scale


def chunk_rows(linear: nn.Linear, dtype: torch.dtype) -> int:
    """Positions whose logits make one chunk."""
    budget = CHUNK_BYTES.get(linear.weight.device.type, CHUNK_BYTES["cpu"])
    return max(MIN_CHUNK, budget // (linear.out_features * dtype.itemsize))


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
