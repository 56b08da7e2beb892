"""Rows of an index: the sketched gradient of a measure for each example of a batch, with its value and representations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from headwater.gradient.capture import Collector, capturing
from headwater.gradient.extra import Feature, make_features, watching
from headwater.gradient.transform import RowSink, Transform
from headwater.model.session import Session
from headwater.types import Batch, Layout, Measure


@dataclass(frozen=True)
class Rows:
    """What one pass says about each row of a batch. `gradient_BD` is [B, T, D] where positions are kept apart."""

    gradient_BD: Tensor
    value_B: Tensor
    representation_BH: Tensor
    representation_response_BH: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


class RowEngine:
    """Turns batches into `Rows`. Made by `row_engine`, alive inside it."""

    def __init__(self, session: Session, collector: RowSink, features: Sequence[Feature] = ()) -> None:
        self.session, self.collector, self.features = session, collector, features
        self._tap = _tap(session, collector)

    def rows(self, batch: Batch, measure: Measure) -> Rows:
        """One forward and one backward pass. Rows do not interact, so the gradient of the sum is every row's own."""
        batch = _same_width(batch)
        self.collector.start(*batch.tokens_BT.shape)
        with torch.enable_grad():
            outputs = self.session.run(batch, tap=self._tap)
            with watching(self.features):
                _ = outputs.hidden_BTH  # the batch's own pass, and no other that the measure may ask for
            value_B = measure.fn(outputs, outputs.batch)
            value_B.sum().backward()
        first, response = outputs.representations()
        extra = {feature.name: feature.take(outputs) for feature in self.features}
        return Rows(self.collector.rows(), value_B.detach(), first, response, extra)


@contextmanager
def row_engine(
    session: Session,
    layout: Layout,
    *,
    per_token: bool = False,
    transform: Transform | None = None,
    extra: Mapping[str, Mapping[str, Any]] | None = None,
) -> Iterator[RowEngine]:
    """Hooks in place for as long as the engine is used; the model is left as it was.

    Cost of a batch: a forward pass, the activation half of a backward pass, and for each matrix use and token
    k_O O + k_I I multiplications for the sketch. Memory: what autograd keeps, one chunk of logits, the rows. `transform` is what becomes of
    each row's gradient before the sketch; its own page says what that adds. `extra` are further features by name, see `gradient.extra`.
    """
    wide = torch.promote_types(session.dtype, torch.float32)
    dtype = session.dtype if transform is None and session.device.type != "cpu" else wide
    make = Collector if transform is None else transform.sink
    sink = make(layout, dtype=dtype, device=session.device, per_token=per_token)
    with capturing(session.model, sink):
        yield RowEngine(session, sink, make_features(session, extra or {}))


def _same_width(batch: Batch) -> Batch:
    """A contrast's two responses, padded to one length, so that a position means the same in both passes."""
    other = batch.alternative
    if other is None or other.tokens_BT.shape == batch.tokens_BT.shape:
        return batch
    width = max(batch.tokens_BT.shape[1], other.tokens_BT.shape[1])
    return replace(_widen(batch, width), alternative=_widen(other, width))


def _widen(batch: Batch, width: int) -> Batch:
    more = width - batch.tokens_BT.shape[1]
    pad = torch.nn.functional.pad
    return replace(batch, tokens_BT=pad(batch.tokens_BT, (0, more)), loss_mask_BT=pad(batch.loss_mask_BT, (0, more)))


@dataclass(frozen=True, eq=False)
class _Tap:
    """Feeds the head's weight gradient from the chunks of logits to the collector."""

    name: str
    collector: RowSink

    def project(self, dlogits_CV: Tensor) -> Tensor:
        return self.collector.sides[self.name][0].project(dlogits_CV)

    def receive(self, positions_P: Tensor, projected_PK: Tensor, hidden_PH: Tensor) -> None:
        right_PL = self.collector.sides[self.name][1].project(hidden_PH)
        self.collector.add_scattered(self.name, positions_P, projected_PK, right_PL)


def _tap(session: Session, collector: RowSink) -> _Tap | None:
    name = head_parameter(session, collector.layout)
    return None if name is None else _Tap(name, collector)


def head_parameter(session: Session, layout: Layout) -> str | None:
    """The name of the plain head's weight where it is a block of the layout."""
    if session.head is None:
        return None
    weight = session.head.linear.weight
    name = next((name for name, parameter in session.model.named_parameters() if parameter is weight), None)
    return name if name in {block.name for block in layout.blocks} else None
