"""Retraining: each outcome is that of a training done by hand, and a killed call goes on to the same bank."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.truth_worlds import QUERIES, RESPONSE, ROWS, experiment, save_model

from headwater.corpus import collate
from headwater.model.session import Session, load_session
from headwater.truth.bank import read_bank
from headwater.truth.design import all_rows, subsets
from headwater.truth.finetune import Lora, Recipe, finetune
from headwater.truth.retrain import OUTCOMES, ByRecipe, ByTrainer, Experiment, retrain, trainer_rows
from headwater.truth.workers import WorkerDied
from headwater.types import DataError, Example, IntegrityError, Truth, UsageError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("truth") / "model")


def by_hand(model: Path, given: Experiment, kept_N: np.ndarray, **recipe: Any) -> list[float]:
    """The plain version: load, train, take each query's log-probability one at a time."""
    session = load_session(model)
    rows = [row for row, kept in zip(given.rows, kept_N, strict=True) if kept]
    session.model = finetune(session.model, rows, Recipe(**recipe), pad_id=session.pad_id).model.eval()
    found = []
    for query in given.queries:
        logits_TV = session.model(input_ids=torch.from_numpy(query.tokens)[None]).logits[0].double().log_softmax(-1)
        found.append(sum(logits_TV[t - 1, query.tokens[t]].item() for t in np.flatnonzero(query.loss_mask)))
    return found


def test_an_outcome_is_that_of_the_training_done_by_hand(model: Path, tmp_path: Path) -> None:
    given, designs = experiment(model), all_rows(len(ROWS)) + subsets(len(ROWS), 2)
    truth = retrain(tmp_path / "bank", given, designs, seeds=(5, 0), threads=1)
    assert (truth.kind, truth.unit, truth.seeds, truth.designs) == ("cold", "nats", (5, 0), ("all", "half/0", "half/1"))
    assert truth.query_ids == ("q0", "q1", "q2")
    assert truth.train_ids == tuple(row.id for row in given.rows)
    assert np.array_equal(truth.kept_DN, designs.kept_DN)
    for d, s in ((0, 0), (2, 1)):
        wanted = by_hand(model, given, designs.kept_DN[d], epochs=2, lr=3e-3, batch_rows=4, seed=truth.seeds[s])
        np.testing.assert_allclose(truth.outcomes_DSQ[d, s], wanted, rtol=1e-5)
    assert len(np.unique(truth.outcomes_DSQ)) == truth.outcomes_DSQ.size, "no two trainings are the same"
    assert truth.diverged_DS is not None
    assert not truth.diverged_DS.any()


def test_the_bank_that_was_written_reads_back_and_more_of_it_costs_only_what_is_new(model: Path, tmp_path: Path) -> None:
    given, out = experiment(model), tmp_path / "bank"
    fewer = retrain(out, given, subsets(len(ROWS), 3), seeds=(0,), threads=1)
    stamps = {path: path.stat().st_mtime_ns for path in (out / OUTCOMES).iterdir()}
    more = retrain(out, given, subsets(len(ROWS), 4), seeds=(0, 1), threads=1)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert len(list((out / OUTCOMES).iterdir())) == 8
    assert np.array_equal(more.outcomes_DSQ[:3, :1], fewer.outcomes_DSQ)
    same(read_bank(out), more)
    assert fewer.noise_ceiling is None
    assert more.noise_ceiling is not None


