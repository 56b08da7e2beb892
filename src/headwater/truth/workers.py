"""New processes that share work: they end with an interrupt, and with the process that began them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any

from headwater.types import HeadwaterError


class WorkerDied(HeadwaterError):
    """A working process ended without a word: killed, usually for memory."""


@contextmanager
def worker_pool(n: int, begin: Callable[..., None], *args: Any) -> Iterator[ProcessPoolExecutor]:
    """n new processes (not copies of this one: they may have several threads, and an accelerator); each calls `begin(*args)` first.

    Leaving by an error, an interrupt too, ends them: nobody waits for work that is half done. Raises WorkerDied where one was killed.
    """
    others = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(n, mp_context=multiprocessing.get_context("spawn"), initializer=_begin, initargs=(begin, args))
    try:
        yield executor
    except BaseException as error:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        if isinstance(error, BrokenProcessPool):
            raise WorkerDied(
                f"one of {n} working processes ended without an answer. Likely cause: too little memory for so many, or a script that "
                "starts them without `if __name__ == '__main__':`. What was written is kept: take fewer processes, and call again."
            ) from error
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def _begin(begin: Callable[..., None], args: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's, which ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    begin(*args)


def _end_with_parent() -> None:
    """A parent that was killed cannot end its workers, and they would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    wait([parent.sentinel])
    os._exit(1)
