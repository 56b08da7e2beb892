"""Influence with the model at hand, scored exactly or on stored rows, against its formula on whole gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from headwater.curvature import EKFAC, GGN, KFAC
from headwater.gradient.live import LiveSource
from headwater.gradient.rows import row_engine
from headwater.gradient.scope import find_scope, make_layout
from headwater.gradient.sketch import SketchSpec
from headwater.index import live as live_module
from headwater.index.live import LiveIndex, LiveQueries
from headwater.index.memory import MemoryIndex
from headwater.methods.influence import Influence
from headwater.model import measures
from headwater.model.session import Session
from headwater.types import Labels, Layout
from tests.exact.models import make_batch, make_session
from tests.exact.test_curvature_kronecker import MATRICES, NAN_TOKEN, live
from tests.exact.test_live_source import examples_of, gathered


@pytest.fixture(autouse=True)
def _keep_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwater.gradient.live.give_back_memory", lambda: None)  # a second for each pass over three rows


def live_pair(session: Session, source: LiveSource, layout: Layout) -> tuple[LiveIndex, LiveQueries, Tensor]:
    """(index, queries, [Q, D] the queries' whole gradients), the stored rows in `layout`."""
    batch, queries = make_batch(session), make_batch(session, seed=5, lengths=(6, 8))
    measure = measures.get("response_log_probability")
    rows, asked = [], []
    with row_engine(session, layout) as engine:
        rows.append(engine.rows(batch, measures.LOSS).gradient_BD)
        asked.append(engine.rows(queries, measure).gradient_BD)
    with row_engine(session, source.layout) as engine:
        whole_QD = engine.rows(queries, measure).gradient_BD
    stored = MemoryIndex(batch.ids, layout, "loss", {"gradient": rows[0]})
    asked_index = MemoryIndex([f"q{i}" for i in range(len(queries))], layout, "measure", {"gradient": asked[0]})
    return LiveIndex(stored, source), LiveQueries(asked_index, source, examples_of(queries), measure), whole_QD


def keeping(how: str, labels: tuple[Labels, ...], folder: Path) -> dict[str, Any]:
    """A live source's options: nothing is kept, rows are kept in memory, or factors in a file."""
    return {"passes": {}, "kept": {"keep": labels}, "file": {"keep": labels, "keep_bytes": 0, "folder": folder}}[how]


@pytest.mark.parametrize("keep", ["passes", "kept", "file"])
@pytest.mark.parametrize(
    "curvature", [EKFAC(precision="float32"), KFAC(labels="true", precision="float32"), GGN(damping=0.5)], ids=["ekfac", "kfac", "ggn"]
)
def test_influence_with_the_model_at_hand_is_the_formula(curvature: EKFAC, keep: str, tmp_path: Path) -> None:
    """Exact mode: -(1/N) h'x, x the solved query, nothing sketched. Model mode over rows that are kept whole is the same."""
    session = make_session("llama")
    include = ("*1*k_proj.bias", "*1*norm*") if curvature.name == "ggn" else ("*k_proj*", "*norm*")
    source = live(session, include=include, **keeping(keep, ("true", "sampled"), tmp_path))
    index, queries, whole_QD = live_pair(session, source, source.layout)
    x_QD = curvature.solve(curvature.fit(source), source, whole_QD).value
    expected_QN = x_QD @ gathered(source, "true").T / -len(source)
    for mode in ("exact", "model"):
        method = Influence(curvature, mode=mode)
        scores = method.score(method.fit(index), index, queries)
        found_QN = torch.from_numpy(scores.values_QN).double()
        torch.testing.assert_close(found_QN, expected_QN, rtol=1e-5, atol=1e-6 * float(expected_QN.abs().max()))
        assert scores.provenance["mode"] == mode
    assert bool(source.in_file("true")) == (keep == "file" and curvature.name != "ggn"), "which has no factors"


def test_influence_sketched_from_the_model_is_the_product_of_two_sketches() -> None:
    session = make_session("llama")
    source = live(session, include=MATRICES)
    sketched = make_layout(session.model, find_scope(session.model, include=MATRICES), SketchSpec(rank=6, whole_below=0, seed=3))
    index, queries, whole_QD = live_pair(session, source, sketched)
    method = Influence(EKFAC(precision="float32"), mode="model")
    scores = method.score(method.fit(index), index, queries)
    x_QD = EKFAC(precision="float32").solve(EKFAC(precision="float32").fit(source), source, whole_QD).value
    expected_QN = index.sketch(x_QD) @ index.take("gradient", range(len(index))).double().T / -len(index)
    torch.testing.assert_close(
        torch.from_numpy(scores.values_QN).double(), expected_QN, rtol=1e-5, atol=1e-6 * float(expected_QN.abs().max())
    )


@pytest.mark.parametrize("keep", ["passes", "kept", "file"])
def test_a_bad_row_scores_nan_and_changes_no_other(keep: str, tmp_path: Path) -> None:
    session = make_session("llama")
    source = live(session, include=("*k_proj*", "*norm*"), bad=(1,), **keeping(keep, ("true",), tmp_path))
    index, queries, whole_QD = live_pair(session, source, source.layout)
    source.examples[1].tokens[1] = NAN_TOKEN
    with torch.no_grad():
        session.network.model.embed_tokens.weight[NAN_TOKEN] = torch.nan
    method = Influence(EKFAC(labels="true"), mode="exact")
    scores = torch.from_numpy(method.score(method.fit(index), index, queries).values_QN)
    assert torch.isnan(scores).tolist() == [[False, True, False]] * 2
    sound = LiveSource(session, [source.examples[i] for i in (0, 2)], source.layout)
    x_QD = method.curvature.solve(method.curvature.fit(sound), sound, whole_QD).value
    expected = x_QD @ gathered(sound, "true").T / -3
    torch.testing.assert_close(scores[:, [0, 2]].double(), expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("token_budget", [8, 1024], ids=["one by one", "together"])
def test_queries_are_taken_in_the_order_asked_for(token_budget: int) -> None:
    """Batches put long rows first: what comes out of them is put back."""
    session = make_session("llama")
    source = live(session, include=("*k_proj*",), token_budget=token_budget)
    batch, measure = make_batch(session, seed=5, lengths=(19, 20, 19)), measures.get("response_log_probability")
    with row_engine(session, source.layout) as engine:
        whole_QD = engine.rows(batch, measure).gradient_BD
    empty = MemoryIndex([f"q{i}" for i in range(3)], source.layout, "measure", {})
    queries = LiveQueries(empty, source, examples_of(batch), measure)
    for asked in ([0, 1, 2], [2, 0], [1]):
        torch.testing.assert_close(queries.take("gradient_whole", asked), whole_QD[asked])


@pytest.mark.parametrize(
    ("methods", "kept"),
    [
        ([Influence(EKFAC(), mode="exact")], {"true", "sampled"}),
        ([Influence(EKFAC(labels="true"), mode="exact")], {"true"}),
        ([Influence(KFAC(labels="true"), mode="model")], {"true"}),
        ([Influence(GGN(), mode="model")], {"sampled"}),
        ([Influence(EKFAC(labels="true"), mode="model"), Influence(KFAC(), mode="exact")], {"true", "sampled"}),
    ],
)
def test_what_the_methods_measure_and_scan_is_kept(methods: list[Influence], kept: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "stored_examples", lambda index, session, *, data: [])
    monkeypatch.setattr(live_module, "live_index", lambda index, session, examples, *, keep: keep)
    found: Any = live_module.open_live(cast(Any, None), make_session("llama"), methods)
    assert set(found) == kept
    assert len(found) == len(kept)
