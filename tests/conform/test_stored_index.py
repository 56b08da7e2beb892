"""The same scores from the index on disk as from the same numbers in memory: shards, dtypes, a bad row, a removed row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from headwater.index.read import StoredIndex
from headwater.index.spec import IndexSpec
from headwater.index.tombstones import add_tombstones
from headwater.index.write import ShardData, Writer
from headwater.methods import get, names
from headwater.methods.shared import member_roles
from headwater.progress import quiet
from headwater.rank.answer import rank
from headwater.rank.hubs import reference_scores
from headwater.testing import LAYOUT, Toy, toy_queries, toy_rows
from tests.conform.encoder import save_tiny_encoder

BAD, REMOVED = 5, 11


def store(run: Path, toy: Toy, dtype: str) -> StoredIndex:
    """The toy in three shards, one row without its tombstone."""
    spec = IndexSpec(LAYOUT, dtype=dtype, hidden_size=7, shard_rows=9, extra={"rept": {"width": 14}})  # type: ignore[arg-type]
    writer = Writer.open(run, spec)
    for rows in writer.begin("toy", len(toy)).missing():
        part = toy.rows(rows)
        columns = {"id": part.ids, **{name: column.tolist() for name, column in part.columns.items()}}
        columns["label"] = [None] * len(rows)
        norms_NK = torch.ones(len(rows), len(LAYOUT.blocks))
        writer.write(
            rows,
            ShardData(
                part.features["gradient"],
                norms_NK,
                columns,
                part.features["representation"],
                part.features["representation_response"],
                {"rept": part.features["rept"]},
            ),
        )
    add_tombstones(run, [toy.ids[REMOVED]], reason="test")
    return StoredIndex.open(run)


@pytest.fixture(scope="module", params=["float32", "bfloat16", "int8"])
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StoredIndex:
    return store(tmp_path_factory.mktemp(request.param), toy_rows(25, seed=1).filled(BAD, torch.nan), request.param)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.mark.parametrize("name", [name for name in names() if name == "embedding" or not member_roles(get(name))])
def test_disk_and_memory_agree(name: str, stored: StoredIndex, encoder: str) -> None:
    method = get(name, **({"model": encoder} if name == "embedding" else {}))
    queries, in_memory = toy_queries(4, seed=2).index(), stored.subset(range(len(stored)))
    with quiet():
        found = method.score(method.fit(stored), stored, queries)
        expected = method.score(method.fit(in_memory), in_memory, queries)
    assert found.train_ids == stored.ids
    assert len(found.train_ids) == 24
    assert np.isnan(found.values_QN[:, BAD]).all() == bool(method.requires)
    torch.testing.assert_close(found.values_QN, expected.values_QN, rtol=1e-2, atol=1e-2, equal_nan=True)


def test_an_answer_from_disk(stored: StoredIndex) -> None:
    """The bad row is no reference and in no list; every listed row has its error, z, p and q."""
    method, queries = get("grad_cos"), toy_queries(2, seed=2).index()
    state = method.fit(stored)
    reference = reference_scores(method, state, stored, n_reference=20)
    answer = rank(method.score(state, stored, queries), reference, stored, queries, k=30)
    for lists in answer.values():
        rows = [row for name in ("proponents", "opponents") for row in lists[name]]
        assert {row["id"] for row in rows} == set(stored.ids) - {stored.ids[BAD]}
        assert all(row[name] is not None for row in rows for name in ("standard_error", "z", "p", "q", "hub_rank"))
    json.dumps(answer, allow_nan=False)
