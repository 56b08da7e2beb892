"""Where parameters are used, and how each kind of use hands over its factors.

Three kinds of module: stock layers (Linear, Conv1D, Embedding) by a forward hook; norms, whose output is affine in their weight,
by what the weight multiplies; every other owner of parameters (routers, scaled embeddings, fused experts) by watching the function
calls inside its own forward that take its parameters. Whatever none of them sees stays at zero, and `check.py` then puts it out of scope.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from headwater.gradient.sketch import Side
from headwater.types import Factors


class Sink(Protocol):
    """What a site needs of a collector."""

    sides: dict[str, tuple[Side, ...]]
    shape_BT: tuple[int, int]

    def wants(self, name: str) -> bool: ...
    def add_factors(self, name: str, factors: Factors) -> None: ...
    def add_scattered(self, name: str, positions_P: Tensor, left_PK: Tensor, right_PL: Tensor) -> None: ...
    def add_vector(self, name: str, terms_BTX: Tensor) -> None: ...


def attach_sites(model: nn.Module, sink: Sink) -> Iterator[RemovableHandle]:
    """Hook every module that owns a wanted parameter; yields the handles that undo it."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    for module in model.modules():
        own = {key: names[p] for key, p in module.named_parameters(recurse=False) if sink.wants(names[p])}
        if own:
            yield from _attach(module, own, sink)


def _attach(module: nn.Module, own: dict[str, str], sink: Sink) -> Iterator[RemovableHandle]:
    from transformers.pytorch_utils import Conv1D

    forward = type(module).forward
    if forward is nn.Linear.forward:
        yield module.register_forward_hook(partial(_linear, own, sink, False))
    elif forward is Conv1D.forward:
        yield module.register_forward_hook(partial(_linear, own, sink, True))
    elif forward is nn.Embedding.forward:
        yield module.register_forward_pre_hook(partial(_whole_batch, sink))
        yield module.register_forward_hook(partial(_embedding, own, sink))
    elif all(parameter.dim() == 1 for parameter in module.parameters(recurse=False)):
        yield module.register_forward_hook(partial(_affine, _multiplier(module), own, sink))
    else:
        watch = _Watch(module, own, sink)
        yield module.register_forward_pre_hook(watch.enter)
        yield module.register_forward_hook(watch.leave, always_call=True)


# ------------------------------------------------------------------------------------------------ the ways of use


