"""Work shared out between processes: the same answers in the same order, and errors that arrive."""

from __future__ import annotations

import os
import signal
from functools import partial

import pytest
import torch

from headwater.curvature.parallel import WorkerDied, shared_out
from headwater.types import UsageError


def where(i: int) -> tuple[int, int]:
    return i, os.getpid()


@pytest.mark.parametrize("workers", [1, 2, 3, 50])
def test_answers_come_in_the_order_of_the_tasks(workers: int) -> None:
    found = shared_out([partial(where, i) for i in range(7)], workers=workers)
    assert [i for i, _ in found] == list(range(7))
    processes = {process for _, process in found}
    assert len(processes) == min(workers, 7)
    assert (os.getpid() in processes) == (workers == 1)


def test_no_task_is_no_work() -> None:
    assert shared_out([], workers=4) == []


def test_large_answers_and_tensors_arrive_whole() -> None:
    rows = torch.arange(3_000_000, dtype=torch.float64)
    found = shared_out([lambda i=i: rows * i for i in range(4)], workers=2)
    assert all(torch.equal(one, rows * i) for i, one in enumerate(found))


def test_a_worker_has_one_thread_and_leaves_ours_alone() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert shared_out([torch.get_num_threads] * 2, workers=2) == [1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def refuse() -> None:
    raise UsageError("damping is 0")


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_s_error_is_ours() -> None:
    with pytest.raises(UsageError, match="damping is 0") as error:
        shared_out([partial(where, 0), refuse], workers=2)
    assert any("refuse" in note for note in error.value.__notes__), "where it happened"


def test_a_killed_worker_is_noticed() -> None:
    with pytest.raises(WorkerDied, match=r"ended with code -9 and without an answer.*too little memory"):
        shared_out([partial(where, 0), be_killed], workers=2)


def test_an_accelerator_in_use_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(UsageError, match="workers is 2, and CUDA is in use"):
        shared_out([partial(where, i) for i in range(2)], workers=2)
    assert shared_out([partial(where, 3)], workers=1)[0][0] == 3
