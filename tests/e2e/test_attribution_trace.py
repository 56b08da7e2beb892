"""Every method over members in one trace of a real training's output folder; the RepT feature on disk; groups and tokens of its scores."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import headwater
from headwater.api import Trace
from headwater.training.callback import HeadwaterCallback
from headwater.types import IntegrityError, UsageError
from tests.e2e.conftest import QUERY, ROWS, Answer, write_rows
from tests.trainer import make_trainer, train

METHODS: dict[str, dict[str, Any]] = {
    "grad_cos": {}, "grad_dot": {}, "relatif": {}, "self_influence": {}, "tracin": {"batch_size": 6}, "less": {}, "trak": {},
    "trackstar": {"task_share": 0.2}, "dda": {}, "rept": {},
}  # fmt: skip
INDEX: dict[str, Any] = {"store__dtype": "float32", "sketch__whole_below": 200, "sketch__rank": 4, "store__rept_layer": -1}


@dataclass(frozen=True)
class World:
    """A finished training, an index with every kind of member, and a trace by every method. Nobody writes into it."""

    root: Path
    run: Path
    trace: Trace


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("attribution")
    train(make_trainer(root / "out", callback=HeadwaterCallback(initial_weights=True)))
    data, roles = write_rows(root / "train.jsonl", ROWS), ["checkpoint", "base", "adam", "second_moment", "seed"]
    index = headwater.index(data=data, out=root / "run", from_run=root / "out", members__roles=roles, members__sketch_seeds=[7], **INDEX)
    return World(root, index.path, headwater.trace(index, prompt=QUERY[1], response=QUERY[3], methods=METHODS, n_reference=8))


@pytest.fixture
def run(world: World, tmp_path: Path) -> Path:
    return shutil.copytree(world.run, tmp_path / "run")


# ----------------------------------------------------------------------------------------------- methods over members


def test_every_method_answers(world: World) -> None:
    assert world.trace.methods == list(METHODS)
    for name, scores in world.trace.scores.items():
        assert np.isfinite(scores.values_QN).all(), name
        assert np.ptp(scores.values_QN) > 0, name


def test_scores_are_the_formulas_of_the_members_rows(world: World) -> None:
    """From what is stored and the queries computed anew on each model: nothing of the trace but its numbers is used."""
    from headwater.corpus import read_queries
    from headwater.index.build import encoding, open_session
    from headwater.index.queries import query_index
    from headwater.model import measures
    from headwater.recipe import IndexRecipe, ModelOptions

    index = headwater.load(world.run).index
    recipe = IndexRecipe.parse(headwater.load(world.run).record["recipe"])
    main = open_session(recipe.model)
    query = read_queries([{"prompt": QUERY[1], "response": QUERY[3]}], main.tokenizer, **encoding(recipe.data, main))

    def asked(folder: Path, layout: Any) -> np.ndarray:
        session = open_session(ModelOptions(path=str(folder)), tokenizer=main.tokenizer)
        return query_index(session, layout, query, measures.get("response_log_probability")).take("gradient", [0]).numpy()

    def rows(one: Any) -> np.ndarray:
        return one.take("gradient", range(len(one))).numpy()

    def cosine(h: np.ndarray, g: np.ndarray) -> np.ndarray:
        return (h @ g.T / np.linalg.norm(h) / np.linalg.norm(g, axis=1))[0]

    checkpoints = [(m, asked(world.root / "out" / m.name, m.index.layout)) for m in index.members("checkpoint")]
    tracin = -sum(m.learning_rate * (h @ rows(m.index).T)[0] for m, h in checkpoints) / 6  # type: ignore[operator]
    np.testing.assert_allclose(world.trace.scores["tracin"].values_QN[0], tracin, rtol=1e-3, atol=1e-3 * abs(tracin).max())
    plain = {m.step: h for m, h in checkpoints}
    less = -sum(m.learning_rate * cosine(plain[m.step], rows(m.index)) for m in index.members("adam"))  # type: ignore[operator]
    np.testing.assert_allclose(world.trace.scores["less"].values_QN[0], less, rtol=1e-3, atol=1e-3 * abs(less).max())
    base = index.members("base")[0].index
    dda = cosine(asked(world.root / "out" / "headwater-initial", base.layout), rows(base))
    dda = dda - np.mean([cosine(h, rows(m.index)) for m, h in checkpoints], axis=0)
    np.testing.assert_allclose(world.trace.scores["dda"].values_QN[0], dda, rtol=1e-3, atol=1e-3 * abs(dda).max())


def test_units_say_what_predicts_a_change(world: World) -> None:
    units = {method["name"]: method["unit"] for method in world.trace.record["methods"]}
    assert {name for name, unit in units.items() if unit == "nats"} == {"grad_dot", "self_influence", "tracin"}


def test_reference_queries_reach_the_members(world: World) -> None:
    """z and q of methods over members; for LESS the reference's side is the plain gradient that its checkpoint has."""
    ranked = world.trace.record["queries"][0]["ranked"]
    for name in METHODS:
        assert all(row["q"] is not None for row in ranked[name]["proponents"]), name


