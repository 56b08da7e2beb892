"""A session: what it loads, what it refuses, and what identifies it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from tests.e2e.conftest import lora, tiny

from headwater.model.session import Session, load_session
from headwater.types import Batch, DataError, UsageError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("session") / "model")


@pytest.fixture(scope="module")
def adapter(model: Path) -> Path:
    return lora(model, model.parent / "adapter")


def batch(*lengths: int, width: int | None = None) -> Batch:
    width = width or max(lengths)
    tokens_BT = torch.arange(len(lengths) * width).reshape(len(lengths), width) % 250 + 5
    lengths_B = torch.tensor(lengths)
    inside_BT = torch.arange(width) < lengths_B[:, None]
    mask_BT = inside_BT & (torch.arange(width) >= 2)
    return Batch(tuple("abcdef"[: len(lengths)]), torch.where(inside_BT, tokens_BT, 0), mask_BT, lengths_B, torch.ones_like(lengths_B))


def log_probs(session: Session, rows: Batch) -> torch.Tensor:
    with torch.no_grad():
        return session.run(rows).token_log_probs()


def test_token_log_probs_are_the_models_own(model: Path) -> None:
    session, rows = load_session(model, dtype="float64"), batch(7, 5)
    with torch.no_grad():
        logits = session.model(input_ids=rows.tokens_BT, attention_mask=(rows.tokens_BT > 0).long()).logits
    expected_BT = logits[:, :-1].log_softmax(-1).gather(-1, rows.tokens_BT[:, 1:, None]).squeeze(-1) * rows.loss_mask_BT[:, 1:]
    torch.testing.assert_close(log_probs(session, rows)[:, 1:], expected_BT)
    assert (log_probs(session, rows)[~rows.loss_mask_BT] == 0).all()


def test_padding_changes_nothing(model: Path) -> None:
    session = load_session(model, dtype="float64")
    narrow, wide = batch(7), batch(7, width=7)
    wide = Batch(wide.ids, torch.nn.functional.pad(wide.tokens_BT, (0, 9)), torch.nn.functional.pad(wide.loss_mask_BT, (0, 9)),
                 wide.lengths_B, wide.last_prompt_B)  # fmt: skip
    torch.testing.assert_close(log_probs(session, wide)[:, :7], log_probs(session, narrow))
    for one, other in zip(session.run(wide).representations(), session.run(narrow).representations(), strict=True):
        torch.testing.assert_close(one, other)


def test_representations_are_the_last_prompt_token_and_the_mean_over_the_response(model: Path) -> None:
    session, rows = load_session(model, dtype="float64"), batch(6, 4)
    first_BH, response_BH = session.run(rows).representations()
    with torch.no_grad():
        hidden_BTH = session.network.model(input_ids=rows.tokens_BT).last_hidden_state
    torch.testing.assert_close(first_BH, hidden_BTH[:, 1])
    torch.testing.assert_close(response_BH, torch.stack([hidden_BTH[0, 2:6].mean(0), hidden_BTH[1, 2:4].mean(0)]))


def test_the_fingerprint_is_of_the_weights(model: Path, adapter: Path) -> None:
    one, again = load_session(model), load_session(model)
    assert one.fingerprint == again.fingerprint
    with torch.no_grad():
        next(again.model.parameters())[0, 0] += 1e-3
    prints = [one, again, load_session(model, dtype="bfloat16"), load_session(model, adapter=adapter),
              load_session(model, adapter=adapter, merge=True)]  # fmt: skip
    assert len({session.fingerprint for session in prints}) == 5


def test_an_adapter_brings_its_base_and_is_all_that_is_trained(model: Path, adapter: Path) -> None:
    session = load_session(adapter)
    assert (session.name, session.adapter) == (str(model), str(adapter))
    trained = [name for name, parameter in session.model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora" in name for name in trained)


def test_a_merged_adapter_gives_the_same_numbers_and_everything_is_trained(model: Path, adapter: Path) -> None:
    apart, merged = (load_session(model, adapter=adapter, merge=merge, dtype="float64") for merge in (False, True))
    plain = load_session(model, dtype="float64")
    torch.testing.assert_close(log_probs(merged, batch(6)), log_probs(apart, batch(6)), rtol=1e-6, atol=1e-6)
    assert (log_probs(merged, batch(6)) - log_probs(plain, batch(6))).abs().max() > 1e-3
    assert all(parameter.requires_grad for parameter in merged.model.parameters())
    assert merged.describe()["merged"]


def test_loading_is_silent(model: Path, adapter: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        load_session(model, adapter=adapter)
    assert not seen
    assert "REPORT" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"dtype": "float8"}, UsageError, "float8.*bfloat16"),
        ({"task": "sequence-classification"}, DataError, "score.weight.*random.*--task"),
        ({"adapter": "/nowhere"}, DataError, "no PEFT adapter in /nowhere"),
    ],
)
def test_what_it_refuses(changes: dict[str, str], error: type[Exception], words: str, model: Path) -> None:
    with pytest.raises(error, match=f"(?s){words}"):
        load_session(model, **changes)  # pyright: ignore[reportArgumentType]


def test_a_config_that_names_no_task(model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UsageError, match=r"no architecture.*--task"):
        load_session(tmp_path)


def test_prompt_learning_is_refused_by_name(model: Path, tmp_path: Path) -> None:
    from peft import PromptTuningConfig

    PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM", base_model_name_or_path=str(model)).save_pretrained(str(tmp_path))
    with pytest.raises(UsageError, match=r"PROMPT_TUNING.*LoRA"):
        load_session(tmp_path)


def test_a_head_that_does_more_is_left_to_the_model(model: Path) -> None:
    """A head is taken over only where its numbers are the model's own; token 0 is padding, whose hidden state is zero under any head."""
    session = load_session(model)
    assert session.head is not None
    session.network.register_forward_hook(lambda module, args, output: setattr(output, "logits", output.logits * 2) or output)
    other = Session(session.model, session.tokenizer, "causal-lm", name="doubled")
    assert other.head is None
    with torch.no_grad():
        logits = 2 * session.head.logits(session.network.model(input_ids=batch(5).tokens_BT).last_hidden_state)
    expected = logits[:, :-1].log_softmax(-1).gather(-1, batch(5).tokens_BT[:, 1:, None]).squeeze(-1)
    torch.testing.assert_close(log_probs(other, batch(5))[:, 2:], expected[:, 1:])