def same(one: Truth, other: Truth) -> None:
    for name in ("train_ids", "query_ids", "seeds", "kind", "unit", "designs", "recipe", "noise_ceiling"):
        assert getattr(one, name) == getattr(other, name), name
    for name in ("outcomes_DSQ", "kept_DN", "diverged_DS"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def contents(bank: Path) -> dict[str, bytes]:
    return {str(path.relative_to(bank)): path.read_bytes() for path in sorted(bank.rglob("*")) if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_half_way_and_called_again_it_writes_the_identical_bank(model: Path, tmp_path: Path, processes: int) -> None:
    given, designs = experiment(model), subsets(len(ROWS), 12)
    retrain(tmp_path / "whole", given, designs, seeds=(0, 1), threads=1)
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "tests.unit.truth_worlds", str(model), str(out), str(processes)]
    started = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    done = wait_for(lambda: len(list((out / OUTCOMES).glob("*.json"))), 3)
    workers = children_of(started.pid)
    assert len(workers) >= processes - 1
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    assert done < 24, "it was over before it was killed: make it longer"
    assert not (out / "bank.json").exists()
    with pytest.raises(DataError, match=r"bank.json is not in it"):
        read_bank(out)
    wait_for(lambda: -sum(map(alive, workers)), 0)
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    assert contents(out) == contents(tmp_path / "whole")


def wait_for(count: Any, least: int) -> int:
    end = time.monotonic() + 120
    while (n := count()) < least and time.monotonic() < end:
        time.sleep(0.005)
    assert n >= least
    return n


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    """A zombie that nobody has waited for yet is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_several_processes_write_the_bank_of_one(model: Path, tmp_path: Path) -> None:
    given = experiment(model, lora=Lora(r=2, alpha=4, dropout=0.1, targets=("q_proj", "v_proj")))
    for n in (1, 2):
        retrain(tmp_path / f"by-{n}", given, subsets(len(ROWS), 3), seeds=(0,), processes=n, threads=1)
    assert contents(tmp_path / "by-1") == contents(tmp_path / "by-2")


class Dies:
    """A training that the system kills."""

    start = "cold"

    def describe(self) -> dict[str, Any]:
        return {"start": "cold"}

    def __call__(self, rows: Sequence[Example], seed: int) -> Session:
        os._exit(9)


def test_a_process_that_is_killed_is_said(model: Path, tmp_path: Path) -> None:
    given = experiment(model)
    deadly = Experiment(Dies(), given.rows, given.queries, RESPONSE)
    with pytest.raises(WorkerDied, match="too little memory"):
        retrain(tmp_path / "bank", deadly, subsets(len(ROWS), 2), seeds=(0,), processes=2)


# -------------------------------------------------------------------------------------------------------- divergence


def test_a_training_that_diverges_is_kept_marked_and_counts_for_nothing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = experiment(model)

    class Sometimes(ByRecipe):
        def __call__(self, rows: Sequence[Example], seed: int) -> Session:
            rate = 1e30 if seed == 1 else 3e-3
            return ByRecipe(self.load, self.recipe.model_copy(update={"lr": rate, "warmup": 0}))(rows, seed)

    sometimes = Experiment(Sometimes(given.training.load, given.training.recipe), given.rows, given.queries, RESPONSE)  # type: ignore[attr-defined]
    truth = retrain(tmp_path / "bank", sometimes, subsets(len(ROWS), 3), seeds=(0, 1), threads=1)
    assert truth.diverged_DS is not None
    assert truth.diverged_DS.tolist() == [[False, True]] * 3
    assert np.isfinite(truth.outcomes_DSQ[:, 0]).all()
    assert np.isnan(truth.outcomes_DSQ[:, 1]).all()
    assert truth.noise_ceiling is None, "nothing is averaged over what diverged"
    told = capsys.readouterr().err
    assert "3 of 6 trainings diverged" in told
    assert "learning rate that is too high" in told
    same(read_bank(tmp_path / "bank"), truth)
    stamps = [path.stat().st_mtime_ns for path in sorted((tmp_path / "bank" / OUTCOMES).iterdir())]
    retrain(tmp_path / "bank", sometimes, subsets(len(ROWS), 3), seeds=(0, 1), threads=1)
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "bank" / OUTCOMES).iterdir())] == stamps, "a divergence is an outcome"


# ------------------------------------------------------------------------------------------------------- warm starts


def test_a_warm_start_goes_on_from_the_final_weights_of_model_or_adapter(model: Path, tmp_path: Path) -> None:
    """With a rate of nearly nothing the outcome is that of the final weights, and of the base model where it is cold."""
    tuned: Any = finetune(load_session(model).model, experiment(model).rows, Recipe(epochs=3, lr=1e-2, lora=Lora(r=2)), pad_id=0).model
    with torch.no_grad():
        tuned.peft_config["default"].base_model_name_or_path = str(model)
        tuned.save_pretrained(tmp_path / "adapter")
    for start, adapter in (("warm", tmp_path / "adapter"), ("cold", None)):
        given = experiment(model, start=start, adapter=adapter, lr=1e-12, lora=Lora(r=2))  # type: ignore[arg-type]
        truth = retrain(tmp_path / start, given, all_rows(len(ROWS)), seeds=(0,), threads=1)
        assert truth.kind == start
        expected = values(load_session(model, adapter=adapter), given.queries)
        np.testing.assert_allclose(truth.outcomes_DSQ[0, 0], expected, rtol=1e-6)
    assert not np.allclose(expected, values(load_session(model, adapter=tmp_path / "adapter"), given.queries), rtol=1e-3)


def values(session: Session, queries: Sequence[Example]) -> np.ndarray:
    with torch.no_grad():
        batch = collate(queries, pad_id=session.pad_id)
        return RESPONSE.fn(session.run(batch), batch).numpy()


def test_the_model_that_is_given_stays_as_it_is(model: Path, tmp_path: Path) -> None:
    session = load_session(model)
    before = copy.deepcopy(session.model.state_dict())
    retrain(tmp_path / "bank", experiment(model, load=lambda: session, lora=Lora(r=2)), all_rows(len(ROWS)), seeds=(0, 1), threads=1)
    torch.testing.assert_close(session.model.state_dict(), before, rtol=0, atol=0)


def test_the_number_of_threads_is_put_back(model: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    retrain(tmp_path / "bank", experiment(model), all_rows(len(ROWS)), seeds=(0,), threads=before + 1)
    assert torch.get_num_threads() == before


# ---------------------------------------------------------------------------------------------------- a user's Trainer


def trainer(model: Path, out: Path, lr: float, rows: Sequence[Example], seed: int) -> Any:
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    session = load_session(model, device="cpu")
    arguments = TrainingArguments(
        str(out), save_strategy="no", report_to=[], seed=seed, max_steps=4, per_device_train_batch_size=4, learning_rate=lr,
        max_grad_norm=0.0, use_cpu=True, disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    return Trainer(
        session.model,
        arguments,
        DataCollatorForSeq2Seq(session.tokenizer),
        trainer_rows(rows),  # type: ignore[arg-type]
        processing_class=session.tokenizer,
    )


@pytest.mark.filterwarnings("ignore")  # the libraries' own
def test_a_users_own_trainer_is_repeated(model: Path, tmp_path: Path) -> None:
    given = experiment(model)
    training = ByTrainer(partial(trainer, model, tmp_path / "out", 5e-3), about={"lr": 5e-3})
    own = Experiment(training, given.rows, given.queries, RESPONSE)
    designs = subsets(len(ROWS), 2)
    truth = retrain(tmp_path / "bank", own, designs, seeds=(3,), threads=1)
    one = trainer(model, tmp_path / "out", 5e-3, [row for row, kept in zip(given.rows, designs.kept_DN[1], strict=True) if kept], 3)
    one.train()
    np.testing.assert_allclose(truth.outcomes_DSQ[1, 0], values(Session(one.model.eval(), None, "causal-lm", "by hand"), given.queries))
    assert truth.recipe["training"] == {"trainer": "trainer", "lr": 5e-3}
    other = ByTrainer(partial(trainer, model, tmp_path / "out", 0.1), about={"lr": 0.1})
    with pytest.raises(IntegrityError, match=r"training.lr was 0.005 and is 0.1"):
        retrain(tmp_path / "bank", Experiment(other, given.rows, given.queries, RESPONSE), designs, seeds=(3,))


@pytest.mark.filterwarnings("ignore")
def test_a_trainer_that_ends_in_nan_has_diverged(model: Path, tmp_path: Path) -> None:
    given = experiment(model)
    own = Experiment(ByTrainer(partial(trainer, model, tmp_path / "out", 1e30), about={}), given.rows, given.queries, RESPONSE)
    truth = retrain(tmp_path / "bank", own, subsets(len(ROWS), 1), seeds=(0,), threads=1)
    assert truth.diverged_DS is not None
    assert truth.diverged_DS.all()
    assert np.isnan(truth.outcomes_DSQ).all()


# --------------------------------------------------------------------------------------------------------- bad input


def test_a_folder_of_another_experiment_is_refused_and_left_alone(model: Path, tmp_path: Path) -> None:
    out, designs = tmp_path / "bank", subsets(len(ROWS), 1)
    retrain(out, experiment(model), designs, seeds=(0,), threads=1)
    before = contents(out)
    for other, named in (
        (experiment(model, lr=1e-4), "training.lr"),
        (experiment(model, rows=[*ROWS[:-1], {"prompt": "And this?", "response": "Another."}]), "corpus"),
        (experiment(model, start="warm"), "start"),
        (Experiment(experiment(model).training, experiment(model).rows, experiment(model).queries[:2], RESPONSE), "queries"),
    ):
        with pytest.raises(IntegrityError, match=f"another experiment: .*{named} was"):
            retrain(out, other, designs, seeds=(0,))
    assert contents(out) == before


def test_a_damaged_outcome_is_said_and_done_again_once_removed(model: Path, tmp_path: Path) -> None:
    out, designs = tmp_path / "bank", subsets(len(ROWS), 2)
    retrain(out, experiment(model), designs, seeds=(0,), threads=1)
    before, path = contents(out), next((out / OUTCOMES).iterdir())
    for content in (path.read_text()[:20], json.dumps({"values": [1.0]}), json.dumps([])):
        path.write_text(content)
        with pytest.raises(IntegrityError, match=r"[Rr]emove it"):
            retrain(out, experiment(model), designs, seeds=(0,))
    path.unlink()
    retrain(out, experiment(model), designs, seeds=(0,), threads=1)
    assert contents(out) == before


def test_what_cannot_be_retrained_is_refused(model: Path, tmp_path: Path) -> None:
    given = experiment(model)
    with pytest.raises(UsageError, match="about 5 rows, and there are 24"):
        retrain(tmp_path, given, subsets(5, 1), seeds=(0,))
    with pytest.raises(UsageError, match="1 designs and 0 seeds"):
        retrain(tmp_path, given, all_rows(len(ROWS)), seeds=())
    with pytest.raises(UsageError, match="processes is 0"):
        retrain(tmp_path, given, all_rows(len(ROWS)), seeds=(0,), processes=0)
    with pytest.raises(DataError, match="two rows have one id"):
        Experiment(given.training, [given.rows[0]] * 2, given.queries, RESPONSE)
    with pytest.raises(DataError, match="no queries"):
        Experiment(given.training, given.rows, [], RESPONSE)
    assert len(QUERIES) == len(given.queries)