def test_less_without_plain_gradients_at_its_steps_has_no_reference(world: World, run: Path) -> None:
    for member in (run / "members").glob("checkpoint-*"):
        shutil.rmtree(member)
    traced = headwater.trace(run, prompt=QUERY[1], response=QUERY[3], methods=["less"], n_reference=8)
    assert all(row["z"] is None for row in traced.record["queries"][0]["ranked"]["less"]["proponents"])
    np.testing.assert_array_equal(traced.scores["less"].values_QN, world.trace.scores["less"].values_QN)


def test_the_rept_feature_is_stored_and_named(world: World) -> None:
    index = headwater.load(world.run).index
    assert index.spec.extra == {"rept": {"width": 32, "layer": -1}}
    first = index.take("rept", range(len(index)))
    np.testing.assert_allclose(first[:, :16], index.take("representation", range(len(index))), rtol=1e-5)
    assert not any(member.index.spec.extra for member in index.members("base"))  # type: ignore[attr-defined]


def test_rept_without_its_feature_says_what_is_missing(world: World, tmp_path: Path) -> None:
    run = headwater.index(world.root / "out", world.root / "train.jsonl", tmp_path / "plain")
    with pytest.raises(UsageError, match="rept needs rept, missing in the index"):
        headwater.trace(run, prompt=QUERY[1], response=QUERY[3], methods=["rept"])


def test_states_are_kept_and_used_again(world: World, run: Path) -> None:
    kept = {path.name for path in (run / "state").iterdir()}
    assert {name.rpartition("-")[0] for name in kept} >= {"relatif", "self_influence", "less", "trak", "trackstar", "dda", "rept"}
    headwater.trace(run, prompt=QUERY[1], response=QUERY[3], methods=METHODS, n_reference=8)
    assert {path.name for path in (run / "state").iterdir()} == kept


def test_a_rows_own_influence_in_the_models_own_parameters(world: World, run: Path, tmp_path: Path) -> None:
    """With the identity, of whole gradients: an index that keeps them whole has their lengths and products."""
    identity = {"curvature": "identity", "mode": "exact"}
    found = headwater.trace(run, prompt=QUERY[1], response=QUERY[3], methods={"relatif": identity, "self_influence": identity}).scores
    options: dict[str, Any] = {"store__dtype": "float32", "sketch__rank": None}
    whole = headwater.index(world.root / "out", world.root / "train.jsonl", tmp_path / "whole", **options)
    products = headwater.trace(whole, prompt=QUERY[1], response=QUERY[3], methods=["grad_dot"]).scores["grad_dot"].values_QN
    lengths_N = whole.index.norms("gradient").numpy()
    np.testing.assert_allclose(found["self_influence"].values_QN[0], lengths_N**2 / len(ROWS), rtol=1e-4)
    relative = products[0] / lengths_N
    np.testing.assert_allclose(found["relatif"].values_QN[0], relative, rtol=0.02, atol=0.01 * abs(relative).max())


# ------------------------------------------------------------------------------------------------------------ groups


def test_export_by_source(world: World, run: Path, cli: Callable[..., Answer]) -> None:
    answer = cli("export", run, "--by", "source", "--json")
    assert (answer.code, answer.json["lines"]) == (0, 2)
    table = pd.read_csv(answer.json["path"]).set_index("method")
    assert set(table.index) == {"grad_dot", "tracin"}
    for name in table.index:
        assert float(table.loc[name, "score"]) == pytest.approx(float(world.trace.scores[name].values_QN.sum()), rel=1e-4)
    refused = cli("export", run, "--by", "source", "--method", "grad_cos")
    assert refused.code == 2
    assert "grad_cos only ranks" in refused.err


def test_a_trace_sums_over_groups(world: World) -> None:
    table = world.trace.by_group("near_duplicates", method="grad_dot")
    assert table["n_rows"].sum() == len(ROWS)
    assert float(table["score"].sum()) == pytest.approx(float(world.trace.scores["grad_dot"].values_QN.sum()), rel=1e-4)


# ------------------------------------------------------------------------------------------------------------ tokens


@pytest.mark.parametrize("method", ["grad_cos", "fisher"])
def test_scores_are_taken_apart_token_by_token(method: str, run: Path) -> None:
    traced = headwater.trace(run, prompt=QUERY[1], response=QUERY[3], methods=[method], n_reference=8, tokens=2)
    query = traced.record["queries"][0]
    first = query["ranked"][method]["proponents"][:2]
    assert [one["id"] for one in query["token_scores"]] == [row["id"] for row in first]
    for one, row in zip(query["token_scores"], first, strict=True):
        matrix = np.array(one["values"])
        assert matrix.shape == (len(query["tokens"]), len(one["row_tokens"]))
        assert matrix.sum() == pytest.approx(row["score"], rel=1e-4)
        text = f"{traced.record['rows'][row['id']]['prompt']}"
        assert text in "".join(one["row_tokens"])
    shown = [token["contribution"] for token in query["tokens"]]
    np.testing.assert_allclose(shown, np.array(query["token_scores"][0]["values"]).sum(1), rtol=1e-3, atol=1e-6)
    plain = headwater.trace(run, prompt=QUERY[1], response=QUERY[3], methods=[method], n_reference=8)
    assert plain.folder == traced.folder, "what is shown of an answer is no part of what it is"
    assert plain.record["queries"][0]["token_scores"] == []


