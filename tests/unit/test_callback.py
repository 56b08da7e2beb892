"""HeadwaterCallback in a real Trainer: what it records is what was trained on, and training is not changed by a bit."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.e2e.conftest import ROWS
from tests.trainer import STEPS, encoded, make_trainer, train
from transformers import TrainerCallback

from headwater import HeadwaterCallback, RowIdCollator, with_row_ids
from headwater.training.folder import TrainerFolder
from headwater.training.optimizer import OURS, load_adam, read_adam
from headwater.training.record import Step, read_record
from headwater.types import DataError, LayoutMismatch, UsageError


class Witness(TrainerCallback):
    """Sees what the model is given at each forward pass, by its tokens, and can stop training as a crash would."""

    def __init__(self, die_in_step: int | None = None) -> None:
        self.seen: list[list[tuple[int, ...]]] = []
        self.die_in_step = die_in_step

    def on_train_begin(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        now["model"].register_forward_pre_hook(self._look, with_kwargs=True)

    def _look(self, module: Any, args: Any, inputs: dict[str, Any]) -> None:
        pad = 0
        self.seen[-1].extend(tuple(t for t in row if t != pad) for row in inputs["input_ids"].tolist())

    def on_step_begin(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        self.seen.append([])
        if self.die_in_step == state.global_step + 1:
            raise KeyboardInterrupt


@pytest.fixture(scope="module", params=[False, True], ids=["full", "lora"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same training with the callback and without; batches are read ahead by two workers."""
    root = tmp_path_factory.mktemp("trained")
    witness, options = Witness(), {"lora": request.param, "dataloader_num_workers": 2, "dataloader_prefetch_factor": 3}
    trainer = make_trainer(root / "with" / "out", callback=HeadwaterCallback(initial_weights=True), more=[witness], **options)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    weights = train(trainer)
    plain = train(make_trainer(root / "without" / "out", **options))
    return {"out": root / "with" / "out", "trainer": trainer, "witness": witness, "before": before, "weights": weights, "plain": plain}


def test_final_weights_are_bit_identical_with_and_without_it(trained: dict[str, Any]) -> None:
    assert trained["weights"].keys() == trained["plain"].keys()
    assert all(torch.equal(trained["weights"][name], tensor) for name, tensor in trained["plain"].items())
    assert any(not torch.equal(tensor, trained["weights"][name]) for name, tensor in trained["before"].items()), "nothing was trained"


def test_the_recorded_rows_are_those_of_each_forward_pass(trained: dict[str, Any]) -> None:
    tokenizer = trained["trainer"].processing_class
    tokens = [tuple(encoded(tokenizer, row)["input_ids"]) for row in ROWS]
    steps = read_record(trained["out"])
    assert steps is not None
    assert [step.step for step in steps] == list(range(1, STEPS + 1))
    assert all([len(rows) for rows in step.rows] == [3, 3] for step in steps), "two micro-batches of three"
    assert [[tokens[row] for rows in step.rows for row in rows] for step in steps] == trained["witness"].seen
    for epoch in (steps[:4], steps[4:]):
        assert Counter(row for step in epoch for rows in step.rows for row in rows) == Counter(range(len(ROWS)))
    assert steps[0].rows != steps[4].rows, "the epochs are shuffled"


def test_the_recorded_rates_are_those_the_optimizer_used(trained: dict[str, Any]) -> None:
    steps = read_record(trained["out"])
    assert steps is not None
    expected = [1e-2 * (STEPS - done) / STEPS for done in range(STEPS)]  # the Trainer's linear decay
    assert [step.learning_rates[0] for step in steps] == pytest.approx(expected, rel=1e-12)
    logged = {line["step"]: line for line in trained["trainer"].state.log_history if "learning_rate" in line}
    assert {n: steps[n - 1].learning_rates[0] for n in logged} == {n: line["learning_rate"] for n, line in logged.items()}
    for n, line in logged.items():  # the Trainer logs the mean over the steps since the last log
        assert line["loss"] == pytest.approx(sum(sum(step.losses) for step in steps[n - 2 : n]) / 2, rel=1e-5)


def test_the_moments_beside_a_checkpoint_are_those_of_the_trainers_file(trained: dict[str, Any], tmp_path: Path) -> None:
    model = trained["trainer"].model
    for checkpoint in TrainerFolder.open(trained["out"]).checkpoints:
        ours = load_adam(checkpoint.path / OURS)
        (tmp_path / "optimizer.pt").write_bytes((checkpoint.path / "optimizer.pt").read_bytes())
        theirs = read_adam(tmp_path, model)
        assert ours.fingerprint == theirs.fingerprint
        assert set(ours.steps.values()) == {checkpoint.step}
        assert {name: tuple(v.shape) for name, v in ours.second.items()} == {
            name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad
        }
    live = {name: trained["trainer"].optimizer.state[p] for name, p in model.named_parameters() if p.requires_grad}
    assert all(torch.equal(ours.second[name], state["exp_avg_sq"]) for name, state in live.items()), "by name, at the last step"


