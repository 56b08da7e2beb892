"""The comparison with the peers: every engine reads the same workload, and one that fails is in the table with its error."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import workload
from benchmarks.peers import engines, exact, job, table
from benchmarks.peers.engines import Engine
from benchmarks.peers.job import Figure, Job, Outcome, Setting
from benchmarks.peers.task import IGNORE, Task, by_length, padded, summed_loss, unsorted

N_ROWS, N_QUERIES = 9, 2

WORKS = """
import sys
import numpy as np
from benchmarks.peers.task import main

assert "headwater" not in sys.modules, "an engine's environment has no headwater"

def job(task):
    with task.stage("fit"):
        lengths = np.array([len(row) for row in task.rows()], dtype=float)
    with task.stage("scores"):
        scores = np.stack([lengths * len(query) for query in task.queries()])
    task.notes.append(task.options["note"])
    return scores

if __name__ == "__main__":
    main("numpy", {"job": job})
"""
FAILS = "raise RuntimeError('it has no kernel for this')"
HANGS = "import time; time.sleep(60)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workload.write(tmp_path_factory.mktemp("workload"), n_rows=N_ROWS, n_queries=N_QUERIES)


@pytest.fixture
def setting(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """Fake engines beside the real ones, three that run in this environment and one that cannot be installed."""

    def refuse(*command: str) -> None:
        raise RuntimeError("no such package")

    monkeypatch.setattr(engines, "_run", refuse)
    monkeypatch.setitem(engines.ENGINES, "absent", Engine("absent", "absent", "absent==1.2"))
    for name, text in {"works": WORKS, "fails": FAILS, "hangs": HANGS}.items():
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.setitem(engines.ENGINES, name, Engine(name, name))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), str(engines.CHECKOUT))))
    found = engines.interpreters(["works", "fails", "hangs", "absent"], tmp_path / "environments")
    return Setting(folder, found, tmp_path / "out", N_ROWS, 4, N_QUERIES, threads=1, limit_s=60)


def task(folder: Path, which: str = "w1") -> Task:
    return Task(folder, folder / "out", which, n_rows=N_ROWS, n_queries=N_QUERIES, threads=1)


def test_the_files_hold_the_rows_that_were_drawn(folder: Path):
    drawn, read = workload.rows(N_ROWS), task(folder).rows()
    assert [row.tokens.tolist() for row in drawn] == [row.tolist() for row in read]
    assert [row.tokens.tolist() for row in workload.queries(N_QUERIES)] == [row.tolist() for row in task(folder).queries()]
    assert not {row.id for row in drawn} & {row.id for row in workload.queries(N_QUERIES)}
    assert read[0].tolist() != task(folder).queries()[0].tolist()


def test_both_models_have_the_base_weights_and_lora_changes_what_they_say(folder: Path):
    batch = padded(task(folder).rows())
    base, tuned = (task(folder, which).network() for which in ("w1", "w2"))
    torch.testing.assert_close(tuned.get_base_model().model.layers[0].mlp.up_proj.weight, base.model.layers[0].mlp.up_proj.weight)
    trained = {name: parameter for name, parameter in tuned.named_parameters() if parameter.requires_grad}
    assert len(trained) == 16
    assert sum(parameter.numel() for parameter in trained.values()) == 32_768
    tuned(**batch).loss.backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in trained.values()), "the gradient of lora_A vanishes where lora_B is zero"


def test_the_loss_of_a_row_is_a_sum_and_does_not_depend_on_its_batch(folder: Path):
    rows, network = task(folder).rows(), task(folder).network()
    batch = padded(rows)

    def loss(part: dict[str, torch.Tensor]) -> torch.Tensor:
        return summed_loss(network(input_ids=part["input_ids"], attention_mask=part["attention_mask"]).logits, part["labels"])

    mean = network(**batch).loss
    n_targets = (batch["labels"][:, 1:] != IGNORE).sum()
    torch.testing.assert_close(loss(batch), mean * n_targets)
    torch.testing.assert_close(loss(batch), torch.stack([loss(padded([row])) for row in rows]).sum())


def test_scores_of_sorted_rows_come_back_in_the_workloads_order():
    rows = [np.arange(n) for n in (5, 2, 9, 3)]
    order = by_length(rows)
    assert order == [1, 3, 0, 2]
    lengths_QN = np.array([[float(len(rows[i])) for i in order]] * 2)
    assert unsorted(lengths_QN, [1, 0], order).tolist() == [[5.0, 2.0, 9.0, 3.0]] * 2


def test_a_headline_job_that_is_repeated_keeps_the_median(setting: Setting, monkeypatch: pytest.MonkeyPatch):
    """By its first figure; a job without a headline runs once, and one failure fails all."""
    seconds = iter((3.0, 9.0, 4.0, 5.0, 1.0, 2.0, 3.0))

    def timed(one: Job, setting: Setting) -> Outcome:
        value = next(seconds)
        return Outcome(one, 1, 1, {"stages_s": {"all": value}, "training_pass_s": 2.0}, error="out of memory" if value == 1.0 else "")

    monkeypatch.setattr(job, "_timed", timed)
    thrice = setting._replace(repeats=3)
    headline = Job("works", "job", "w1", (Figure("all", key="all_passes"),))
    found = job.run(headline, thrice)
    assert (found.passes(headline.figures[0]), found.repeated) == (2.0, (1.5, 2.0, 4.5))
    assert job.run(Job("works", "job", "w1", (Figure("all"),)), thrice).repeated == (2.5,)
    assert job.run(headline, thrice).error == "out of memory"
    assert next(seconds, None) is None


def test_an_engine_that_works_leaves_its_stages_and_scores(setting: Setting):
    both = (Figure("all of it", key="all_passes"), Figure("the second half", ("scores",)))
    outcome = job.run(Job("works", "job", "w2", both, costly=True, options={"note": "as given"}), setting)
    assert outcome.error == ""
    lengths = [len(row) for row in task(setting.workload).rows()][:4]  # costly: --peer-rows rows, and as many queries a row
    queries = [len(row) for row in task(setting.workload).queries()][:1]
    np.testing.assert_allclose(outcome.scores_QN, np.outer(queries, lengths))
    whole, half = table.rows([outcome])
    assert (whole["rows"], whole["note"], whole["version"]) == (4, "as given", np.__version__)
    assert 0 < half["passes"] <= whole["passes"]
    assert whole["peak_mb"] > 50
    assert table.headlines([outcome]) == {"all_passes": whole["passes"]}


@pytest.mark.parametrize(
    ("name", "error"),
    [("fails", "RuntimeError: it has no kernel for this"), ("hangs", "no result after 1 s"), ("absent", "no such package")],
)
def test_an_engine_that_fails_is_reported_with_its_error(name: str, error: str, setting: Setting):
    outcome = job.run(Job(name, "job", "w1", (Figure("it", key="it_passes"),)), setting._replace(limit_s=1))
    assert outcome.error == error
    (row,) = table.rows([outcome])
    assert (row["what"], row["engine"], row["error"], row["passes"]) == ("it", name, error, None)
    assert row["version"] == ("1.2" if name == "absent" else "")
    assert table.headlines([outcome]) == {"it_passes": None}
    table.show([row])


def test_agreement_is_taken_where_two_engines_scored_the_same_rows(rng_scores: np.ndarray):
    def outcome(engine: str, scores: np.ndarray, function: str = "ekfac") -> Outcome:
        return Outcome(Job(engine, function, "w1", ()), scores.shape[1], 2, {"stages_s": {}}, scores)

    same, reverse, fewer = rng_scores * 3 + 1, -rng_scores, rng_scores[:, :5]
    outcomes = [outcome("a", rng_scores), outcome("b", same), outcome("c", reverse), outcome("d", fewer), outcome("e", same, "graddot")]
    assert table.agreement(outcomes) == {"ekfac, w1: a and b": 1.0, "ekfac, w1: a and c": -1.0, "ekfac, w1: b and c": -1.0}


@pytest.fixture
def rng_scores() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 20))


def test_gradient_products_are_those_of_a_backward_pass_and_a_wrong_sign_or_scale_stands_out(folder: Path):
    truth = exact.products(task(folder, "w2"))
    gradients = []
    for row in (task(folder).queries()[1], task(folder).rows()[3]):
        network = task(folder, "w2").network()
        network(**padded([row])).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]) * (len(row) - 1))
    assert float(gradients[0] @ gradients[1]) == pytest.approx(truth[1, 3], rel=1e-3)
    assert exact.error(np.pad(truth, ((0, 3), (0, 5))), truth) == 0
    assert min(exact.error(wrong, truth) for wrong in (-truth, truth / 2, truth[:, ::-1])) > 0.4


def test_every_job_names_an_engine_that_has_it():
    for one in job.PEERS:
        path = engines.CHECKOUT / f"{engines.ENGINES[one.engine].module.replace('.', '/')}.py"
        assert f"def {one.function}(task: Task)" in path.read_text(), f"{path.name} has no {one.function}"
        assert engines.ENGINES[one.engine].version
