"""A live model and its training rows as a source of curvature: whole gradients, recomputed by a pass whenever they are asked for.

Letters: B rows of a batch · T positions · D numbers of a whole gradient · K vectors · N rows.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from math import ceil

import numpy as np
import torch
from torch import Tensor

from headwater.corpus import collate, plan_batches
from headwater.gradient.capture import capturing
from headwater.gradient.factors import FactorSink, dense_rows
from headwater.gradient.gauss_newton import gauss_newton_product, linearised
from headwater.gradient.rows import head_parameter
from headwater.model.sampling import loss_starts
from headwater.model.session import Session
from headwater.progress import track
from headwater.types import Batch, Example, FactorBatch, Labels, Layout

GIVE_BACK_EVERY = 8  # batches: after each one it costs a fifth of the pass, after every eighth 3 %
KEEP_BYTES = 1 << 30  # rows are kept in memory, and served again without a pass, where all of them take no more


class LiveSource:
    """`types.ModelSource` over a session. `layout` keeps everything whole; dropout is off, whatever the model's mode.

    `bad` are positions of rows without a finite gradient: they have no curvature, and are NaN where rows are asked for. `keep` names the
    labels whose rows are wanted again later: where they all fit into `keep_bytes`, the first pass that computes factors runs one forward
    pass and a backward pass for each of them, and they are kept. Draws of sampled labels are keyed by `seed` and row.
    """

    def __init__(
        self,
        session: Session,
        examples: Sequence[Example],
        layout: Layout,
        *,
        token_budget: int = 1024,
        seed: int = 0,
        bad: Collection[int] = (),
        keep: Collection[Labels] = (),
        keep_bytes: int = KEEP_BYTES,
    ) -> None:
        self.session, self.examples, self.seed, self.token_budget = session, examples, seed, token_budget
        self._layout, self.bad = layout, frozenset(bad)
        self._good = [i for i in range(len(examples)) if i not in self.bad]
        n_bytes = len(examples) * layout.size * session.dtype.itemsize * len(keep)
        self._keep: tuple[Labels, ...] = tuple(keep) if n_bytes <= keep_bytes else ()
        self._kept: dict[str, Tensor] = {}

    @property
    def layout(self) -> Layout:
        return self._layout

    def __len__(self) -> int:
        return len(self.examples)

    def keeps(self, labels: Labels) -> bool:
        """Whether `rows(labels)` costs no pass, now or after the next pass over factors."""
        return labels in self._keep

    def factors(self, labels: Labels, *, positions: int | None = None) -> Iterator[FactorBatch]:
        missing: list[Labels] = [kind for kind in self._keep if kind not in self._kept]
        kinds: Sequence[Labels] = [*missing, *([] if labels in missing else [labels])]
        filling = {kind: torch.full((len(self), self.layout.size), torch.nan, dtype=self.session.dtype) for kind in missing}
        given = self._spread(positions)
        for some, kind, batch in self._passes(kinds, sparse=set(kinds) - set(missing), given=given):
            if kind in filling:
                filling[kind][torch.as_tensor(some)] = dense_rows(self.layout, batch.factors, len(some)).cpu()
            if kind == labels and some[0] in given:
                yield batch
            del batch  # or its factors would be held while the next batch is computed
        self._kept |= filling

    def rows(self, labels: Labels) -> Iterator[tuple[Sequence[int], Tensor]]:
        if self.keeps(labels) and labels not in self._kept:
            for _ in self.factors(labels):
                pass
        if labels in self._kept:
            yield from self._kept_blocks(labels)
            return
        for positions, _, batch in self._passes([labels]):
            yield positions, dense_rows(self.layout, batch.factors, len(positions))
            del batch

    def blocks(self, feature: str) -> Iterator[tuple[int, Tensor]]:
        """In the order of the rows, as `types.Source` has it: batches of neighbours, so padding costs more than in `rows`."""
        assert feature == "gradient", f"a live model has gradients, asked for {feature}"
        if self.keeps("true"):
            for _ in [] if "true" in self._kept else self.factors("true"):
                pass
            yield from ((positions[0], rows_BD) for positions, rows_BD in self._kept_blocks("true"))
            return
        start = 0
        for positions, _, batch in self._passes(["true"], in_order=True):
            rows_BD = torch.full((positions[-1] + 1 - start, self.layout.size), torch.nan, dtype=self.session.dtype)
            rows_BD[torch.as_tensor(positions) - start] = dense_rows(self.layout, batch.factors, len(positions)).cpu()
            yield start, rows_BD
            start += len(rows_BD)
        if start < len(self):  # bad rows at the end
            yield start, torch.full((len(self) - start, self.layout.size), torch.nan, dtype=self.session.dtype)

    def take(self, positions: Sequence[int] | np.ndarray) -> Tensor:
        """[K, D] the whole gradients of these rows' losses, in the order asked for."""
        chosen = [int(i) for i in positions]
        if "true" in self._kept:
            return self._kept["true"][chosen]
        part = LiveSource(self.session, [self.examples[i] for i in chosen], self.layout, token_budget=self.token_budget)
        rows_KD = torch.empty(len(chosen), self.layout.size, dtype=self.session.dtype)
        for some, rows_BD in part.rows("true"):
            rows_KD[torch.as_tensor(some)] = rows_BD.cpu()
        return rows_KD

    def gauss_newton(self, v_KD: Tensor, positions: Sequence[int] | None = None) -> Tensor:
        chosen = self._good if positions is None else [i for i in positions if i not in self.bad]
        total_KD = torch.zeros_like(v_KD)
        for batch in (self._collate([chosen[i] for i in some]) for some in self._plan(chosen)):
            total_KD += gauss_newton_product(self.session, self.layout, batch, v_KD)
        return total_KD / max(len(chosen), 1)

    @contextmanager
    def linearised(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """`gauss_newton` over all rows for many products: their forward passes are made once, and all they leave is kept meanwhile."""
        batches = [self._collate([self._good[i] for i in some]) for some in self._plan(self._good)]
        with linearised(self.session, self.layout, batches) as product:
            yield lambda v_KD: product(v_KD) / max(len(self._good), 1)

    def _kept_blocks(self, labels: Labels) -> Iterator[tuple[Sequence[int], Tensor]]:
        for start in range(0, len(self), 256):
            rows_BD = self._kept[labels][start : start + 256]
            yield range(start, start + len(rows_BD)), rows_BD

    def _passes(
        self, kinds: Sequence[Labels], *, in_order: bool = False, sparse: Collection[Labels] = (), given: Collection[int] = ()
    ) -> Iterator[tuple[Sequence[int], Labels, FactorBatch]]:
        """One forward pass a batch, one backward pass for each kind of labels, the `sparse` ones only where the first row is `given`."""
        sink = FactorSink(self.layout, dtype=self.session.dtype)
        through_logits = head_parameter(self.session, self.layout) is not None
        with capturing(self.session.model, sink):
            plan = self._plan(self._good, in_order=in_order)
            for done, some in enumerate(track(plan, total=len(plan), description=f"gradients of {len(self._good):,} rows")):
                positions = [self._good[i] for i in some]
                asked: list[Labels] = [kind for kind in kinds if kind not in sparse or positions[0] in given]
                if not asked:
                    continue
                batch = self._collate(positions)
                sink.start(*batch.tokens_BT.shape)
                with torch.enable_grad():
                    starts = loss_starts(self.session.run(batch), asked, seed=self.seed, through_logits=through_logits)
                used_BT = torch.arange(batch.tokens_BT.shape[1], device=batch.tokens_BT.device) < batch.lengths_B[:, None]
                for i, (kind, start) in enumerate(zip(asked, starts, strict=True)):
                    torch.autograd.backward(start.root, start.gradient, retain_graph=i + 1 < len(asked))
                    yield positions, kind, FactorBatch(positions, sink.take(), used_BT)
                if done % GIVE_BACK_EVERY == 0:
                    give_back_memory()
        give_back_memory()

    def _spread(self, n_positions: int | None) -> frozenset[int]:
        """The first rows of batches, evenly spread over the plan, that have about `n_positions`; of all batches where None is asked for."""
        plan = self._plan(self._good)
        available = sum(self.examples[i].n_tokens for i in self._good)
        share = 1.0 if n_positions is None else min(1.0, n_positions / max(available, 1))
        return frozenset(self._good[some[0]] for i, some in enumerate(plan) if ceil((i + 1) * share) > ceil(i * share))

    def _plan(self, chosen: Sequence[int], *, in_order: bool = False) -> list[list[int]]:
        lengths = [self.examples[i].n_tokens for i in chosen]
        if not in_order:
            return plan_batches(lengths, token_budget=self.token_budget)
        size = max(1, self.token_budget // max(lengths, default=1))
        return [list(range(start, min(start + size, len(lengths)))) for start in range(0, len(lengths), size)]

    def _collate(self, positions: Sequence[int]) -> Batch:
        return collate([self.examples[i] for i in positions], pad_id=self.session.pad_id).to(self.session.device)


def give_back_memory() -> None:
    """What a batch freed goes back to the system: glibc would keep ever more of it, in the holes between what lives on."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
