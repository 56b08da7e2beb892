"""Identity: a healthy index is its rows'; shuffled ids and another checkpoint are told apart."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headwater.audit.duplicates import Duplicates
from headwater.audit.identity import Identity
from headwater.audit.numerics import Numerics
from headwater.audit.run import run_checks
from headwater.audit.subject import Subject
from headwater.index import build
from headwater.index.read import StoredIndex
from headwater.types import Finding
from tests.audit_world import AuditWorld, make_world


def found(subject: Subject, **options: Any) -> Finding:
    (finding,) = Identity(**options)(subject).findings
    return finding


def with_weights(subject: Subject, *, noise: float) -> Subject:
    model, generator = copy.deepcopy(subject.session.model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * parameter.std(correction=0) * torch.randn(parameter.shape, generator=generator))
    return replace(subject, session=replace(subject.session, model=model))


def columns_of_others(index: StoredIndex, order: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """The id of row n stands over the numbers of row order[n]."""
    column, take, norms, products = index.column, index.take, index.norms, index.products
    moved = {"loss", "bad"}
    monkeypatch.setattr(index, "column", lambda name: column(name)[order] if name in moved else column(name))
    monkeypatch.setattr(index, "take", lambda feature, at: take(feature, order[np.asarray(at)]))
    monkeypatch.setattr(index, "norms", lambda feature: norms(feature)[torch.from_numpy(order)])

    def moved_products(feature: str, queries_QD: torch.Tensor, *, scale_N: torch.Tensor) -> torch.Tensor:
        return products(feature, queries_QD)[:, torch.from_numpy(order)] * scale_N

    monkeypatch.setattr(index, "products", moved_products)


def test_a_healthy_world(subject: Subject) -> None:
    one = found(subject)
    assert (one.status, one.value, one.n) == ("ok", 1.0, 32)
    assert one.interval is not None
    assert one.interval[0] > 0.85


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_other_stores_are_healthy_too(tmp_path: Path, dtype: str) -> None:
    assert found(make_world(tmp_path, store__dtype=dtype).subject()).status == "ok"


def test_shuffled_ids(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    order = np.random.default_rng(0).permutation(len(subject.rows))
    columns_of_others(subject.stored, order, monkeypatch)
    one = found(subject)
    assert one.status == "fail"
    assert one.because.startswith("Shuffled ids")
    assert "index again" in str(one.next_step)
    statuses = {finding.name: finding.status for check in (Numerics(), Duplicates()) for finding in check(subject).findings}
    assert "fail" not in statuses.values(), statuses


def test_ids_that_were_shuffled_while_indexing(audit_world: AuditWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """End to end: the writer puts the ids in another order than the rows."""
    columns = build.example_columns

    def rotated(examples: list[Any]) -> dict[str, list[Any]]:
        made = columns(examples)
        return {**made, "id": [*made["id"][3:], *made["id"][:3]]}

    monkeypatch.setattr(build, "example_columns", rotated)
    assert found(make_world(tmp_path).subject()).because.startswith("Shuffled ids")


def test_rows_in_another_order_than_the_index(subject: Subject) -> None:
    one = found(replace(subject, rows=list(reversed(subject.rows))))
    assert one.status == "fail"
    assert "another order" in one.because


def test_rows_of_other_data(subject: Subject) -> None:
    one = found(replace(subject, rows=[replace(row, id=f"x{n}") for n, row in enumerate(subject.rows)]))
    assert one.status == "fail"
    assert "ids that the index does not have" in one.because


def test_another_checkpoint(subject: Subject) -> None:
    other = with_weights(subject, noise=0.5)
    one = found(other)
    assert one.status == "fail"
    assert one.because.startswith("Another checkpoint")
    statuses = {finding.name: finding.status for finding in Numerics()(other).findings}
    assert "fail" not in statuses.values(), statuses


def test_the_model_before_training(subject: Subject) -> None:
    assert found(replace(subject, session=subject.base_session)).because.startswith("Another checkpoint")


def test_nearly_the_same_weights_are_a_warning(subject: Subject) -> None:
    one = found(with_weights(subject, noise=1e-5))
    assert one.status == "warn"
    assert "fingerprint" in one.because


def test_damaged_gradients_are_left_to_numerics(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    take = subject.stored.take
    monkeypatch.setattr(subject.stored, "take", lambda feature, at: torch.randn(take(feature, at).shape))
    monkeypatch.setattr(subject.stored, "products", lambda feature, queries, **options: torch.zeros(len(queries), len(subject.rows)))
    one = found(subject)
    assert one.status == "unknown"
    assert "damaged" in one.because


def test_weights_that_are_not_numbers(subject: Subject) -> None:
    model = copy.deepcopy(subject.session.model)
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    assert found(replace(subject, session=replace(subject.session, model=model))).status == "unknown"


def test_without_an_index(subject: Subject) -> None:
    audit = run_checks(replace(subject, index=None, trace=None), [Identity()])
    assert [finding.status for finding in audit.findings] == ["unknown"]
