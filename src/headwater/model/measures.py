"""What can be explained. A measure is one small function of a forward pass; adding one is adding a function here."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from headwater.types import Batch, Measure, Outputs, UsageError


def _response_log_probability(outputs: Outputs, batch: Batch) -> Tensor:
    return outputs.token_log_probs().sum(-1)


def _loss(outputs: Outputs, batch: Batch) -> Tensor:
    if batch.labels_B is None:
        return -outputs.token_log_probs().sum(-1)
    return -_class_log_probs(outputs).gather(-1, batch.labels_B[:, None]).squeeze(-1)


def _mean_loss(outputs: Outputs, batch: Batch) -> Tensor:
    return _loss(outputs, batch) / batch.loss_mask_BT.sum(-1).clamp(min=1)


def _contrast(outputs: Outputs, batch: Batch) -> Tensor:
    if batch.alternative is None or outputs.alternative is None:
        raise UsageError("the contrast measure needs a second response: give the query an `alternative`")
    return outputs.token_log_probs().sum(-1) - outputs.alternative.token_log_probs().sum(-1)


def _class_logit_margin(outputs: Outputs, batch: Batch) -> Tensor:
    if batch.labels_B is None:
        raise UsageError("the class_logit_margin measure needs the query's class: give it a `label`")
    logits = outputs.class_logits()
    own = logits.gather(-1, batch.labels_B[:, None]).squeeze(-1)
    others = logits.scatter(-1, batch.labels_B[:, None], -torch.inf)
    return own - others.logsumexp(-1)


def _class_log_probs(outputs: Outputs) -> Tensor:
    logits = outputs.class_logits()
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


LOSS = Measure("loss", "nats", _loss)
"""`sum_t -log p(token_t | before)` over the loss tokens (a class: -log p(label)). What training rows carry."""

MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        # sum over the loss tokens; a query's span narrows the mask, so the log-probability of a span is the same function
        Measure("response_log_probability", "nats", _response_log_probability),
        Measure("token_span_log_probability", "nats", _response_log_probability),
        Measure("mean_loss", "nats per token", _mean_loss),
        Measure("contrast", "nats", _contrast),
        Measure("class_logit_margin", "nats", _class_logit_margin),
        LOSS,
    )
}


def get(name: str) -> Measure:
    """The built-in measure of that name; raises UsageError with the names there are."""
    if name not in MEASURES:
        raise UsageError(f"no measure is called {name!r}; there are: {', '.join(MEASURES)}")
    return MEASURES[name]


def custom(name: str, fn: Callable[[Outputs, Batch], Tensor], *, unit: str | None) -> Measure:
    """A measure of one's own: `fn(outputs, batch) -> [B]`, differentiable, larger = more of the behaviour.

    `headwater.trace(run, measure=...)` explains it. Raises UsageError for the name of a built-in one: a run's record tells them apart by
    their names.
    """
    if name in MEASURES:
        raise UsageError(f"{name} is a built-in measure; choose another name for your own")
    return Measure(name, unit, fn)
