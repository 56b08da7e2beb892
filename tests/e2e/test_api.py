"""The library as a person uses it in a notebook: objects in, objects out, and nothing lost on the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import headwater
from headwater.index.read import StoredIndex
from headwater.index.tombstones import add_tombstones
from headwater.model import measures
from headwater.types import Batch, DataError, IntegrityError, Outputs, UsageError
from tests.e2e.conftest import QUERY, ROWS, World, contents, lora

PROMPT, RESPONSE = QUERY[1], QUERY[3]


@pytest.fixture(scope="module")
def session(world: World) -> headwater.Session:
    return headwater.load_session(world.model)


@pytest.fixture(scope="module")
def trace(world: World, session: headwater.Session, tmp_path_factory: pytest.TempPathFactory) -> headwater.Trace:
    run = headwater.index(session, ROWS, tmp_path_factory.mktemp("api") / "run", store__shard_rows=8)
    queries = [{"id": "red", "prompt": PROMPT, "response": RESPONSE}, {"id": "other", "prompt": "Who?", "response": "Nobody <b>is</b>."}]
    return headwater.trace(run, queries=queries, methods=["grad_cos", "grad_dot", "lexical", "loss"], session=session)


def test_a_session_and_rows_in_memory_give_what_paths_give(world: World, trace: headwater.Trace) -> None:
    """The source is another one, the numbers are not."""
    one, other = StoredIndex.open(world.run), StoredIndex.open(trace.run)
    assert one.ids == other.ids
    np.testing.assert_array_equal(one.take("gradient", range(len(ROWS))), other.take("gradient", range(len(ROWS))))
    assert set(other.column("source")) == {"list"}


def test_a_dataset_gives_the_same_rows(world: World, session: headwater.Session, tmp_path: Path) -> None:
    import datasets

    run = headwater.index(session, datasets.Dataset.from_list(ROWS), tmp_path / "run")
    assert run.index.ids == StoredIndex.open(world.run).ids


def test_options_by_dotted_name(session: headwater.Session, tmp_path: Path) -> None:
    run = headwater.index(session, ROWS[:5], tmp_path / "run", **{"sketch.rank": 4, "store.dtype": "int8"}, sketch__whole_below=0)
    assert run.record["recipe"]["sketch"] == {"rank": 4, "whole_below": 0, "seed": 0}
    assert run.index.spec.dtype == "int8"
    with pytest.raises(UsageError, match="no option colour"):
        headwater.index(session, ROWS, tmp_path / "other", colour="red")
    with pytest.raises(IntegrityError, match="--append"):
        headwater.index(session, ROWS, tmp_path / "run", sketch__rank=4, sketch__whole_below=0, store__dtype="int8")


def test_appending_adds_rows(session: headwater.Session, tmp_path: Path) -> None:
    headwater.index(session, ROWS[:5], tmp_path / "run")
    run = headwater.index(session, ROWS[5:9], tmp_path / "run", append=True)
    assert run.to_pandas()["prompt"].tolist() == [row["prompt"] for row in ROWS[:9]]


def test_the_top_of_a_trace(trace: headwater.Trace) -> None:
    assert trace.queries == ["red", "other"]
    assert trace.methods == ["grad_cos", "grad_dot", "lexical", "loss"]
    for method in trace.methods:
        table = trace.top("red", 20, method=method)
        scores = trace.scores[method].query("red")
        assert len(table) == 20
        np.testing.assert_allclose(table["score"], np.sort(scores)[::-1][:20], rtol=1e-6)
        for _, line in table.iterrows():
            assert ROWS[line["row"]]["prompt"] == line["prompt"]
            assert scores[trace.scores[method].train_ids.index(line["id"])] == pytest.approx(line["score"])
    assert trace.top(method="grad_dot")["standard_error"].notna().all()
    assert trace.top(1, 3).equals(trace.top("other", 3))
    assert trace.top("other", 1).iloc[0]["id"] != ""


def test_the_cosine_is_the_cosine_of_the_stored_gradients(trace: headwater.Trace, session: headwater.Session) -> None:
    """The whole way from text to score, done once more by hand."""
    from headwater.api import encode_query
    from headwater.index.queries import query_index

    index = StoredIndex.open(trace.run)
    query = encode_query(session.tokenizer, prompt=PROMPT, response=RESPONSE)
    h_D = query_index(session, index.layout, [query], measures.get("response_log_probability")).take("gradient", [0])[0]
    g_ND = index.take("gradient", range(len(index)))
    dot_N = -(g_ND @ h_D)
    torch.testing.assert_close(torch.from_numpy(trace.scores["grad_dot"].query("red")), dot_N / len(index), rtol=2e-3, atol=1e-4)
    cosine_N = dot_N / g_ND.norm(dim=1) / h_D.norm()
    torch.testing.assert_close(torch.from_numpy(trace.scores["grad_cos"].query("red")), cosine_N, rtol=2e-3, atol=1e-4)


def test_a_row_traced_to_itself_comes_first(run: Path, session: headwater.Session) -> None:
    row = ROWS[7]
    traced = headwater.trace(run, prompt=row["prompt"], response=row["response"], methods=["grad_cos"], session=session, n_reference=0)
    best = traced.top(k=1).iloc[0]
    assert best["row"] == 7
    assert best["score"] == pytest.approx(1.0, abs=2e-3)


def test_what_the_tokens_of_a_query_add_up_to(trace: headwater.Trace) -> None:
    """Contributions are parts of the primary method's score of the first row."""
    for q in range(2):
        parts = [token["contribution"] for token in trace.record["queries"][q]["tokens"]]
        assert sum(parts) == pytest.approx(trace.top(q, 1)["score"].iloc[0], rel=2e-2)


