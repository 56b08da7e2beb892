"""Duplicates: planted copies are counted, in the rows, in named groups, and between queries and rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from headwater.audit.duplicates import Duplicates, row_clusters
from headwater.audit.subject import Subject
from headwater.corpus import load_corpus
from headwater.types import Example, Finding, with_values
from tests.audit_world import ROWS


def found(subject: Subject, **options: float) -> dict[str, Finding]:
    return {finding.name.removeprefix("duplicates: "): finding for finding in Duplicates(**options)(subject).findings}


def encoded(subject: Subject, rows: Sequence[Mapping[str, str]]) -> list[Example]:
    return list(load_corpus(rows, subject.session.tokenizer).examples)


def test_a_healthy_world(subject: Subject) -> None:
    one = found(subject)
    assert {name: finding.status for name, finding in one.items()} == dict.fromkeys(("rows", "named groups", "queries in training"), "ok")
    assert one["rows"].value == one["queries in training"].value == 0
    assert one["named groups"].value == pytest.approx(1 / 5)


def test_rows_alone_say_something(subject: Subject) -> None:
    assert set(found(replace(subject, index=None, trace=None))) == {"rows"}


def test_copies_are_counted(subject: Subject) -> None:
    long = {
        "prompt": "tell me the long story of the old red car",
        "response": "it stood by the river for many years and then it drove away",
    }
    near = {**long, "response": long["response"] + " today"}
    shouted = {name: text.upper() for name, text in long.items()}
    rows = encoded(subject, [*ROWS, long, long, shouted, near])
    cluster_N = row_clusters(rows)
    assert len(set(cluster_N[-4:].tolist())) == 1
    assert len(set(cluster_N.tolist())) == len(ROWS) + 1
    one = found(replace(subject, rows=rows, index=None, trace=None))["rows"]
    assert one.value == pytest.approx(4 / len(rows))
    assert "1 clusters, the largest of 4 rows; 2 rows are exact repeats" in one.because
    assert one.status == "ok"
    assert found(replace(subject, rows=rows, index=None, trace=None), rows=0.05)["rows"].status == "warn"


def test_rows_without_text_are_like_their_copies(subject: Subject) -> None:
    bare = [replace(row, prompt="", response="", group="") for row in encoded(subject, [ROWS[0], ROWS[1], ROWS[0]])]
    assert row_clusters(bare).tolist() == [0, 1, 0]


def test_a_named_group_of_copies(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows 0 to 5 become one text, and five of them are everybody's named group."""
    rows = [replace(row, group="same") if n < 6 else row for n, row in enumerate(subject.rows)]
    values_QN = np.tile(-np.arange(len(rows), dtype=np.float32) + 5.5, (len(subject.scores.query_ids), 1))
    scores = {**subject.asked.scores, subject.asked.primary: with_values(subject.scores, values_QN)}
    one = found(replace(subject, rows=rows, trace=replace(subject.asked, scores=scores)))["named groups"]
    assert one.status == "warn"
    assert one.value == 1
    assert "5 rows are 1.0 different texts" in one.because


def test_queries_without_a_group(subject: Subject) -> None:
    values_QN = np.full_like(subject.scores.values_QN, -1)
    scores = {**subject.asked.scores, subject.asked.primary: with_values(subject.scores, values_QN)}
    assert found(replace(subject, trace=replace(subject.asked, scores=scores)))["named groups"].status == "unknown"


def test_a_query_that_is_a_row(subject: Subject) -> None:
    first, second, *others = subject.asked.queries
    row, words = subject.rows[0], "said the man who came from far away and knew it all too well my friend"
    exact = replace(first, prompt=row.prompt.upper(), response=row.response)
    rows = [*subject.rows[:-1], replace(subject.rows[-1], prompt=words, response="yes he did say so")]
    near = replace(second, prompt=words, response="yes he did say so today")
    one = found(replace(subject, rows=rows, trace=replace(subject.asked, queries=[exact, near, *others])))["queries in training"]
    assert one.status == "warn"
    assert one.value == pytest.approx(2 / len(subject.asked.queries))
    assert "1 of them word for word" in one.because
    assert first.id in one.because
