"""Work shared between processes that start as copies of this one: nothing is loaded again, and rows in memory are shared.

Each worker has one thread. A small product of LiSSA is over before a second thread has woken up; two queries at once are twice the work.
"""

from __future__ import annotations

import multiprocessing
import pickle
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch

from headwater.progress import quiet
from headwater.types import HeadwaterError, UsageError

T = TypeVar("T")


class WorkerDied(HeadwaterError):
    """A worker ended without an answer: killed, usually for memory."""


def shared_out(tasks: Sequence[Callable[[], T]], *, workers: int) -> list[T]:
    """`[task() for task in tasks]`, worker i doing tasks i, i + workers, ...; here and in turn where `workers` is 1.

    On one thread of torch the numbers do not depend on `workers`. What a task changes in a worker's memory is lost. A task's error is
    raised here. Raises UsageError where processes cannot be copied (no fork, or an accelerator in use), WorkerDied where one was killed.
    """
    n = min(workers, len(tasks))
    if n <= 1:
        return [task() for task in tasks]
    _check_can_fork(workers)
    running = [_start(tasks[i::n]) for i in range(n)]
    try:
        shares = [_answers(end, process) for process, end in running]
    finally:
        for process, _ in running:
            process.terminate()
            process.join()
    return [shares[i % n][i // n] for i in range(len(tasks))]


def _check_can_fork(workers: int) -> None:
    if "fork" not in multiprocessing.get_all_start_methods():
        raise UsageError(f"workers is {workers}, and this system cannot copy a process (fork): take workers=1")
    if torch.cuda.is_initialized():
        raise UsageError(f"workers is {workers}, and CUDA is in use, which a copied process cannot share: take workers=1")


def _start(share: Sequence[Callable[[], Any]]) -> tuple[Any, Connection]:
    context = multiprocessing.get_context("fork")
    end, other_end = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(share, other_end), daemon=True)
    with warnings.catch_warnings():  # Python 3.12: there are other threads. They are torch's idle ones, which the worker never asks for
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    other_end.close()  # so that the end of the worker ends the stream
    return process, end


def _work(share: Sequence[Callable[[], Any]], end: Connection) -> None:
    """In the worker: its results, or its error, as bytes. Ordinary pickles copy a tensor's numbers; torch's own would share them."""
    torch.set_num_threads(1)
    try:
        with quiet():
            answer = True, [task() for task in share]
    except Exception as error:
        error.add_note(f"in a worker process:\n{traceback.format_exc()}")
        answer = False, error
    end.send_bytes(pickle.dumps(answer))
    end.close()


def _answers(end: Connection, process: Any) -> list[Any]:
    try:
        done, answer = pickle.loads(end.recv_bytes())
    except EOFError:
        process.join()
        raise WorkerDied(
            f"a worker process ended with code {process.exitcode} and without an answer. Likely cause: too little memory for the workers; "
            "take fewer (workers=1 needs none)."
        ) from None
    if not done:
        raise answer
    return answer