def _linear(own: dict[str, str], sink: Sink, transposed: bool, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """`y = x W' + b` (Conv1D: `y = x W + b`): dW = sum_t g (x) x, db = sum_t g."""
    x = _by_row(args[0].detach(), sink)
    weight = own.get("weight")
    inner = _side(sink, weight, 0 if transposed else 1).project(x) if weight else None

    def receive(g: Tensor) -> None:
        g = _by_row(g, sink)
        if weight and inner is not None:
            outer = _side(sink, weight, 1 if transposed else 0).project(g)
            sink.add_factors(weight, Factors(outer, inner) if transposed else Factors(inner, outer))
        if "bias" in own:
            sink.add_vector(own["bias"], g)

    return listen(output, receive)


def _embedding(own: dict[str, str], sink: Sink, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """`y = W[ids]`: dW = sum_t onehot(id_t) (x) g. The row of `padding_idx` never learns, as in torch."""
    assert isinstance(module, nn.Embedding)
    return listen(output, partial(_receive_embedding, own["weight"], sink, args[0], module.padding_idx))


def _receive_embedding(name: str, sink: Sink, ids_BT: Tensor, padding_idx: int | None, g: Tensor) -> None:
    g, ids_BT = _by_row(g, sink), _by_row(ids_BT.unsqueeze(-1), sink).squeeze(-1)
    if padding_idx is not None:
        g = g * (ids_BT != padding_idx).unsqueeze(-1)
    left, right = sink.sides[name]
    sink.add_factors(name, Factors(a_BTI=right.project(g), g_BTO=left.one_hot(ids_BT)))


def _whole_batch(sink: Sink, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Position ids are often given once for all rows; each row needs its own for its gradient to stay apart."""
    ids = args[0]
    n_rows = sink.shape_BT[0]
    return (ids.expand(n_rows, *ids.shape[1:]), *args[1:]) if ids.dim() == 2 and ids.shape[0] == 1 < n_rows else None


def _affine(
    multiplier: Callable[[Tensor], Tensor], own: dict[str, str], sink: Sink, module: nn.Module, args: tuple[Any, ...], output: Tensor
) -> Tensor:
    """`y = w * f(x) + b` elementwise: dw = sum_t g * f(x), db = sum_t g."""
    x = args[0].detach()

    def receive(g: Tensor) -> None:
        if "weight" in own:
            sink.add_vector(own["weight"], _by_row(_sum_heads(g * multiplier(x)), sink))
        if "bias" in own:
            sink.add_vector(own["bias"], _by_row(_sum_heads(g), sink))

    return listen(output, receive)


def _multiplier(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """What a norm's weight multiplies: its output at weight 1 less its output at weight 0, so `w x` and `(1 + w) x` are one case."""
    at_one, at_zero = (_with_weight(module, value) for value in (1.0, 0.0))

    @torch.no_grad()
    def multiplier(x: Tensor) -> Tensor:
        return at_one.forward(x) - at_zero.forward(x)

    return multiplier


def _with_weight(module: nn.Module, value: float) -> Any:
    probe = copy.copy(module)
    probe._parameters = {
        key: None if p is None else nn.Parameter(torch.full_like(p, value if key == "weight" else 0.0), requires_grad=False)
        for key, p in module._parameters.items()
    }
    return probe


# ------------------------------------------------------------------------------ watching a module's function calls


class _Watch(TorchFunctionMode):
    """While a module's forward runs, sees the calls that take its parameters: `linear(x, W)`, `linear(x, W[e])`, `embedding(ids, W)`.

    A fused expert layer gathers each expert's tokens with `hidden[token_idx]` and then multiplies; the last gather says which
    positions the following products belong to.
    """

    def __init__(self, module: nn.Module, own: dict[str, str], sink: Sink) -> None:
        super().__init__()
        self.parameters = {key: module._parameters[key] for key in own}
        self.own, self.sink = own, sink
        self.input: Tensor | None = None
        self.gathered: Tensor | None = None

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.input = args[0] if args and isinstance(args[0], Tensor) else None
        self.gathered = None
        self.__enter__()

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.__exit__(None, None, None)

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.nn.functional.linear:
            return self._saw_linear(out, *args[:2])
        if func is torch.nn.functional.embedding:
            return self._saw_embedding(out, *args[:3])
        if func is Tensor.__getitem__ and args[0] is self.input and isinstance(args[1], Tensor):
            self.gathered = args[1]
        return out

    def _saw_linear(self, out: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        for key, parameter in self.parameters.items():
            if weight is parameter:
                return listen(out, partial(self._received, self.own[key], x.detach()))
            if weight._base is parameter and parameter is not None and parameter.dim() == 3:
                start = (weight.storage_offset() - parameter.storage_offset()) // parameter.shape[2]
                return listen(out, partial(self._received_gathered, self.own[key], x.detach(), start, self.gathered))
        return out

    def _saw_embedding(self, out: Tensor, ids: Tensor, weight: Tensor, padding_idx: int | None = None) -> Tensor:
        for key, parameter in self.parameters.items():
            if weight is parameter:
                return listen(out, partial(_receive_embedding, self.own[key], self.sink, ids, padding_idx))
        return out

    def _received(self, name: str, x: Tensor, g: Tensor) -> None:
        left, right = self.sink.sides[name]
        self.sink.add_factors(name, Factors(a_BTI=right.project(_by_row(x, self.sink)), g_BTO=left.project(_by_row(g, self.sink))))

    def _received_gathered(self, name: str, x_PI: Tensor, start: int, positions_P: Tensor | None, g_PO: Tensor) -> None:
        if positions_P is None or len(positions_P) != len(x_PI):
            return  # whose tokens these are is not known: the block stays at zero and the check puts it out of scope
        left, right = self.sink.sides[name]
        self.sink.add_scattered(name, positions_P, left.part(g_PO, start=start), right.project(x_PI))


# ------------------------------------------------------------------------------------------------------- plumbing


class _Anchor(torch.autograd.Function):
    """Makes a tensor that depends on nothing trainable ask for its gradient, so that nothing below it is ever differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return None, None


def listen(output: Tensor, receive: Callable[[Tensor], None]) -> Tensor:
    """The tensor to go on with, in whose place a backward pass hands its derivative to `receive`."""
    if not torch.is_grad_enabled():
        return output
    if not output.requires_grad:
        output = _Anchor.apply(output, torch.zeros((), requires_grad=True))  # pyright: ignore[reportAssignmentType]
    output.register_hook(lambda g: receive(g.detach()))
    return output


def _side(sink: Sink, name: str, i: int) -> Side:
    return sink.sides[name][i]


def _by_row(x: Tensor, sink: Sink) -> Tensor:
    """[B, T, X] from what layers see: [B, T, X] itself, flattened [B T, X], or pooled [B, X], which is one position."""
    n_rows, n_positions = sink.shape_BT
    if x.dim() == 2 and len(x) == n_rows * n_positions:
        return x.unflatten(0, (n_rows, n_positions))
    if x.dim() == 2:
        return x.unsqueeze(1)
    return x


def _sum_heads(x: Tensor) -> Tensor:
    """[B, T, X] from [B, T, heads, X]: a norm on every head uses its weight once a head."""
    return x.flatten(2, -2).sum(2) if x.dim() > 3 else x
