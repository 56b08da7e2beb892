"""The Gauss-Newton matrix of the rows' summed loss, applied to vectors without ever being formed.

`C v = sum_n J_n' H_n J_n v` (Martens 2014): J v by forward-mode differentiation, H = diag(p) - p p' at each target position, J' by a
backward pass. For a softmax with cross-entropy this is the Fisher matrix with labels drawn from the model.

Letters: K vectors · D numbers of a whole gradient · P target positions · H hidden size · V vocabulary · C positions of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from headwater.gradient.rows import head_parameter
from headwater.model.head import Head, chunk_rows
from headwater.model.session import Session
from headwater.types import Batch, Layout


def gauss_newton_product(session: Session, layout: Layout, batch: Batch, v_KD: Tensor) -> Tensor:
    """[K, D] `sum_n J_n' H_n J_n v` over the rows of one batch. Cost a forward pass, and for each v a forward-mode and a backward pass.

    `layout` keeps everything whole. Dropout is off. Memory: what autograd keeps, and one chunk of logits.
    """
    parameters = _parameters(session, layout)
    with _differentiable(session.model, parameters), sdpa_kernel(SDPBackend.MATH):
        with torch.enable_grad():
            root = _before_softmax(session, layout, batch)
        rows = [_product(session, layout, batch, root, parameters, v_D) for v_D in v_KD]
    return torch.stack(rows)


def _product(session: Session, layout: Layout, batch: Batch, root: Tensor, parameters: Mapping[str, nn.Parameter], v_D: Tensor) -> Tensor:
    tangent = _tangent(session, layout, batch, parameters, v_D)
    pulled = _through_softmax(root.detach(), tangent, session.head if _ends_in_hidden(session, layout) else None)
    grads = torch.autograd.grad(root, list(parameters.values()), pulled, retain_graph=True, allow_unused=True)
    parts = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters.values(), grads, strict=True)]
    return torch.cat([part.reshape(-1) for part in parts])


def _tangent(session: Session, layout: Layout, batch: Batch, parameters: Mapping[str, nn.Parameter], v_D: Tensor) -> Tensor:
    """[P, H or V] `J v` at the target positions."""
    directions = layout.split(v_D.unsqueeze(0))
    with torch.no_grad(), forward_ad.dual_level():
        duals = {name: forward_ad.make_dual(p.detach(), directions[name].reshape(p.shape)) for name, p in parameters.items()}
        with _swapped(session.model, duals):
            tangent = forward_ad.unpack_dual(_before_softmax(session, layout, batch)).tangent
    assert tangent is not None, "no parameter in scope reaches the output"
    return tangent


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


@contextmanager
def _swapped(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Other tensors in the places of these parameters, tied places included."""
    wanted = {id(parameter): tensors[name] for name, parameter in model.named_parameters() if name in tensors}
    places = [(module, key, p) for module in model.modules() for key, p in module._parameters.items() if p is not None and id(p) in wanted]
    for module, key, parameter in places:
        module._parameters[key] = wanted[id(parameter)]  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        for module, key, parameter in places:
            module._parameters[key] = parameter
