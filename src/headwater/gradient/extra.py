"""Further features of a row, taken from the pass that computes its gradient: for methods that need more than gradients and hidden states.

A feature is a class in `FEATURES`, made for a session with the options that the index keeps of it. Letters: B rows · T positions · H hidden
size · K numbers of a feature.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from headwater.gradient.sites import listen
from headwater.model.outputs import SessionOutputs
from headwater.model.session import Session
from headwater.types import UsageError


class Feature(Protocol):
    """One further feature. `watching` surrounds the forward pass; `take` is called after the backward pass that followed."""

    name: str

    def describe(self) -> dict[str, Any]:
        """What the index keeps: the "width" K, and the options that make it again."""
        ...

    def watching(self) -> Any: ...

    def take(self, outputs: SessionOutputs) -> Tensor:
        """[B, K] of the batch just run."""
        ...

    def of_query(self, values_BK: Tensor) -> Tensor:
        """What `take` gave for a measure, as it stands beside rows that carry their loss: a measure is minus a loss."""
        ...


class Rept:
    """ "rept" [2 H]: a layer's hidden state where the answer begins, and what the pass differentiated (a row's loss) by that very state.

    `layer` counts as transformers' `hidden_states`: 1 is the first layer's output, -1 the last, after the final norm. The position is the
    last prompt token, which predicts the answer's first; a classifier's the one that it pools. Memory: one layer's states and derivatives.
    Raises UsageError for a layer that the model has not.
    """

    name = "rept"

    def __init__(self, session: Session, *, layer: int) -> None:
        self.layer, self.width = layer, 2 * session.hidden_size
        self.module = _layer(session, layer)
        self._hidden_BTH: Tensor | None = None
        self._slope_BTH: Tensor | None = None

    def describe(self) -> dict[str, Any]:
        return {"width": self.width, "layer": self.layer}

    @contextmanager
    def watching(self) -> Iterator[None]:
        self._hidden_BTH = self._slope_BTH = None
        handle = self.module.register_forward_hook(self._saw)
        try:
            yield
        finally:
            handle.remove()

    def take(self, outputs: SessionOutputs) -> Tensor:
        assert self._hidden_BTH is not None, "the layer did not run inside `watching`"
        slope_BTH = torch.zeros_like(self._hidden_BTH) if self._slope_BTH is None else self._slope_BTH
        rows_B, places_B = torch.arange(len(slope_BTH), device=slope_BTH.device), outputs.answer_positions()
        return torch.cat([self._hidden_BTH[rows_B, places_B], slope_BTH[rows_B, places_B]], dim=-1)

    def of_query(self, values_BK: Tensor) -> Tensor:
        hidden_BH, slope_BH = values_BK.chunk(2, dim=-1)
        return torch.cat([hidden_BH, -slope_BH], dim=-1)

    def _saw(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        hidden_BTH = output if isinstance(output, Tensor) else output[0]
        self._hidden_BTH = hidden_BTH.detach()
        return _with_hidden(output, listen(hidden_BTH, self._received))

    def _received(self, slope_BTH: Tensor) -> None:
        self._slope_BTH = slope_BTH


FEATURES: Mapping[str, type[Any]] = {"rept": Rept}


def describe_features(session: Session, *, rept_layer: int | None = None) -> dict[str, dict[str, Any]]:
    """{name: what the index keeps of it} of the features that are asked for."""
    asked: list[Feature] = [] if rept_layer is None else [Rept(session, layer=rept_layer)]
    return {feature.name: feature.describe() for feature in asked}


def make_features(session: Session, described: Mapping[str, Mapping[str, Any]]) -> tuple[Feature, ...]:
    """The features that an index's spec names, bound to a session; their widths follow from it."""
    options = {name: {key: value for key, value in about.items() if key != "width"} for name, about in described.items()}
    return tuple(FEATURES[name](session, **some) for name, some in options.items())


@contextmanager
def watching(features: Sequence[Feature]) -> Iterator[None]:
    with ExitStack() as stack:
        for feature in features:
            stack.enter_context(feature.watching())
        yield


def _layer(session: Session, layer: int) -> nn.Module:
    """The module whose output is `hidden_states[layer]`: a decoder layer, or for the last the whole backbone, with its final norm."""
    network = session.network
    backbone, n = getattr(network, network.base_model_prefix), int(network.config.get_text_config().num_hidden_layers)
    if layer == 0 or abs(layer) > n:
        raise UsageError(f"rept_layer is {layer}, expected 1 to {n} or -1 to -{n}: {session.name} has {n} layers")
    depth = layer % (n + 1)
    if depth == n:
        return backbone
    stacks = [module for module in backbone.modules() if isinstance(module, nn.ModuleList) and len(module) == n]
    if not stacks:
        raise UsageError(f"rept_layer is {layer}, and no list of {n} layers was found in {session.name}: take -1, the last")
    return stacks[0][depth - 1]


def _with_hidden(output: Any, hidden_BTH: Tensor) -> Any:
    """The module's output with another tensor in the place of its hidden states."""
    if isinstance(output, Tensor):
        return hidden_BTH
    if isinstance(output, tuple):
        return (hidden_BTH, *output[1:])
    output.last_hidden_state = hidden_BTH
    return output
