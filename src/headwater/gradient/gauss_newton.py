"""The Gauss-Newton matrix of the rows' summed loss, applied to vectors without ever being formed.

`C v = sum_n J_n' H_n J_n v` (Martens 2014): J v as the derivative of `J' u` with respect to u, H = diag(p) - p p' at each target
position, J' by a backward pass. For a softmax with cross-entropy this is the Fisher matrix with labels drawn from the model.

Letters: K vectors · D numbers of a whole gradient · P target positions · H hidden size · V vocabulary · C positions of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from headwater.gradient.rows import head_parameter
from headwater.model.head import Head, chunk_rows
from headwater.model.session import Session
from headwater.types import Batch, Layout


def gauss_newton_product(session: Session, layout: Layout, batch: Batch, v_KD: Tensor) -> Tensor:
    """[K, D] `sum_n J_n' H_n J_n v` over the rows of one batch. Cost a forward and a backward pass, and as much again for each v.

    `layout` keeps everything whole. Dropout is off. Memory: what autograd keeps of both passes, and one chunk of logits.
    """
    with linearised(session, layout, [batch]) as product:
        return product(v_KD)


@contextmanager
def linearised(session: Session, layout: Layout, batches: Iterable[Batch]) -> Iterator[Callable[[Tensor], Tensor]]:
    """`v_KD -> sum_n J_n' H_n J_n v` over the rows of all batches, whose forward passes are made once and kept while the context lasts.

    For the many products of one solve over few rows: each v then costs a tangent and a backward pass. Memory: what autograd keeps of both
    passes, of all batches.
    """
    parameters = _parameters(session, layout)
    head = session.head if _ends_in_hidden(session, layout) else None
    with _differentiable(session.model, parameters):
        with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
            kept = [_Jacobian.of(_before_softmax(session, layout, batch), list(parameters.values())) for batch in batches]

        def product(v_KD: Tensor) -> Tensor:
            return torch.stack([_product(kept, head, layout, parameters, v_D) for v_D in v_KD])

        yield product


def _product(kept: Sequence[_Jacobian], head: Head | None, layout: Layout, parameters: Mapping[str, nn.Parameter], v_D: Tensor) -> Tensor:
    directions = layout.split(v_D.unsqueeze(0))
    shaped = [directions[name].reshape(p.shape) for name, p in parameters.items()]
    total_D = torch.zeros_like(v_D)
    for jacobian in kept:
        pulled = jacobian.transposed_times(_through_softmax(jacobian.root.detach(), jacobian.times(shaped), head))
        total_D += torch.cat([part.reshape(-1) for part in pulled])
    return total_D


@dataclass(frozen=True, eq=False)
class _Jacobian:
    """J of `root` with respect to parameters, as products in both directions. `J' u` is linear in u: its derivative along v is `J v`."""

    root: Tensor
    parameters: Sequence[nn.Parameter]
    u: Tensor  # zeros, of the root's shape
    transposed_u: Sequence[Tensor | None]  # J' u, differentiable in u; None for a parameter that does not reach the root

    @staticmethod
    def of(root: Tensor, parameters: Sequence[nn.Parameter]) -> _Jacobian:
        u = torch.zeros_like(root, requires_grad=True)
        return _Jacobian(root, parameters, u, torch.autograd.grad(root, parameters, u, create_graph=True, allow_unused=True))

    def times(self, v: Sequence[Tensor]) -> Tensor:
        """J v, in the root's shape."""
        reaching = [(one, direction) for one, direction in zip(self.transposed_u, v, strict=True) if one is not None]
        assert reaching, "no parameter in scope reaches the output"
        outputs, directions = zip(*reaching, strict=True)
        return torch.autograd.grad(outputs, self.u, directions, retain_graph=True)[0]

    def transposed_times(self, u: Tensor) -> list[Tensor]:
        """`J' u`, parameter by parameter."""
        found = torch.autograd.grad(self.root, self.parameters, u, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters, found, strict=True)]


def _before_softmax(session: Session, layout: Layout, batch: Batch) -> Tensor:
    """[P, H] hidden states at the target positions; [P, V] logits where the head is in scope or not plain; a classifier's logits."""
    outputs = session.run(batch)
    if session.task == "sequence-classification":
        return outputs.class_logits()
    rows_P, before_P = batch.loss_mask_BT[:, 1:].nonzero(as_tuple=True)
    return (outputs.hidden_BTH if _ends_in_hidden(session, layout) else outputs.logits())[rows_P, before_P]


def _ends_in_hidden(session: Session, layout: Layout) -> bool:
    return session.head is not None and head_parameter(session, layout) is None


@torch.no_grad()
def _through_softmax(root: Tensor, tangent: Tensor, head: Head | None) -> Tensor:
    """`H u` with H the Hessian of `-log softmax`, in the root's own coordinates: `W'(p * (W u) - p (p . W u))` behind a head."""
    if head is None:
        return _softmax_hessian(root.softmax(-1), tangent)
    pulled_PH = torch.empty_like(root)
    size = chunk_rows(head.linear, root.dtype)
    for start in range(0, len(root), size):
        rows = slice(start, start + size)
        probabilities_CV, inner_CV = head.probabilities(root[rows])
        change_CV = tangent[rows] @ head.linear.weight.T
        change_CV = change_CV if inner_CV is None else change_CV * inner_CV
        back_CV = _softmax_hessian(probabilities_CV, change_CV)
        pulled_PH[rows] = (back_CV if inner_CV is None else back_CV * inner_CV) @ head.linear.weight
    return pulled_PH


def _softmax_hessian(p_CV: Tensor, u_CV: Tensor) -> Tensor:
    weighted_CV = p_CV * u_CV
    return weighted_CV - p_CV * weighted_CV.sum(-1, keepdim=True)


def _parameters(session: Session, layout: Layout) -> dict[str, nn.Parameter]:
    known = dict(session.model.named_parameters())
    return {block.name: known[block.name] for block in layout.blocks}


@contextmanager
def _differentiable(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Only these parameters ask for gradients, and the model is in evaluation mode; as before afterwards."""
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    training = [module for module in model.modules() if module.training]
    model.requires_grad_(False).eval()
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
        for module in training:
            module.training = True
