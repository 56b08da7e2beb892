"""A causal language model as an Objective: its rows, queries and a few of its parameters, batch by batch.

Letters: N training rows · Q queries · D parameters · P target positions of a batch · V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from headwater.corpus.batch import collate, plan_batches
from headwater.model.session import Session
from headwater.truth.finetune import check_examples
from headwater.truth.objective import Pair
from headwater.types import Batch, Example, Measure, UsageError

KEPT_BYTES = 1 << 30  # of predictions at theta_s; what does not fit is predicted anew in each pass


@dataclass(frozen=True, eq=False)
class CausalRows:
    """An Objective over the named parameters of a causal language model; the others stay as they are.

    `L_n = sum_t -log p(token_t | before)` over a row's targets, `D_n = sum_t KL(p_s || p)` at the positions that predict them
    (Grosse et al. 2023, section 2.1). theta is the parameters in the order of their names here, in the model's dtype: in float32 a
    minimisation reaches a relative gradient of about 1e-3, so convert the model with `.double()` where it is small.

    The weights are the session's own again after every call. A batch has at most `token_budget` tokens. Cost of a call: a forward and a
    backward pass; of `loss` only over rows whose weight is not 0. Memory: the predictions at theta_s, up to a gibibyte.
    Raises UsageError for a classifier or an unknown parameter, DataError for a row without a target.
    """

    session: Session
    rows: Sequence[Example]
    queries: Sequence[Example]
    measure: Measure
    parameters: Sequence[str]
    token_budget: int = 4096

    decay = 0.0

    def __post_init__(self) -> None:
        if self.session.task != "causal-lm":
            raise UsageError(f"{self.session.name} is a {self.session.task} model, expected a causal language model")
        known = dict(self.session.model.named_parameters())
        unknown = [name for name in self.parameters if name not in known]
        if unknown or not self.parameters:
            raise UsageError(
                f"parameters {unknown[:3]} of {len(self.parameters)} named, expected some of the model's {len(known)}, such as "
                f"{', '.join(list(known)[:3])}"
            )
        check_examples(self.rows)
        assert len(self.start_D)  # taken now: whatever is done to the model later

    @property
    def train_ids(self) -> tuple[str, ...]:
        return tuple(row.id for row in self.rows)

    @property
    def query_ids(self) -> tuple[str, ...]:
        return tuple(query.id for query in self.queries)

    @property
    def unit(self) -> str | None:
        return self.measure.unit

    @cached_property
    def start_D(self) -> Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in self._tracked])

    def loss(self, theta_D: Tensor, weights_N: Tensor) -> Pair:
        chosen = torch.nonzero(weights_N).flatten().tolist()

        def weighed(positions: Sequence[int], batch: Batch) -> Tensor:
            log_p_PV, row_P, target_P = self._predicted(batch)
            return -(weights_N[list(positions)].to(log_p_PV)[row_P] * log_p_PV.gather(1, target_P[:, None])[:, 0]).sum()

        return self._summed(theta_D, self._batches(self.rows, chosen), weighed)

    def divergence(self, theta_D: Tensor, weights_N: Tensor) -> Pair:
        def diverged(positions: Sequence[int], batch: Batch) -> Tensor:
            before_PV = self._before(positions, batch)
            log_p_PV, row_P, target_P = self._predicted(batch)
            kl_P = (before_PV.exp() * (before_PV - log_p_PV)).sum(1)
            return (kl_P - weights_N[list(positions)].to(kl_P)[row_P] * log_p_PV.gather(1, target_P[:, None])[:, 0]).sum()

        return self._summed(theta_D, self._batches(self.rows, range(len(self.rows))), diverged)

    def measures(self, theta_D: Tensor) -> Tensor:
        found_Q = torch.zeros(len(self.queries), dtype=torch.float64)
        with torch.no_grad(), self._at(theta_D):
            for positions, batch in self._batches(self.queries, range(len(self.queries))):
                found_Q[list(positions)] = self.measure.fn(self.session.run(batch), batch).cpu().double()
        return found_Q

    # ------------------------------------------------------------------------------------------------------- passes

    @cached_property
    def _tracked(self) -> list[nn.Parameter]:
        known = dict(self.session.model.named_parameters())
        return [known[name] for name in self.parameters]

    @cached_property
    def _kept(self) -> dict[tuple[int, ...], Tensor]:
        return {}

    def _summed(
        self, theta_D: Tensor, batches: Iterator[tuple[Sequence[int], Batch]], fn: Callable[[Sequence[int], Batch], Tensor]
    ) -> Pair:
        value, gradient_D = torch.zeros_like(theta_D[0]), torch.zeros_like(theta_D)
        with self._at(theta_D), torch.enable_grad():
            for positions, batch in batches:
                part = fn(positions, batch)
                gradients = torch.autograd.grad(part, self._tracked, materialize_grads=True)
                value += part.detach().to(value)
                gradient_D += torch.cat([gradient.flatten() for gradient in gradients])
        return value / len(self.rows), gradient_D / len(self.rows)

    def _batches(self, examples: Sequence[Example], chosen: Sequence[int]) -> Iterator[tuple[Sequence[int], Batch]]:
        lengths = [examples[i].n_tokens for i in chosen]
        for plan in plan_batches(lengths, token_budget=self.token_budget):
            positions = [chosen[i] for i in plan]
            batch = collate([examples[i] for i in positions], pad_id=self.session.pad_id)
            yield positions, batch.to(self.session.device)

    def _predicted(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """([P, V] log-probabilities where a target is predicted, [P] which row of the batch, [P] the target)."""
        row_P, before_P = batch.loss_mask_BT[:, 1:].nonzero(as_tuple=True)
        hidden_BTH, logits_BTV = self.session.forward(batch)
        if logits_BTV is None:
            assert self.session.head is not None, "a session without a plain head computes logits itself"
            logits_PV = self.session.head.logits(hidden_BTH[row_P, before_P])
        else:
            logits_PV = logits_BTV[row_P, before_P]
        log_p_PV = logits_PV.to(torch.promote_types(logits_PV.dtype, torch.float32)).log_softmax(-1)
        return log_p_PV, row_P, batch.tokens_BT[row_P, before_P + 1]

    def _before(self, positions: Sequence[int], batch: Batch) -> Tensor:
        """[P, V] log-probabilities at theta_s."""
        if tuple(positions) in self._kept:
            return self._kept[tuple(positions)]
        with torch.no_grad(), self._at(self.start_D):
            log_p_PV = self._predicted(batch)[0]
        used = sum(kept_PV.nbytes for kept_PV in self._kept.values())
        if used + log_p_PV.nbytes <= KEPT_BYTES:
            self._kept[tuple(positions)] = log_p_PV
        return log_p_PV

    @contextmanager
    def _at(self, theta_D: Tensor) -> Iterator[None]:
        """Inside, the tracked parameters are theta and they alone need gradients, without dropout; afterwards all is as it was."""
        model = self.session.model
        before = [parameter.detach().clone() for parameter in self._tracked]
        needed, training = {parameter: parameter.requires_grad for parameter in model.parameters()}, model.training
        try:
            model.eval().requires_grad_(False)
            self._write(theta_D.split([parameter.numel() for parameter in self._tracked]))
            for parameter in self._tracked:
                parameter.requires_grad_(True)
            yield
        finally:
            self._write(before)
            for parameter, needs in needed.items():
                parameter.requires_grad_(needs)
            model.train(training)

    def _write(self, values: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self._tracked, values, strict=True):
                parameter.copy_(value.view_as(parameter))