def test_a_trace_takes_any_row_apart(world: World) -> None:
    """With the row's and the query's own texts, and the score that the trace has."""
    scores = world.trace.scores["grad_dot"]
    last = scores.train_ids[int(np.argmin(scores.values_QN[0]))]
    found = world.trace.tokens(0, last, method="grad_dot")
    assert found.total == pytest.approx(float(scores.values_QN[0].min()), rel=1e-4)
    assert found.unit == "nats"
    assert QUERY[1] in "".join(found.query_tokens)
    assert found.to_pandas().shape == (len(found.query_tokens), len(found.row_tokens))
    best = world.trace.tokens()
    assert (best.method, best.row_id) == ("grad_cos", world.trace.scores["grad_cos"].top(0, 1)[0][0])
    with pytest.raises(UsageError, match="trak has no scores of tokens"):
        world.trace.tokens(method="trak")


@pytest.mark.parametrize("mode", ["model", "exact"])
def test_tokens_of_an_influence_in_the_models_own_parameters(mode: str, run: Path) -> None:
    options = {"mode": mode, "damping": 0.5}
    traced = headwater.trace(run, prompt=QUERY[1], response=QUERY[3], methods={"ekfac": options}, tokens=1)
    one, row = traced.record["queries"][0]["token_scores"][0], traced.record["queries"][0]["ranked"]["ekfac"]["proponents"][0]
    assert np.array(one["values"]).sum() == pytest.approx(row["score"], rel=0.02)  # whole gradients are scanned in bfloat16
    assert traced.tokens(0, row["id"]).total == pytest.approx(row["score"], rel=0.02)


def test_tokens_on_the_command_line(run: Path, cli: Callable[..., Answer]) -> None:
    asked = ("--prompt", QUERY[1], "--response", QUERY[3], "--reference", 0)
    answer = cli("trace", run, *asked, "--method", "grad_dot", "--tokens", 1, "--json")
    assert answer.code == 0, answer.err
    record = json.loads((Path(answer.json["trace"]) / "trace.json").read_text())
    assert len(record["queries"][0]["token_scores"]) == 1
    assert "Its score by token" in Path(answer.json["report"]).read_text()
    refused = cli("trace", run, *asked, "--method", "lexical", "--tokens", 1)
    assert refused.code == 2
    assert "lexical has no scores of tokens" in refused.err


def test_tokens_of_data_in_memory_need_the_data_again(world: World, tmp_path: Path) -> None:
    run = headwater.index(world.root / "out", ROWS, tmp_path / "run")
    asked: dict[str, Any] = {"prompt": QUERY[1], "response": QUERY[3], "methods": ["grad_dot"]}
    with pytest.raises(UsageError, match=r"were given in memory.*give the same data again \(data=\.\.\.\)"):
        headwater.trace(run, **asked, tokens=1)
    traced = headwater.trace(run, **asked, tokens=1, data=ROWS)
    assert traced.tokens(data=ROWS).total == pytest.approx(traced.top()["score"][0], rel=0.01)  # stored in bfloat16
    with pytest.raises(IntegrityError, match=r"1 of 1 rows .* are not in its data any more"):
        traced.tokens(data=[row for row in ROWS if row["prompt"] != traced.top()["prompt"][0]])


def test_appended_and_removed_rows_are_found_again(world: World, tmp_path: Path) -> None:
    from headwater.index.examples import stored_examples
    from headwater.index.tombstones import add_tombstones
    from headwater.model.session import load_session

    model = world.root / "out"
    more = write_rows(tmp_path / "more.jsonl", [ROWS[0], {"prompt": "Another?", "response": "Another one."}])
    run = headwater.index(model, world.root / "train.jsonl", tmp_path / "run")
    run = headwater.index(model, more, tmp_path / "run", append=True)
    add_tombstones(run.path, [run.index.ids[3]], reason="a test")
    index = headwater.load(run.path).index
    examples = stored_examples(index, load_session(model))
    assert [one.id for one in examples] == list(index.ids)
    assert examples[-2].id.endswith("~2")
    assert [one.prompt for one in examples] == index.column("prompt").tolist()


def test_replay_repeats_the_rept_feature(world: World, cli: Callable[..., Answer], tmp_path: Path) -> None:
    run = headwater.index(world.root / "out", world.root / "train.jsonl", tmp_path / "run", store__rept_layer=1, data__limit=8)
    headwater.trace(run, prompt=QUERY[1], response=QUERY[3], methods=["rept"], n_reference=0)
    answer = cli("replay", run.path, "-o", tmp_path / "again", "--json")
    assert answer.json["identical"], answer.json
    assert headwater.load(tmp_path / "again").index.spec.extra == {"rept": {"width": 32, "layer": 1}}
