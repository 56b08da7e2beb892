"""Silent faults of an indexing engine, planted one by one: a witness that shares no code with the engine must turn red on each.

The witness tokenises a row itself, takes transformers' own loss on that row alone, and lets plain autograd differentiate it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from torch import Tensor

from headwater.index import build
from headwater.index.read import StoredIndex
from headwater.index.run import build_index
from headwater.model import measures
from headwater.model.outputs import SessionOutputs
from headwater.model.session import Session, load_session
from headwater.recipe import IndexRecipe
from headwater.types import Batch, DataError, Example, Outputs
from tests.e2e.conftest import ROWS, tiny

SOME = ROWS[:7]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return load_session(tiny(tmp_path_factory.mktemp("faults") / "model", num_hidden_layers=1))


def indexed(session: Session, run: Path) -> StoredIndex:
    """Whole gradients in float32, three rows a shard, several rows of unlike lengths a batch."""
    flags = {"model.path": session.name, "data.source": build.IN_MEMORY, "sketch.whole_below": 10**9, "store.dtype": "float32"}
    return build_index(IndexRecipe.build(flags={**flags, "store.shard_rows": 3}), run, session=session, data=SOME)


def witness(session: Session, index: StoredIndex) -> None:
    """Every row's gradient and loss, found by the id that its content has."""
    for row in SOME:
        tokens, n_prompt = _tokens(session, row)
        position = index.positions_of([_content_id(tokens, n_prompt)])
        loss, gradient_D = _autograd(session, index, tokens, n_prompt)
        torch.testing.assert_close(index.take("gradient", position)[0], gradient_D, rtol=1e-3, atol=1e-5)
        assert index.column("loss")[position][0] == pytest.approx(loss, rel=1e-4)
        assert index.column("response")[position][0] == row["response"]


def _tokens(session: Session, row: dict[str, str]) -> tuple[list[int], int]:
    turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
    texts = [session.tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True),
             session.tokenizer.apply_chat_template(turns, tokenize=False)]  # fmt: skip
    prompt, both = (session.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    return both, len(prompt)


def _content_id(tokens: list[int], n_prompt: int) -> str:
    mask = np.arange(len(tokens)) >= n_prompt
    return xxhash.xxh3_128_hexdigest(np.array(tokens, dtype="<i8").tobytes() + mask.tobytes() + np.array(-1, dtype="<i8").tobytes())


def _autograd(session: Session, index: StoredIndex, tokens: list[int], n_prompt: int) -> tuple[float, Tensor]:
    labels = torch.tensor([[-100] * n_prompt + tokens[n_prompt:]])
    loss = session.model(input_ids=torch.tensor([tokens]), labels=labels).loss * (len(tokens) - n_prompt)
    parameters = dict(session.model.named_parameters())
    names = [block.name for block in index.layout.blocks]
    gradients = torch.autograd.grad(loss, [parameters[name] for name in names])
    return loss.item(), torch.cat([gradient.flatten() for gradient in gradients])


# --------------------------------------------------------------------------------------------------------- faults

collate, columns, put = build.collate, build.example_columns, build._Filling.put
target_log_probs = SessionOutputs._target_log_probs


def _padding_in_the_loss(examples: Any, **options: Any) -> Batch:
    batch = collate(examples, **options)
    padding_BT = torch.arange(batch.tokens_BT.shape[1]) >= batch.lengths_B[:, None]
    return replace(batch, loss_mask_BT=batch.loss_mask_BT | padding_BT)


def _prompt_in_the_loss(examples: Any, **options: Any) -> Batch:
    batch = collate(examples, **options)
    inside_BT = torch.arange(batch.tokens_BT.shape[1]) < batch.lengths_B[:, None]
    inside_BT[:, 0] = False
    return replace(batch, loss_mask_BT=inside_BT)


def _shifted_labels(self: SessionOutputs, rows: Tensor, before: Tensor, targets_P: Tensor) -> Tensor:
    """Each position is asked for its own token, not for the next."""
    return target_log_probs(self, rows, before, self.batch.tokens_BT[rows, before])


def _loss_over_the_batch(outputs: Outputs, batch: Batch) -> Tensor:
    return -outputs.token_log_probs().sum(-1) / len(batch)


def _mean_over_tokens(outputs: Outputs, batch: Batch) -> Tensor:
    return -outputs.token_log_probs().sum(-1) / batch.loss_mask_BT.sum(-1)


def _wrong_sign(outputs: Outputs, batch: Batch) -> Tensor:
    return outputs.token_log_probs().sum(-1)


def _shuffled_ids(examples: list[Example]) -> dict[str, list[Any]]:
    found = columns(examples)
    return {**found, "id": found["id"][1:] + found["id"][:1]}


def _rows_in_the_order_of_batches(self: Any, positions: list[int], engine: Any, pad_id: int) -> None:
    """The longest rows come first in a plan: written down as they come, they stand under other rows' names."""
    put(self, positions, _Reordered(engine, torch.tensor(positions).argsort()), pad_id)


class _Reordered:
    """An engine that forgets which row was which."""

    def __init__(self, engine: Any, order_B: Tensor) -> None:
        self.engine, self.order_B = engine, order_B

    def rows(self, batch: Batch, measure: Any) -> Any:
        rows = self.engine.rows(batch, measure)
        return replace(rows, gradient_BD=rows.gradient_BD[self.order_B], value_B=rows.value_B[self.order_B])


class _Doubled:
    """An engine that runs the backward pass twice and forgets to clear between."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def rows(self, batch: Batch, measure: Any) -> Any:
        rows = self.engine.rows(batch, measure)
        return replace(rows, gradient_BD=2 * rows.gradient_BD)


def _gradient_counted_twice(self: Any, positions: list[int], engine: Any, pad_id: int) -> None:
    put(self, positions, _Doubled(engine), pad_id)


FAULTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "padding in the loss": lambda patch: patch.setattr(build, "collate", _padding_in_the_loss),
    "prompt in the loss": lambda patch: patch.setattr(build, "collate", _prompt_in_the_loss),
    "label shift": lambda patch: patch.setattr(SessionOutputs, "_target_log_probs", _shifted_labels),
    "loss averaged over the batch": lambda patch: patch.setattr(measures, "LOSS", replace(measures.LOSS, fn=_loss_over_the_batch)),
    "loss averaged over tokens": lambda patch: patch.setattr(measures, "LOSS", replace(measures.LOSS, fn=_mean_over_tokens)),
    "wrong sign": lambda patch: patch.setattr(measures, "LOSS", replace(measures.LOSS, fn=_wrong_sign)),
    "shuffled ids": lambda patch: patch.setattr(build, "example_columns", _shuffled_ids),
    "rows in the order of batches": lambda patch: patch.setattr(build._Filling, "put", _rows_in_the_order_of_batches),
    "gradient counted twice": lambda patch: patch.setattr(build._Filling, "put", _gradient_counted_twice),
}


def test_the_witness_agrees_with_the_engine_as_it_is(session: Session, tmp_path: Path) -> None:
    index = indexed(session, tmp_path / "run")
    assert len({int(n) for n in index.column("n_tokens")}) > 1  # there is padding to get wrong
    witness(session, index)


def judge_with(fault: str, session: Session, run: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        FAULTS[fault](patch)
        index = indexed(session, run)
    witness(session, index)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_witness_turns_red(fault: str, session: Session, tmp_path: Path) -> None:
    """Rows that disturb each other are caught earlier: by the engine's own check of what it captures."""
    with pytest.raises((AssertionError, DataError)):
        judge_with(fault, session, tmp_path / "run")
