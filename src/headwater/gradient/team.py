"""Batches side by side on a processor: workers with modules of their own over the same parameters, each with its share of the threads.

Dividing one batch over threads costs something in every operation, and the small ones hardly gain by it; whole batches divide freely.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from headwater.corpus import plan_batches
from headwater.gradient.rows import RowEngine, row_engine
from headwater.model.session import Session
from headwater.types import Layout

WORKER_TOKENS = 512, 1024  # of a worker's batch: with fewer the products are too thin to run fast, with more nothing is gained
ROUNDS = 16  # batches, where there is little work: few large ones would not divide evenly

J = TypeVar("J")
W = TypeVar("W")


@dataclass(frozen=True)
class Team(Generic[W]):
    """Workers: engines, or whatever else each of them needs one of."""

    workers: Sequence[W]

    def each(self, jobs: Iterable[J], work: Callable[[W, J], None], *, in_turn: bool = False) -> Iterator[None]:
        """`work(worker, job)` of every job; yields as each one ends. Whoever is free takes the next.

        `in_turn` they are dealt out, forth and back, as mostly each is smaller than the one before: who does which, and with it what a
        worker sums up, is then the same each time. What a job raises is raised here, and then, or where the iterator is closed, no further
        one begins.
        """
        if len(self.workers) == 1:
            yield from (work(self.workers[0], job) for job in jobs)
            return
        n_threads, n = torch.get_num_threads(), len(self.workers)
        groups = [[worker] for worker in self.workers] if in_turn else [self.workers]
        crews = [_Crew(some, work, n_threads // n) for some in groups]
        try:
            begun = [crew.begin(job) for crew, job in zip(cycle([*crews, *reversed(crews)]), jobs, strict=False)]
            for done in as_completed(begun):
                yield done.result()
        finally:
            for crew in crews:
                crew.pool.shutdown(wait=False, cancel_futures=True)
            for crew in crews:
                crew.pool.shutdown()
            torch.set_num_threads(n_threads)  # a worker's share may have become the process's, depending on the library below


class _Crew(Generic[W, J]):
    """Workers with a thread each, and one queue of jobs."""

    def __init__(self, workers: Sequence[W], work: Callable[[W, J], None], n_threads_each: int) -> None:
        self.pool = ThreadPoolExecutor(len(workers), initializer=torch.set_num_threads, initargs=(n_threads_each,))
        self._work, self._free = work, list(workers)  # as many free workers as there are threads without a job

    def begin(self, job: J) -> Future[None]:
        return self.pool.submit(self._do, job)

    def _do(self, job: J) -> None:
        worker = self._free.pop()
        try:
            self._work(worker, job)
        finally:
            self._free.append(worker)


def plan_work(session: Session, lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Batches of rows of these lengths: of `token_budget` on an accelerator, smaller ones on a processor, for workers to share.

    They do not depend on how many workers there are, so the bytes of a shard do not either.
    """
    if session.device.type != "cpu":
        return plan_batches(lengths, token_budget=token_budget)
    plan = plan_batches(lengths, token_budget=_batch_tokens(lengths, token_budget))
    if len(plan) % 2:  # the second of two workers would wait for the first
        plan[-1:] = [half.tolist() for half in np.array_split(plan[-1], 2) if len(half)]
    return plan


def _batch_tokens(lengths: Sequence[int], token_budget: int) -> int:
    """Of a batch on a processor: a sixteenth of the work, at most half of what may be in flight."""
    least, most = WORKER_TOKENS
    return min(token_budget, max(least, min(sum(lengths) // ROUNDS, token_budget // 2, most)))


def worker_sessions(session: Session, lengths: Sequence[int], token_budget: int) -> list[Session]:
    """The session and its replicas: as many as have threads and work, with no more than `token_budget` tokens in all their batches."""
    if session.device.type != "cpu":
        return [session]
    in_flight = token_budget // max(_batch_tokens(lengths, token_budget), max(lengths, default=0))
    n = min(torch.get_num_threads(), in_flight, sum(lengths) // min(WORKER_TOKENS))
    try:
        return [session, *(replica(session) for _ in range(n - 1))]
    except (TypeError, RuntimeError, NotImplementedError, AttributeError):  # a model that holds what python cannot copy
        return [session]


def replica(session: Session) -> Session:
    """The same parameters and buffers under modules of their own, which can be hooked and run beside the session's."""
    kept: dict[int, Any] = {id(tensor): tensor for tensor in [*session.model.parameters(), *session.model.buffers()]}
    return replace(session, model=copy.deepcopy(session.model, kept))


@contextmanager
def row_engines(session: Session, layout: Layout, lengths: Sequence[int], token_budget: int, **options: Any) -> Iterator[Team[RowEngine]]:
    """A `row_engine` for each worker, with the options of that function."""
    with ExitStack() as stack:
        sessions = worker_sessions(session, lengths, token_budget)
        yield Team([stack.enter_context(row_engine(one, layout, **options)) for one in sessions])