def test_the_first_weights_are_kept(trained: dict[str, Any]) -> None:
    from headwater.model.session import load_session

    session = load_session(trained["out"] / "headwater-initial")
    saved = dict(session.model.named_parameters())
    assert saved.keys() <= trained["before"].keys()
    assert all(torch.equal(p, trained["before"][name]) for name, p in saved.items())


def test_a_training_that_dies_and_resumes_leaves_one_record(tmp_path: Path) -> None:
    whole = make_trainer(tmp_path / "whole" / "out", callback=HeadwaterCallback())
    weights = train(whole)
    broken = make_trainer(tmp_path / "broken" / "out", callback=HeadwaterCallback(), more=[Witness(die_in_step=6)])
    with pytest.raises(KeyboardInterrupt):
        train(broken)
    record = tmp_path / "broken" / "out" / "headwater-training.jsonl"
    assert len(record.read_text().splitlines()) == 1 + 5, "every finished step is on file when the process dies"
    record.write_text(record.read_text() + '{"step": 6, "ro')  # and a line that was being written
    resumed = train(make_trainer(tmp_path / "broken" / "out", callback=HeadwaterCallback()), resume=True)  # from checkpoint 3
    assert all(torch.equal(weights[name], tensor) for name, tensor in resumed.items())
    assert read_record(tmp_path / "broken" / "out") == read_record(tmp_path / "whole" / "out")
    assert record.read_text() == (tmp_path / "whole" / "out" / "headwater-training.jsonl").read_text()


def test_a_second_training_into_the_same_folder_has_a_record_of_its_own(tmp_path: Path) -> None:
    out = tmp_path / "out"
    train(make_trainer(out, callback=HeadwaterCallback(), max_steps=2))
    train(make_trainer(out, callback=HeadwaterCallback(), max_steps=1))
    assert [step.step for step in read_record(out) or ()] == [1]


def test_rows_to_evaluate_on_are_not_recorded(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "out", callback=HeadwaterCallback(), max_steps=2, evaluate=True, eval_strategy="steps", eval_steps=1)
    train(trainer)
    assert any("eval_loss" in line for line in trainer.state.log_history)
    steps = read_record(tmp_path / "out")
    assert [[len(rows) for rows in step.rows] for step in steps or ()] == [[3, 3], [3, 3]]


# ------------------------------------------------------------------------------------------------ what goes wrong


def test_a_column_that_the_trainer_would_drop_is_refused_as_training_begins(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="remove_unused_columns=False"):
        train(make_trainer(tmp_path / "out", callback=HeadwaterCallback(), remove_unused_columns=True))


def test_a_batch_without_numbers_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "out", callback=HeadwaterCallback())
    trainer.train_dataset = trainer.train_dataset.remove_columns("headwater_row")
    with pytest.raises(DataError, match="with_row_ids"):
        train(trainer)


def test_without_rows_everything_else_is_recorded(tmp_path: Path) -> None:
    callback = HeadwaterCallback(column=None, moments=False)
    trainer = make_trainer(tmp_path / "out", callback=callback, max_steps=2, remove_unused_columns=True)
    train(trainer)
    steps = read_record(tmp_path / "out")
    assert [step.rows for step in steps or ()] == [(), ()]
    assert all(len(step.losses) == 2 for step in steps or ())
    assert not list((tmp_path / "out").rglob(OURS))


def test_an_optimizer_that_is_no_adam_is_refused_as_training_begins(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="moments=False"):
        train(make_trainer(tmp_path / "out", callback=HeadwaterCallback(), optim="sgd"))
    train(make_trainer(tmp_path / "out", callback=HeadwaterCallback(moments=False), optim="sgd", max_steps=1))
    with pytest.raises(UsageError, match="expected step, exp_avg and exp_avg_sq"):
        read_adam(TrainerFolder.open(tmp_path / "out").checkpoints[-1].path, make_trainer(tmp_path / "other").model)


def test_a_data_set_is_numbered_once_and_only_where_it_has_a_length() -> None:
    from datasets import Dataset

    data = with_row_ids(Dataset.from_list([{"input_ids": [i]} for i in range(3)]))
    assert data["headwater_row"][:] == [0, 1, 2]
    with pytest.raises(UsageError, match="already"):
        with_row_ids(data)
    numbered = with_row_ids([{"x": 5}, {"x": 6}], column="n")
    assert [numbered[i] for i in range(len(numbered))] == [{"x": 5, "n": 0}, {"x": 6, "n": 1}]
    with pytest.raises(UsageError, match="only streamed"):
        with_row_ids(iter([{"x": 5}]))


def test_the_collator_keeps_the_numbers_from_one_that_knows_nothing_of_them() -> None:
    def strict(rows: list[dict[str, Any]]) -> dict[str, Any]:
        assert all(set(row) == {"x"} for row in rows)
        return {"x": torch.tensor([row["x"] for row in rows])}

    collator = RowIdCollator(strict)
    batch = collator([{"x": 1, "headwater_row": 7}, {"x": 2, "headwater_row": 3}])
    assert batch["headwater_row"].tolist() == [7, 3]
    assert set(collator([{"x": 1}])) == {"x"}


