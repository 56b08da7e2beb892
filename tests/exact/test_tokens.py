"""Scores of tokens: they add up to the pair's score, exactly, and each is what its positions did."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from headwater.gradient.rows import row_engine
from headwater.gradient.scope import find_scope, make_layout
from headwater.gradient.sketch import SketchSpec
from headwater.index.memory import MemoryIndex
from headwater.methods import GradCos, GradDot, RelatIF, get
from headwater.model import measures
from headwater.model.session import Session
from headwater.rank.tokens import TokenScores, positions, token_scores
from headwater.types import Example, Layout, Measure, UsageError
from tests.exact.models import VOCABULARY, make_session

MEASURE = measures.get("response_log_probability")
METHODS = {
    "grad_dot": GradDot(), "grad_cos": GradCos(), "fisher": get("fisher", damping=0.01), "fisher joint": get("fisher", joint=True),
    "datainf": get("datainf"), "cg": get("cg", damping=1.0),
}  # fmt: skip


def example(seed: int, length: int, *, prompt: int = 3) -> Example:
    rng = np.random.default_rng(seed)
    mask = np.arange(length) >= prompt
    return Example(f"row-{seed}", rng.integers(2, VOCABULARY, size=length), mask)


@pytest.fixture(scope="module")
def session() -> Session:
    session = make_session("llama")
    session.tokenizer = SimpleNamespace(decode=lambda tokens: f"<{tokens[0]}>")
    return session


@pytest.fixture(scope="module")
def layout(session: Session) -> Layout:
    return make_layout(session.model, find_scope(session.model), SketchSpec(rank=3, whole_below=40, seed=1))


@pytest.fixture(scope="module")
def rows() -> list[Example]:
    return [example(seed, 6 + seed % 4) for seed in range(8)]


def gradient(session: Session, layout: Layout, one: Example, measure: Measure) -> Tensor:
    from headwater.corpus import collate

    with row_engine(session, layout) as engine:
        return engine.rows(collate([one], pad_id=0), measure).gradient_BD[0]


@pytest.fixture(scope="module")
def index(session: Session, layout: Layout, rows: list[Example]) -> MemoryIndex:
    features = torch.stack([gradient(session, layout, row, measures.LOSS) for row in rows])
    columns = {"bad": np.zeros(len(rows), dtype=bool)}
    return MemoryIndex([row.id for row in rows], layout, "loss", {"gradient": features}, columns)


def queries(session: Session, layout: Layout, query: Example, measure: Measure = MEASURE) -> MemoryIndex:
    return MemoryIndex([query.id], layout, "measure", {"gradient": gradient(session, layout, query, measure)[None]})


@pytest.mark.parametrize("name", METHODS)
def test_tokens_add_up_to_the_score(name: str, session: Session, layout: Layout, index: MemoryIndex, rows: list[Example]) -> None:
    method: Any = METHODS[name]
    query, state = example(99, 9), method.fit(index)
    scores = method.score(state, index, queries(session, layout, query))
    for row in rows[:3]:
        found = token_scores(method, state, index, session=session, query=query, row=row, measure=MEASURE)
        assert found.values_TS.shape == (9, row.n_tokens)
        assert found.total == pytest.approx(float(scores.query(0)[index.ids.index(row.id)]), rel=1e-5, abs=1e-9)
        np.testing.assert_allclose(found.by_query_token.sum(), found.total, rtol=1e-9)
        np.testing.assert_allclose(found.by_row_token.sum(), found.total, rtol=1e-9)
        assert (found.method, found.unit) == (method.name, method.unit)


@pytest.mark.parametrize("name", ["grad_dot", "fisher"])
def test_they_do_so_exactly_in_float64(name: str, session: Session, layout: Layout, index: MemoryIndex, rows: list[Example]) -> None:
    """The same product on sums, with nothing rounded on the way."""
    method: Any = METHODS[name]
    query, row, state = example(99, 9), rows[2], method.fit(index)
    h_D, g_D = gradient(session, layout, query, MEASURE), gradient(session, layout, row, measures.LOSS)
    assert h_D.dtype == torch.float64
    solved_D = method.curvature.solve(state, index, h_D[None]).value[0] if name == "fisher" else h_D
    found = token_scores(method, state, index, session=session, query=query, row=row, measure=MEASURE)
    assert found.total == pytest.approx(float(-(solved_D @ g_D) / len(index)), rel=1e-10)


def test_a_position_is_what_the_parameters_did_where_it_was_read(session: Session, rows: list[Example]) -> None:
    """The output head used at one position alone, by autograd: the others get a copy of it that asks for no gradient."""
    head = session.network.get_output_embeddings().weight
    layout = make_layout(session.model, find_scope(session.model, include=("lm_head*",)), SketchSpec(rank=None))
    row = rows[3]
    tokens_1T = torch.from_numpy(row.tokens)[None]
    hidden_TH = session.network.model(input_ids=tokens_1T).last_hidden_state[0].detach()
    found_SD = positions(session, layout, row, measures.LOSS)
    for t in range(row.n_tokens):
        own = head.detach().clone().requires_grad_()
        logits_TV = torch.stack([hidden_TH[s] @ (own if s == t else head.detach()).T for s in range(row.n_tokens)])
        log_probs = logits_TV[:-1].log_softmax(-1).gather(1, tokens_1T[0, 1:, None])[:, 0]
        loss = -log_probs[torch.from_numpy(row.loss_mask[1:])].sum()
        expected = torch.autograd.grad(loss, own, allow_unused=True)[0] if t + 1 < row.n_tokens else torch.zeros_like(own)
        torch.testing.assert_close(found_SD[t], expected.reshape(-1))  # type: ignore[union-attr]
        predicts_a_target = t + 1 < row.n_tokens and row.loss_mask[t + 1]
        assert bool(found_SD[t].any()) == bool(predicts_a_target), "the token that is marked stands before the one that is predicted"


def test_a_cosine_is_taken_apart_by_the_lengths_of_the_whole(session: Session, layout: Layout, index: MemoryIndex) -> None:
    """A query that is the row: the matrix sums to 1."""
    row = example(4, 7)
    found = token_scores(GradCos(), {}, index, session=session, query=row, row=row, measure=MEASURE)
    assert found.total == pytest.approx(1.0, rel=1e-9)


def test_a_contrast_stands_in_the_positions_of_the_longer_response(session: Session, layout: Layout, index: MemoryIndex) -> None:
    query = replace(example(99, 6), alternative=example(50, 9))
    row, measure = example(2, 8), measures.get("contrast")
    found = token_scores(GradDot(), {}, index, session=session, query=query, row=row, measure=measure)
    h_D, g_D = gradient(session, layout, query, measure), gradient(session, layout, row, measures.LOSS)
    assert found.values_TS.shape == (9, 8)
    assert found.total == pytest.approx(float(-(h_D @ g_D) / len(index)), rel=1e-9)
    assert query.alternative is not None
    assert found.query_tokens[0] == f"<{query.tokens[0]}>|<{query.alternative.tokens[0]}>"
    assert found.query_tokens[8] == f"|<{query.alternative.tokens[8]}>"


def test_a_method_that_is_no_product_is_refused(session: Session, index: MemoryIndex) -> None:
    for method in (get("repsim"), RelatIF(), get("trak")):
        with pytest.raises(UsageError, match=f"{method.name} has no scores of tokens.*Take grad_dot, grad_cos or an influence"):
            token_scores(method, {}, index, session=session, query=example(1, 6), row=example(2, 6), measure=MEASURE)


def test_a_matrix_shows_itself(tmp_path: Any) -> None:
    found = TokenScores(np.array([[1.0, -2.0], [0.5, np.nan]]), ("a", "\n"), ("<b>", "$c$"), "q", "r", "grad_dot", "nats")
    table = found.to_pandas()
    assert table.loc[(0, "a"), (1, "$c$")] == -2.0
    assert found.to_json() == {"id": "r", "row_tokens": ["<b>", "$c$"], "values": [[1.0, -2.0], [0.5, None]]}
    assert "&lt;b&gt;" in found._repr_html_()
    figure = replace(found, values_TS=np.array([[1.0, -2.0], [0.5, 0.0]])).plot(tmp_path / "tokens.png")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "\\n"]
    assert (tmp_path / "tokens.png").stat().st_size > 1000
