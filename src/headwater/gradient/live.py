"""A live model and its training rows as a source of curvature: whole gradients, recomputed by a pass whenever they are asked for.

Letters: B rows of a batch · T positions · D numbers of a whole gradient · K vectors · N rows.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from headwater.corpus import collate, plan_batches
from headwater.gradient.capture import capturing
from headwater.gradient.factor_file import FactorFile, StoredBatch, file_bytes, has_room
from headwater.gradient.factors import FactorSink, dense_rows
from headwater.gradient.gauss_newton import gauss_newton_product, linearised
from headwater.gradient.rows import head_parameter
from headwater.gradient.team import Team, plan_work, worker_sessions
from headwater.model.sampling import loss_starts
from headwater.model.session import Session
from headwater.progress import track
from headwater.types import Batch, Example, FactorBatch, Labels, Layout

GIVE_BACK_EVERY = 8  # batches: after each one it costs a fifth of the pass, after every eighth 3 %
KEEP_BYTES = 1 << 30  # rows are kept in memory, and served again without a pass, where all of them take no more

A = TypeVar("A")
B = TypeVar("B")


class LiveSource:
    """`types.ModelSource` over a session. `layout` keeps everything whole; dropout is off, whatever the model's mode.

    `bad` are positions of rows without a finite gradient: they have no curvature, and are NaN where rows are asked for. `keep` names the
    labels whose rows are wanted again later: where they all fit into `keep_bytes`, the first pass that computes factors runs one forward
    pass and a backward pass for each of them, and they are kept. Where they do not, and there is a `folder` with room, `over_factors` does
    the same and their factors are kept, in a file there without a name. Draws of sampled labels are keyed by `seed` and row.
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
        folder: Path | None = None,
    ) -> None:
        self.session, self.examples, self.seed, self.token_budget = session, examples, seed, token_budget
        self._layout, self.bad = layout, frozenset(bad)
        self._good = [i for i in range(len(examples)) if i not in self.bad]
        n_bytes = len(examples) * layout.size * session.dtype.itemsize * len(keep)
        self._keep: tuple[Labels, ...] = tuple(keep) if n_bytes <= keep_bytes else ()
        self._kept: dict[str, Tensor] = {}
        self._file = None if self._keep or folder is None else self._new_file(folder, tuple(keep))

    @property
    def layout(self) -> Layout:
        return self._layout

    def __len__(self) -> int:
        return len(self.examples)

    def keeps(self, labels: Labels) -> bool:
        """Whether `rows(labels)` costs no pass, now or after the next pass over factors."""
        return labels in self._keep

    def in_file(self, labels: Labels) -> list[StoredBatch]:
        """The batches whose factors a pass has left in a file; none where they are to be computed."""
        return self._file.batches(labels) if self._file is not None else []

    def factors(self, labels: Labels, *, positions: int | None = None) -> Iterator[FactorBatch]:
        if stored := self.in_file(labels):
            yield from (batch.load() for batch in self._some(stored, positions))
            return
        plan = self._plan(self._good)
        asked = self._asked(labels, positions, plan)
        for some, kind, batch in self._passes(plan, asked.kinds):
            if asked.take(some, kind, batch):
                yield batch
            del batch  # or its factors would be held while the next batch is computed
        self._kept |= asked.filling

    def over_factors(
        self, labels: Labels, begin: Callable[[], A], term: Callable[[A, FactorBatch], None], *, positions: int | None = None
    ) -> list[A]:
        """`term(so_far, batch)` of every batch that `factors` would give, or a smaller one.

        Batches are worked on side by side where that is fast, each worker with a `so_far` of its own. All of them come back, always in the
        same order and with the same batches in them.
        """
        if stored := self.in_file(labels):
            return self._over_file(self._some(stored, positions), begin, term)
        lengths = [self.examples[i].n_tokens for i in self._good]
        plan = plan_work(self.session, lengths, self.token_budget)
        asked = self._asked(labels, positions, plan, self._file)

        def work(worker: tuple[_Pass, A], some: Sequence[int]) -> None:
            run, so_far = worker
            for chosen, kind, batch in run.batches([self._good[i] for i in some], asked.kinds):
                if asked.take(chosen, kind, batch):
                    term(so_far, batch)
                del batch

        with ExitStack() as stack:
            sessions = worker_sessions(self.session, lengths, self.token_budget)
            team = Team([(stack.enter_context(_factor_pass(self, session)), begin()) for session in sessions])
            for done, _ in enumerate(track(team.each(plan, work, in_turn=True), total=len(plan), description=_described(len(lengths)))):
                if done % GIVE_BACK_EVERY == 0:
                    give_back_memory()
        give_back_memory()
        self._kept |= asked.filling
        if self._file is not None:
            self._file.complete = True
        return [so_far for _, so_far in team.workers]

    def _over_file(self, stored: Sequence[StoredBatch], begin: Callable[[], A], term: Callable[[A, FactorBatch], None]) -> list[A]:
        team = Team([begin() for _ in range(min(torch.get_num_threads(), len(stored)))])
        jobs = team.each(stored, lambda so_far, batch: term(so_far, batch.load()), in_turn=True)
        for _ in track(jobs, total=len(stored), description=_described(len(self._good))):
            pass
        give_back_memory()
        return list(team.workers)

    def rows(self, labels: Labels) -> Iterator[tuple[Sequence[int], Tensor]]:
        if self.keeps(labels) and labels not in self._kept:
            self._keep_rows(labels)
        if labels in self._kept:
            yield from self._kept_blocks(labels)
            return
        if stored := self.in_file(labels):
            for batch in map(StoredBatch.load, stored):
                yield batch.positions, dense_rows(self.layout, batch.factors, len(batch.positions))
            return
        for positions, _, batch in self._passes(self._plan(self._good), lambda _: [labels]):
            yield positions, dense_rows(self.layout, batch.factors, len(positions))
            del batch

    def blocks(self, feature: str) -> Iterator[tuple[int, Tensor]]:
        """In the order of the rows, as `types.Source` has it: batches of neighbours, so padding costs more than in `rows`."""
        assert feature == "gradient", f"a live model has gradients, asked for {feature}"
        if self.keeps("true"):
            if "true" not in self._kept:
                self._keep_rows("true")
            yield from ((positions[0], rows_BD) for positions, rows_BD in self._kept_blocks("true"))
            return
        start = 0
        for positions, _, batch in self._passes(self._plan(self._good, in_order=True), lambda _: ["true"]):
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

    def _keep_rows(self, labels: Labels) -> None:
        self.over_factors(labels, lambda: None, lambda so_far, batch: None)

    def _passes(
        self, plan: Sequence[Sequence[int]], kinds: Callable[[int], Sequence[Labels]]
    ) -> Iterator[tuple[Sequence[int], Labels, FactorBatch]]:
        """Every batch of the plan with the labels that are asked for where its first row is the given one."""
        with _factor_pass(self, self.session) as run:
            for done, some in enumerate(track(plan, total=len(plan), description=_described(len(self._good)))):
                yield from run.batches([self._good[i] for i in some], kinds)
                if done % GIVE_BACK_EVERY == 0:
                    give_back_memory()
        give_back_memory()

    def _asked(self, labels: Labels, n_positions: int | None, plan: Sequence[Sequence[int]], file: FactorFile | None = None) -> _Asked:
        shape = (len(self), self.layout.size)
        filling: dict[Labels, Tensor] = {
            kind: torch.full(shape, torch.nan, dtype=self.session.dtype) for kind in self._keep if kind not in self._kept
        }
        given = {self._good[some[0]] for some in self._some(plan, n_positions)}
        return _Asked(self.layout, labels, given, filling, file if file is not None and not file.complete else None)

    def _some(self, batches: Sequence[B], n_positions: int | None) -> list[B]:
        """Batches, evenly spread over all, that have about so many positions; all where None is asked for."""
        available = sum(self.examples[i].n_tokens for i in self._good)
        share = 1.0 if n_positions is None else min(1.0, n_positions / max(available, 1))
        return [one for i, one in enumerate(batches) if ceil((i + 1) * share) > ceil(i * share)]

    def _new_file(self, folder: Path, keep: Sequence[Labels]) -> FactorFile | None:
        """For the factors of these labels, where there is room for them. An accelerator computes them sooner than a disk reads them."""
        n_positions = sum(self.examples[i].n_tokens for i in self._good)
        n_bytes = file_bytes(self.layout, n_positions, len(keep), self.session.dtype)
        with suppress(OSError):  # a folder that cannot be written to
            if keep and self.session.device.type == "cpu" and has_room(folder, n_bytes):
                return FactorFile(folder, keep, self.session.dtype)
        return None

    def _plan(self, chosen: Sequence[int], *, in_order: bool = False) -> list[list[int]]:
        lengths = [self.examples[i].n_tokens for i in chosen]
        if not in_order:
            return plan_batches(lengths, token_budget=self.token_budget)
        size = max(1, self.token_budget // max(lengths, default=1))
        return [list(range(start, min(start + size, len(lengths)))) for start in range(0, len(lengths), size)]

    def _collate(self, positions: Sequence[int]) -> Batch:
        return collate([self.examples[i] for i in positions], pad_id=self.session.pad_id).to(self.session.device)


@dataclass(frozen=True)
class _Asked:
    """What a pass over factors is for: some labels of the batches whose first row is `given`, and what is to be kept beside: rows of the
    labels in `filling`, or factors in a file."""

    layout: Layout
    labels: Labels
    given: Collection[int]
    filling: dict[Labels, Tensor]
    file: FactorFile | None

    @property
    def kept(self) -> list[Labels]:
        return [*self.filling, *(self.file.labels if self.file is not None else ())]

    def kinds(self, first: int) -> list[Labels]:
        """The labels that the batch with this first row is differentiated for."""
        others: list[Labels] = [self.labels] if self.labels not in self.kept and first in self.given else []
        return [*self.kept, *others]

    def take(self, positions: Sequence[int], kind: Labels, batch: FactorBatch) -> bool:
        """Keeps what is to be kept; whether the batch was asked for."""
        if kind in self.filling:
            self.filling[kind][torch.as_tensor(positions)] = dense_rows(self.layout, batch.factors, len(positions)).cpu()
        if self.file is not None and kind in self.file.labels:
            self.file.put(kind, batch)
        return kind == self.labels and positions[0] in self.given


@dataclass(frozen=True, eq=False)
class _Pass:
    """One worker's session with its hooks in place."""

    source: LiveSource
    session: Session
    sink: FactorSink
    through_logits: bool

    def batches(
        self, positions: Sequence[int], kinds: Callable[[int], Sequence[Labels]]
    ) -> Iterator[tuple[Sequence[int], Labels, FactorBatch]]:
        """One forward pass, and one backward pass for each kind of labels."""
        asked = kinds(positions[0])
        if not asked:
            return
        batch = self.source._collate(positions)
        self.sink.start(*batch.tokens_BT.shape)
        with torch.enable_grad():
            starts = loss_starts(self.session.run(batch), asked, seed=self.source.seed, through_logits=self.through_logits)
        used_BT = torch.arange(batch.tokens_BT.shape[1], device=batch.tokens_BT.device) < batch.lengths_B[:, None]
        for i, (kind, start) in enumerate(zip(asked, starts, strict=True)):
            torch.autograd.backward(start.root, start.gradient, retain_graph=i + 1 < len(asked))
            yield positions, kind, FactorBatch(positions, self.sink.take(), used_BT)


@contextmanager
def _factor_pass(source: LiveSource, session: Session) -> Iterator[_Pass]:
    sink = FactorSink(source.layout, dtype=session.dtype)
    with capturing(session.model, sink):
        yield _Pass(source, session, sink, head_parameter(session, source.layout) is not None)


def _described(n_rows: int) -> str:
    return f"gradients of {n_rows:,} rows"


def give_back_memory() -> None:
    """What a batch freed goes back to the system: glibc would keep ever more of it, in the holes between what lives on."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