def test_tables(trace: headwater.Trace) -> None:
    table = trace.to_pandas()
    assert set(table["method"]) == set(trace.methods)
    assert set(table["side"]) == {"proponents", "opponents"}
    first = table[(table["query"] == "red") & (table["method"] == "grad_dot") & (table["side"] == "proponents")]
    assert first["rank"].tolist() == list(range(1, len(first) + 1))
    assert first["score"].is_monotonic_decreasing
    assert first["prompt"].notna().all()
    rows = headwater.load(trace.run).to_pandas()
    assert rows["response"].tolist() == [row["response"] for row in ROWS]
    assert not rows["bad"].any()


def test_what_a_notebook_shows(trace: headwater.Trace) -> None:
    run = headwater.load(trace.run)
    for shown in (trace._repr_html_(), run._repr_html_()):
        assert "<table" in shown
        assert "<script" not in shown
    assert "2 queries" in repr(trace)
    assert "24 rows" in repr(run)
    assert [one.folder for one in run.traces()] == [trace.folder]
    assert run.top("red", 2).equals(trace.top("red", 2))


def test_hostile_rows_stay_text_in_a_notebook(session: headwater.Session, tmp_path: Path) -> None:
    rows = [{"prompt": "<script>alert(1)</script>", "response": "<img src=x onerror=alert(1)>"}, *ROWS[:4]]
    run = headwater.index(session, rows, tmp_path / "run")
    traced = headwater.trace(run, prompt="<b>x", response="y", methods=["lexical"], session=session)
    for shown in (run._repr_html_(), traced._repr_html_()):
        assert "<script" not in shown
        assert "<img" not in shown
        assert "&lt;script&gt;" in shown


def test_reports_name_their_own_trace(trace: headwater.Trace, tmp_path: Path) -> None:
    page = trace.report(tmp_path / "page.html")
    assert "Nobody" in page.read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------- a measure of one's own


def _first_target(outputs: Outputs, batch: Batch) -> Tensor:
    """Twice the log-probability of the response's first token."""
    log_probs_BT = outputs.token_log_probs()
    first_B = batch.last_prompt_B + 1
    return 2 * log_probs_BT.gather(1, first_B[:, None]).squeeze(1)


def test_a_measure_of_ones_own(run: Path, session: headwater.Session) -> None:
    measure = measures.custom("first_token_twice", _first_target, unit="nats")
    own = headwater.trace(run, prompt=PROMPT, response=RESPONSE, methods=["grad_dot"], measure=measure, session=session)
    (query,) = own.record["queries"]
    first = next(token for token in query["tokens"] if token["target"])
    assert own.record["measure"] == {"name": "first_token_twice", "unit": "nats"}
    assert query["measure_value"] == pytest.approx(2 * first["log_prob"], rel=1e-5)

    span = [{"prompt": PROMPT, "response": RESPONSE, "span": [0, len(first["text"])]}]
    built_in = headwater.trace(run, queries=span, methods=["grad_dot"], session=session)
    np.testing.assert_allclose(
        own.scores["grad_dot"].values_QN, 2 * built_in.scores["grad_dot"].values_QN, rtol=1e-4, atol=1e-6
    )  # twice the measure, twice the score


