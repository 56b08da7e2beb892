"""Batches side by side: the same rows as from one engine, every job done once, errors that arrive, nothing left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from headwater.gradient import team
from headwater.gradient.rows import RowEngine, row_engine
from headwater.gradient.scope import find_scope, make_layout
from headwater.gradient.sketch import SketchSpec
from headwater.gradient.team import Team, plan_work, replica, row_engines, worker_sessions
from headwater.index.queries import query_index
from headwater.model import measures
from tests.exact.models import make_batch, make_session
from tests.exact.test_live_source import examples_of

LONG = [512] * 8


@pytest.fixture(autouse=True)
def _three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize("n_workers", [1, 3])
def test_every_job_is_done_once_and_the_threads_are_given_back(n_workers: int, in_turn: bool) -> None:
    done: list[int] = []
    workers = Team(list(range(n_workers)))
    assert len(list(workers.each(range(50), lambda worker, job: done.append(job), in_turn=in_turn))) == 50
    assert sorted(done) == list(range(50))
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("in_turn", [False, True])
def test_a_worker_has_one_job_at_a_time_and_its_share_of_the_threads(in_turn: bool) -> None:
    busy: set[str] = set()
    shares: list[int] = []

    def work(worker: str, job: int) -> None:
        assert worker not in busy
        busy.add(worker)
        shares.append(torch.get_num_threads())
        threading.Event().wait(1e-4)
        busy.remove(worker)

    list(Team(["a", "b", "c"]).each(range(200), work, in_turn=in_turn))
    assert set(shares) == {1}


def test_whoever_is_free_takes_the_next() -> None:
    others_are_done, taken = threading.Event(), dict[int, str]()

    def work(worker: str, job: int) -> None:
        taken[job] = worker
        if job == 0:
            assert others_are_done.wait(20)
        elif len(taken) == 30:
            others_are_done.set()

    list(Team(["a", "b"]).each(range(30), work))
    assert sum(worker == taken[0] for worker in taken.values()) == 1


def test_in_turn_who_does_which_is_the_same_each_time() -> None:
    taken: dict[str, list[int]] = {"a": [], "b": []}

    def work(worker: str, job: int) -> None:
        threading.Event().wait(0.02 if job == 0 else 0)
        taken[worker].append(job)

    list(Team(["a", "b"]).each(range(9), work, in_turn=True))
    assert taken == {"a": [0, 3, 4, 7, 8], "b": [1, 2, 5, 6]}


def test_workers_do_work_side_by_side() -> None:
    together = threading.Barrier(3, timeout=20)
    list(Team(["a", "b", "c"]).each(range(3), lambda worker, job: together.wait() and None))


@pytest.mark.parametrize("n_workers", [1, 3])
def test_what_a_job_raises_arrives_and_no_further_job_begins(n_workers: int) -> None:
    begun: list[int] = []

    def work(worker: int, job: int) -> None:
        begun.append(job)
        if job == 5:
            raise ValueError("the sixth")
        threading.Event().wait(0.005)

    with pytest.raises(ValueError, match="the sixth"):
        list(Team(list(range(n_workers))).each(range(1000), work))
    assert len(begun) < 100
    assert torch.get_num_threads() == 3


def test_an_iterator_that_is_closed_stops_its_workers() -> None:
    begun: list[int] = []

    def work(worker: int, job: int) -> None:
        begun.append(job)
        threading.Event().wait(0.005)

    ends = Team([0, 1]).each(range(1000), work)
    next(ends)
    ends.close()  # pyright: ignore[reportAttributeAccessIssue]
    after = len(begun)
    assert after < 100
    threading.Event().wait(0.05)
    assert len(begun) == after


@pytest.mark.parametrize("architecture", ["llama", "mixtral", "gemma3", "gpt2", "bert", "llama_lora"])
def test_rows_are_those_of_one_engine(architecture: str) -> None:
    session = make_session(architecture)
    session.model.train()
    layout = make_layout(session.model, find_scope(session.model), SketchSpec(rank=3, whole_below=30))
    batches = [make_batch(session, seed=seed, lengths=(9, 5, 7, 3 + seed % 5)) for seed in range(12)]
    with row_engine(session, layout) as engine:
        expected = [engine.rows(batch, measures.LOSS).gradient_BD for batch in batches]
    got: dict[int, Tensor] = {}

    def work(engine: RowEngine, i: int) -> None:
        got[i] = engine.rows(batches[i], measures.LOSS).gradient_BD

    flags = [parameter.requires_grad for parameter in session.model.parameters()]
    with row_engines(session, layout, LONG, 2048) as engines:
        assert len(engines.workers) == 3
        for _ in engines.each(range(len(batches)), work):
            pass
    for i, rows in enumerate(expected):
        torch.testing.assert_close(got[i], rows, rtol=1e-9, atol=1e-12)
    assert [parameter.requires_grad for parameter in session.model.parameters()] == flags
    assert session.model.training
    assert all(parameter.grad is None for parameter in session.model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in session.model.modules())


def test_a_replica_has_the_parameters_and_modules_of_its_own() -> None:
    session = make_session("llama_lora")
    other = replica(session)
    for (name, one), (other_name, two) in zip(session.model.named_parameters(), other.model.named_parameters(), strict=True):
        assert name == other_name
        assert one is two
    assert not set(session.model.modules()) & set(other.model.modules())
    batch = make_batch(session)
    with torch.no_grad():
        next(session.model.parameters()).mul_(2)  # trained on meanwhile
        torch.testing.assert_close(session.run(batch).token_log_probs(), other.run(batch).token_log_probs())


@pytest.mark.parametrize(
    ("lengths", "budget", "n_workers"),
    [
        (LONG, 1024, 2),
        (LONG, 4096, 3),
        (LONG * 8, 2048, 2),
        (LONG, 512, 1),
        (LONG, 16, 1),
        ([700] * 8, 1024, 1),
        ([700] * 8, 1400, 2),
        ([20] * 3, 4096, 1),
        ([], 1024, 1),
    ],
)
def test_as_many_workers_as_threads_budget_and_work_allow(lengths: list[int], budget: int, n_workers: int) -> None:
    session = make_session("llama")
    assert len(worker_sessions(session, lengths, budget)) == n_workers
    plan = plan_work(session, lengths, budget)
    assert sorted(i for batch in plan for i in batch) == list(range(len(lengths)))
    assert all(n_workers * sum(lengths[i] for i in batch) <= max(budget, 512) or len(batch) == 1 for batch in plan)
    torch.set_num_threads(1)
    assert plan_work(session, lengths, budget) == plan  # bytes of an index do not depend on the threads


@pytest.mark.parametrize("lengths", [[80] * 13, [64] * 40, list(range(20, 140))], ids=["few", "odd", "spread"])
def test_work_is_shared_evenly_by_two(lengths: list[int]) -> None:
    """Dealt out forth and back, neither has much more than the other: not a whole batch left over for one of them."""
    torch.set_num_threads(2)
    session, done = make_session("llama"), [0, 0]
    team = Team(range(len(worker_sessions(session, lengths, 4096))))

    def work(worker: int, batch: list[int]) -> None:
        done[worker] += sum(lengths[i] for i in batch)

    for _ in team.each(plan_work(session, lengths, 4096), work, in_turn=True):
        pass
    assert sum(done) == sum(lengths)
    assert max(done) - min(done) <= 0.1 * sum(lengths)


def test_a_model_that_cannot_be_copied_works_alone() -> None:
    session = make_session("llama")
    session.model.lock = threading.Lock()  # pyright: ignore[reportArgumentType]
    assert worker_sessions(session, LONG, 2048) == [session]


def test_queries_are_the_same_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    session = make_session("llama")
    layout = make_layout(session.model, find_scope(session.model), SketchSpec(rank=3, whole_below=30))
    queries, measure = examples_of(make_batch(session, lengths=(9, 5, 7, 9, 6, 8, 4, 9))), measures.get("response_log_probability")
    expected = query_index(session, layout, queries, measure)
    monkeypatch.setattr(team, "WORKER_TOKENS", (9, 9))
    assert len(worker_sessions(session, [query.n_tokens for query in queries], 27)) == 3
    got = query_index(session, layout, queries, measure, token_budget=27)
    for feature in sorted(expected.features):
        torch.testing.assert_close(got.take(feature, range(8)), expected.take(feature, range(8)), rtol=1e-5, atol=1e-6)
    assert got.column("measure") == pytest.approx(expected.column("measure"))
