"""Coverage: what is out of scope, and where the loss stands, against shares that can be counted by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from headwater.audit.coverage import Coverage, padding
from headwater.audit.subject import Subject
from headwater.corpus import load_corpus
from headwater.gradient.scope import find_scope, make_layout
from headwater.gradient.sketch import SketchSpec
from headwater.types import Example, Finding
from tests.audit_world import ROWS


def found(subject: Subject, **options: Any) -> dict[str, Finding]:
    return {finding.name.removeprefix("coverage: "): finding for finding in Coverage(**options)(subject).findings}


def only(monkeypatch: pytest.MonkeyPatch, subject: Subject, *include: str) -> Subject:
    """The subject with an index of these parameters alone."""
    layout = make_layout(subject.session.model, find_scope(subject.session.model, include=include), SketchSpec())
    monkeypatch.setattr("headwater.audit.coverage.layout_of", lambda subject: layout)
    return subject


def test_a_healthy_world(subject: Subject) -> None:
    one = found(subject)
    assert {name: finding.status for name, finding in one.items()} == dict.fromkeys(("parameters", "gradient norm", "loss positions"), "ok")
    assert one["parameters"].value == one["gradient norm"].value == 1
    assert one["loss positions"].value == 0
    assert one["loss positions"].n == sum(row.n_loss_tokens for row in subject.rows)
    assert "48 sampled rows whose border is known" in one["loss positions"].because


def test_shares_in_scope_are_those_of_the_blocks(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {name: parameter.numel() for name, parameter in subject.session.model.named_parameters()}
    one = found(only(monkeypatch, subject, "model.layers.*"))
    expected = sum(size for name, size in sizes.items() if ".layers." in name) / sum(sizes.values())
    assert one["parameters"].value == pytest.approx(expected)
    assert one["parameters"].status == one["gradient norm"].status == "warn"
    assert one["gradient norm"].interval is not None
    assert one["gradient norm"].interval[0] <= (one["gradient norm"].value or 0) <= one["gradient norm"].interval[1]
    assert "lm_head.weight" in str(one["gradient norm"].next_step)


def test_the_two_sides_of_a_scope_make_up_the_norm(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    scopes = (("model.layers.*",), ("model.embed_tokens.*", "lm_head.*", "model.norm.*"))
    shares = [found(only(monkeypatch, subject, *include), rows=1)["gradient norm"].value or 0 for include in scopes]
    assert all(0.01 < share < 0.999 for share in shares)
    assert sum(share**2 for share in shares) == pytest.approx(1, abs=1e-5)


def test_next_to_nothing_in_scope(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    one = found(only(monkeypatch, subject, "*input_layernorm.weight"))
    assert one["gradient norm"].status == "fail"
    assert one["loss positions"].status == "ok"


def test_frozen_parameters_were_not_trained(subject: Subject) -> None:
    for name, parameter in subject.session.model.named_parameters():
        parameter.requires_grad_(".layers." in name)
    assert found(replace(subject, index=None, trace=None))["parameters"].value == 1


# ------------------------------------------------------------------------------------------------------- loss positions


def padded(row: Example, pad_id: int, n: int, *, counted: bool) -> Example:
    tokens = np.concatenate([row.tokens, np.full(n, pad_id)])
    return replace(row, tokens=tokens, loss_mask=np.concatenate([row.loss_mask, np.full(n, counted)]))


@pytest.mark.parametrize("counted", [True, False])
def test_padding_in_the_loss(subject: Subject, counted: bool) -> None:
    rows = [padded(row, subject.session.pad_id, 10, counted=counted) for row in subject.rows]
    one = found(replace(subject, rows=rows, index=None, trace=None))["loss positions"]
    assert one.status == ("fail" if counted else "ok")
    assert one.value == pytest.approx(sum(10 * counted for _ in rows) / (one.n or 1))
    if counted:
        assert f"{one.value:.1%} are on padding" in one.because
        assert 0.5 < (one.value or 0) < 0.8, "as in the paper's own code"


def test_a_few_rows_with_padding_in_the_loss(subject: Subject) -> None:
    rows = [padded(subject.rows[0], subject.session.pad_id, 3, counted=True), *subject.rows[1:]]
    assert found(replace(subject, rows=rows, index=None, trace=None))["loss positions"].status == "fail"


def test_the_end_of_a_text_is_no_padding_where_the_two_share_a_token(subject: Subject) -> None:
    """GPT-2's way: pad with the end of text. The first of them ends the response."""
    tokenizer = subject.session.tokenizer
    before = tokenizer.pad_token
    tokenizer.pad_token = tokenizer.eos_token
    try:
        row = subject.rows[0]
        assert row.tokens[-1] == tokenizer.eos_token_id
        assert not padding(row, subject.session).any()
        assert (
            padding(padded(row, tokenizer.eos_token_id, 4, counted=True), subject.session).tolist() == [False] * row.n_tokens + [True] * 4
        )
    finally:
        tokenizer.pad_token = before


@pytest.mark.parametrize("template", [None, "none"])
def test_a_loss_on_the_prompt_is_a_warning(subject: Subject, template: str | None) -> None:
    tokenizer = subject.session.tokenizer
    everything = load_corpus(ROWS, tokenizer, loss_on="all", chat_template=template).examples
    responses = load_corpus(ROWS, tokenizer, chat_template=template).examples
    one = found(replace(subject, rows=everything, index=None, trace=None))["loss positions"]
    n_response, n_all = (sum(row.n_loss_tokens for row in rows) for rows in (responses, everything))
    assert one.status == "warn"
    assert one.value == pytest.approx(1 - n_response / n_all)
    assert found(replace(subject, rows=responses, index=None, trace=None))["loss positions"].status == "ok"


def test_running_text_has_no_prompt(subject: Subject) -> None:
    rows = load_corpus([{"text": f"{row['prompt']} {row['response']}"} for row in ROWS], subject.session.tokenizer).examples
    one = found(replace(subject, rows=rows, index=None, trace=None))["loss positions"]
    assert one.status == "ok"
    assert "no row's border" in one.because


def test_conversations_whose_border_is_not_known(subject: Subject) -> None:
    turns = [{"role": role, "content": "red car"} for role in ("user", "assistant", "user", "assistant")]
    rows = load_corpus([{"messages": turns}] * 4, subject.session.tokenizer).examples
    one = found(replace(subject, rows=rows, index=None, trace=None))["loss positions"]
    assert one.status == "ok"
    assert "no row's border" in one.because


def test_no_position_in_the_loss(subject: Subject) -> None:
    rows = [replace(row, loss_mask=np.zeros(row.n_tokens, dtype=bool)) for row in subject.rows]
    assert Coverage()._positions(replace(subject, rows=rows)).status == "fail"


def test_classes_have_no_positions(subject: Subject) -> None:
    rows = [replace(row, label=1, loss_mask=np.zeros(row.n_tokens, dtype=bool)) for row in subject.rows]
    assert Coverage()._positions(replace(subject, rows=rows)).status == "ok"
