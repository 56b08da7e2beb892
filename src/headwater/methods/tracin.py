"""TracIn: gradient products along the training, each checkpoint by its learning rate."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from headwater.methods.shared import Weights, check, check_weights, make_scores, pairs, step_sizes, whole
from headwater.types import Index, Scores, State, UsageError


@dataclass(frozen=True)
class TracIn:
    """`score(q, n) = -sum_k eta_k h_q(theta_k) . g_n(theta_k) / B` over checkpoints k (Pruthi et al. 2020, eq. 1).

    eta_k the checkpoint's learning rate (1 where `weights` is "equal"), B the rows of a batch. With `batch_size` and learning rates it is
    the change of the measure that plain SGD made in one visit of the row a checkpoint, in nats: one checkpoint an epoch is meant, and the
    provenance says how many `visits` it was. Without, it ranks. Cost: one scan of each member. A zero gradient scores 0, a bad row NaN.
    """

    batch_size: int | None = None
    weights: Weights = "learning_rate"

    name = "tracin"
    requires = frozenset({"members:checkpoint"})
    summary = "gradient products summed over checkpoints, weighted by learning rate"
    reference = "Pruthi et al. 2020, eq. 1"
    cost = "one scan of each checkpoint's rows"

    def __post_init__(self) -> None:
        check_weights(self.name, self.weights)
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError(f"tracin: batch_size is {self.batch_size}, expected the rows of one optimizer step, 1 or more")

    @property
    def unit(self) -> str | None:
        return "nats" if self.batch_size and self.weights == "learning_rate" else None

    def fit(self, index: Index) -> State:
        return {}

    def score(self, state: State, index: Index, queries: Index) -> Scores:
        check(self, index, queries)
        checkpoints = pairs(index, queries, "checkpoint")
        rates = step_sizes([member for member, _ in checkpoints], self.weights)
        products = [member.index.products("gradient", whole(asked, "gradient")) for member, asked in checkpoints]
        values_QN = sum((-rate * product_QN for rate, product_QN in zip(rates, products, strict=True)), start=products[0].new_zeros(()))
        names = {member.name: rate for (member, _), rate in zip(checkpoints, rates, strict=True)}
        return make_scores(self, values_QN / (self.batch_size or 1), index, queries, step_sizes=names, visits=self._visits(index))

    def _visits(self, index: Index) -> list[float] | None:
        """How often training saw a row between a checkpoint and the one before; None where the steps or the batch are not known."""
        members = index.members("checkpoint")
        steps = [member.step for member in members if member.step is not None]
        if self.batch_size is None or len(steps) < len(members):
            return None
        return [(after - before) * self.batch_size / len(index) for before, after in itertools.pairwise([0, *steps])]