# ------------------------------------------------------------------------------------------------ reading it again


def test_each_process_of_a_distributed_training_has_a_file_and_they_are_read_together(tmp_path: Path) -> None:
    for process, rows in enumerate(([[1, 2]], [[3, 4]])):
        suffix = f".{process}" if process else ""
        line = {"step": 1, "rows": rows, "learning_rates": [0.1], "losses": [float(process)]}
        (tmp_path / f"headwater-training{suffix}.jsonl").write_text(f'{{"format": 1}}\n{json.dumps(line)}\n')
    assert read_record(tmp_path) == (Step(1, ((1, 2), (3, 4)), (0.1,), (0.0, 1.0)),)
    assert read_record(tmp_path / "nowhere") is None


def test_a_damaged_record_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "headwater-training.jsonl").write_text('{"format": 1}\n{"step": 1}\n')
    with pytest.raises(DataError, match="line 2"):
        read_record(tmp_path)


def test_moments_of_amsgrad_are_refused(tmp_path: Path) -> None:
    from headwater.model.tiny import tiny_model

    model = tiny_model(0, num_hidden_layers=1, hidden_size=16, intermediate_size=32).model
    optimizer = torch.optim.AdamW(model.parameters(), amsgrad=True)
    model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    with pytest.raises(UsageError, match="without AMSGrad"):
        read_adam(tmp_path, model)


def test_moments_of_another_model_are_refused(trained: dict[str, Any], tmp_path: Path) -> None:
    from headwater.model.tiny import tiny_model

    source = TrainerFolder.open(trained["out"]).checkpoints[-1].path
    (tmp_path / "optimizer.pt").write_bytes((source / "optimizer.pt").read_bytes())
    small = {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 300}
    with pytest.raises(LayoutMismatch, match="groups of"):
        read_adam(tmp_path, tiny_model(0, num_hidden_layers=3, **small).model)
    with pytest.raises(LayoutMismatch):  # as many parameters, of other sizes
        read_adam(tmp_path, tiny_model(0, num_hidden_layers=2, **{**small, "intermediate_size": 48}).model)


def test_an_optimizer_file_that_is_cut_or_holds_code_is_refused(tmp_path: Path) -> None:
    from headwater.model.tiny import tiny_model

    model = tiny_model(0, num_hidden_layers=1, hidden_size=16, intermediate_size=32).model
    with pytest.raises(UsageError, match="no optimizer state"):
        read_adam(tmp_path, model)
    for content in (b"PK\x03\x04 cut short", b""):
        (tmp_path / "optimizer.pt").write_bytes(content)
        with pytest.raises(DataError, match="cannot be read"):
            read_adam(tmp_path, model)
    torch.save({"state": {}, "param_groups": [Witness()]}, tmp_path / "optimizer.pt")
    with pytest.raises(DataError, match="more than tensors and numbers"):
        read_adam(tmp_path, model)
    (tmp_path / OURS).write_bytes(b"no safetensors")
    with pytest.raises(DataError, match="restore it, or remove it"):
        read_adam(tmp_path, model)


# -------------------------------------------------------------------------------- the learning rate of a checkpoint


def test_the_rate_at_a_checkpoint_is_taken_from_the_best_source_and_says_which(tmp_path: Path) -> None:
    out = tmp_path / "out"
    train(make_trainer(out, callback=HeadwaterCallback()))
    at = {step: 1e-2 * (STEPS + 1 - step) / STEPS for step in range(1, STEPS + 1)}

    def rates() -> list[tuple[float, bool]]:
        return [(c.rate.value, c.rate.exact) if c.rate else (float("nan"), False) for c in TrainerFolder.open(out).checkpoints]

    assert rates() == [(pytest.approx(at[step]), True) for step in (3, 6, 8)]
    (out / "headwater-training.jsonl").unlink()  # the Trainer logged steps 2, 4, 6, 8; the scheduler's file has the step after
    assert rates() == [(pytest.approx(at[4]), False), (pytest.approx(at[6]), True), (pytest.approx(at[8]), True)]
    state = out / "checkpoint-8" / "trainer_state.json"
    as_now = state.read_text()
    old = json.loads(as_now)
    for line in old["log_history"]:
        if "learning_rate" in line:  # as transformers 4 logged it: the scheduler has stepped already
            line["learning_rate"] = 1e-2 * ((STEPS - line["step"]) / STEPS)
    state.write_text(json.dumps(old))
    assert rates()[1] == (pytest.approx(at[7]), False)
    state.write_text(as_now)
    for path in out.glob("checkpoint-*/scheduler.pt"):
        path.unlink()
    assert rates()[0] == (pytest.approx(at[2]), False), "the nearest one that was logged, the earlier of two"
    for path in out.glob("checkpoint-*/trainer_state.json"):
        path.unlink()
    assert [c.rate for c in TrainerFolder.open(out).checkpoints] == [None, None, None]


def test_a_folder_that_is_no_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither a model nor a checkpoint-N"):
        TrainerFolder.open(tmp_path)