def test_replay_leaves_out_a_measure_of_ones_own(world: World, session: headwater.Session, tmp_path: Path) -> None:
    from headwater.replay import replay

    run = headwater.index(world.model, world.data, tmp_path / "run")
    measure = measures.custom("mine", _first_target, unit=None)
    own = headwater.trace(run, prompt=PROMPT, response=RESPONSE, methods=["loss"], measure=measure, session=session)
    result = replay(run.path, tmp_path / "again")
    assert result.skipped == {own.folder.name: "the measure 'mine' is not built in"}
    assert result.identical


# ------------------------------------------------------------------------------------------------------- other ways


def test_methods_with_options(run: Path, session: headwater.Session) -> None:
    def scores(seed: int) -> np.ndarray:
        traced = headwater.trace(run, prompt=PROMPT, response=RESPONSE, methods={"random": {"seed": seed}}, session=session)
        return traced.scores["random"].values_QN

    assert (scores(1) == scores(1)).all()
    assert (scores(1) != scores(2)).any()


def test_the_same_trace_has_the_same_name_and_another_query_another(run: Path, session: headwater.Session) -> None:
    def name(**changes: object) -> str:
        asked = {"prompt": PROMPT, "response": RESPONSE, "methods": ["loss"], **changes}
        return headwater.trace(run, session=session, **asked).folder.name  # pyright: ignore[reportArgumentType]

    assert name() == name()
    assert len({name(), name(response="Other."), name(methods=["length"]), name(k=3), name(measure="loss")}) == 5


def test_an_adapter_in_a_session(world: World, tmp_path: Path) -> None:
    adapter = lora(world.model, tmp_path / "adapter", seed=3)
    run = headwater.index(headwater.load_session(world.model, adapter=adapter), world.data, tmp_path / "run")
    assert run.record["recipe"]["model"]["adapter"] == str(adapter)
    traced = headwater.trace(run, prompt=PROMPT, response=RESPONSE, methods=["grad_cos"])  # loads the session from the record
    assert traced.record["adapter"] == str(adapter)


def test_rows_removed_since_a_trace_keep_their_scores_and_lose_their_text(session: headwater.Session, tmp_path: Path) -> None:
    run = headwater.index(session, ROWS, tmp_path / "run")
    traced = headwater.trace(run, prompt=PROMPT, response=RESPONSE, methods=["loss"], session=session)
    before = traced.top(k=3)
    add_tombstones(run.path, [before["id"][0]], reason="a test")
    after = traced.top(k=3)
    assert after["id"].tolist() == before["id"].tolist()
    assert after["prompt"].isna().tolist() == [True, False, False]


def test_tracing_writes_nothing_but_its_own_folders(session: headwater.Session, tmp_path: Path) -> None:
    run = headwater.index(session, ROWS[:6], tmp_path / "run")
    before = contents(run.path)
    headwater.trace(run, prompt=PROMPT, response=RESPONSE, methods=["grad_cos", "loss"], session=session)
    after = contents(run.path)
    assert before.items() <= after.items()
    assert {name.split("/")[0] for name in after.keys() - before.keys()} == {"scores", "state"}


def test_errors(world: World, trace: headwater.Trace, session: headwater.Session, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to trace"):
        headwater.trace(world.run)
    with pytest.raises(UsageError, match="one of the two"):
        headwater.trace(world.run, prompt="a", queries=[{"prompt": "a", "response": "b"}])
    with pytest.raises(UsageError, match="methods"):
        headwater.trace(world.run, prompt="a", response="b", methods=[])
    with pytest.raises(DataError, match="no rows"):
        headwater.trace(world.run, queries=[], session=session)
    with pytest.raises(UsageError, match="there are: grad_cos"):
        trace.top(method="nope")
    for query in ("nope", 2, -1):
        with pytest.raises(UsageError, match="not in this trace"):
            trace.top(query)
    with pytest.raises(IntegrityError, match="no index in"):
        headwater.load(tmp_path)
    with pytest.raises(UsageError, match="nothing was traced"):
        headwater.index(session, ROWS[:4], tmp_path / "run").top()
