"""What each method computes, against the plain formula or the library it stands on."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from tests.conform.encoder import save_tiny_encoder
from transformers import AutoModel, AutoTokenizer

from headwater.curvature.identity import Identity
from headwater.evaluate.classes import ClassLabels, accuracy, cover, places
from headwater.evaluate.ranking import Ranking
from headwater.methods import Embedding, GradCos, GradDot, Length, Lexical, Loss, Random, RepSim, RepSimResponse, TfIdf
from headwater.methods.lexical import TOKEN, tokenize
from headwater.methods.random import draw
from headwater.progress import quiet
from headwater.testing import LAYOUT, Toy, toy_queries, toy_rows
from headwater.types import LayoutMismatch, UsageError


@pytest.fixture
def index() -> Toy:
    return toy_rows(20, seed=1)


@pytest.fixture
def queries() -> Toy:
    return toy_queries(4, seed=2)


def score(method: Any, train: Toy, asked: Toy) -> torch.Tensor:
    index = train.index()
    return torch.from_numpy(method.score(method.fit(index), index, asked.index()).values_QN)


# ---------------------------------------------------------------------------------------------------- gradients


def test_grad_dot_predicts_the_change_of_the_measure_after_one_more_step() -> None:
    """Linear regression: the log-density of the query after a small step `-(1/N) g_n`, against before; in nats, with sign and 1/N."""
    rng = torch.Generator().manual_seed(0)
    x_ND, y_N, theta = (torch.randn(*shape, generator=rng, dtype=torch.float64) for shape in ((18, 18), (18,), (18,)))
    gradient_ND = (x_ND @ theta - y_N)[:, None] * x_ND * 1e-4  # of a loss so small that the step is first order
    asked_x, asked_y = x_ND[0] + 0.5 * x_ND[1], 0.3

    def measure(theta: torch.Tensor) -> torch.Tensor:
        return -0.5 * (asked_x @ theta - asked_y) ** 2

    measure_D = -(asked_x @ theta - asked_y) * asked_x
    train = replace(toy_rows(18, seed=1), features={"gradient": gradient_ND.float()})
    asked = replace(toy_queries(1, seed=2), features={"gradient": measure_D.float()[None]})
    changes = torch.stack([measure(theta - gradient_D / 18) - measure(theta) for gradient_D in gradient_ND])
    torch.testing.assert_close(score(GradDot(), train, asked)[0].double(), changes, rtol=1e-2, atol=1e-7)


def test_grad_cos_is_minus_the_cosine(index: Toy, queries: Toy) -> None:
    expected = -torch.cosine_similarity(queries.features["gradient"][:, None], index.features["gradient"][None], dim=-1)
    torch.testing.assert_close(score(GradCos(), index, queries), expected)


def test_grad_cos_does_not_see_lengths(index: Toy, queries: Toy) -> None:
    lengths = torch.logspace(-6, 6, 20)[:, None]
    stretched = replace(index, features={**index.features, "gradient": index.features["gradient"] * lengths})
    torch.testing.assert_close(score(GradCos(), stretched, queries), score(GradCos(), index, queries))


@pytest.mark.parametrize(("method", "feature"), [(RepSim(), "representation"), (RepSimResponse(), "representation_response")])
def test_repsim_is_the_cosine_of_its_own_feature(method: Any, feature: str, index: Toy, queries: Toy) -> None:
    expected = torch.cosine_similarity(queries.features[feature][:, None], index.features[feature][None], dim=-1)
    torch.testing.assert_close(score(method, index, queries), expected)


def test_a_bad_row_changes_no_other_score(index: Toy, queries: Toy) -> None:
    for method in (GradDot(), GradCos(), RepSim()):
        found, expected = score(method, index.filled(3, torch.nan), queries), score(method, index, queries)
        expected[:, 3] = torch.nan
        torch.testing.assert_close(found, expected, equal_nan=True)


def test_a_feature_that_was_not_stored_is_named(index: Toy, queries: Toy) -> None:
    without = replace(queries, features={"gradient": queries.features["gradient"]})
    with pytest.raises(UsageError, match=r"repsim needs representation, missing in the queries \(there: gradient\)"):
        score(RepSim(), index, without)


def test_swapped_sides_are_refused_in_words(index: Toy, queries: Toy) -> None:
    with pytest.raises(UsageError, match=r"gradient of their measure and queries with their loss's.*swapped"):
        score(GradDot(), queries, index)


def test_provenance_says_how(index: Toy, queries: Toy) -> None:
    scores = GradCos().score(GradCos().fit(index.index()), index.index(), queries.index())
    assert scores.provenance == {"n_rows": 20, "feature": "gradient", "kernel": "cosine"}
    assert (scores.method, scores.unit) == ("grad_cos", None)


def test_a_method_is_its_frozen_options() -> None:
    assert Lexical(text="prompt") == Lexical(text="prompt") != Lexical()
    with pytest.raises(FrozenInstanceError):
        Random().seed = 3  # type: ignore[misc]


# --------------------------------------------------------------------------------------------------------- texts


def documents(toy: Toy, text: str) -> list[str]:
    prompts, responses = toy.columns["prompt"], toy.columns["response"]
    return {"prompt": prompts, "response": responses, "both": prompts + "\n" + responses}[text].tolist()


@pytest.mark.parametrize("text", ["prompt", "response", "both"])
def test_lexical_is_bm25s(text: Any, index: Toy, queries: Toy) -> None:
    """The library's own search over the same words, query by query."""
    engine = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
    engine.index(tokenize(documents(index, text)), show_progress=False)
    expected = np.stack([engine.get_scores(tokens) for tokens in tokenize(documents(queries, text))])
    torch.testing.assert_close(score(Lexical(text=text), index, queries), torch.from_numpy(expected))


def test_lexical_options_change_the_weights(index: Toy, queries: Toy) -> None:
    assert not torch.allclose(score(Lexical(k1=0.9, b=0.2), index, queries), score(Lexical(), index, queries))


def test_lexical_by_hand() -> None:
    """Two rows of one word each: idf `ln(1 + (2 - 1 + 0.5) / (1 + 0.5))`, term part `1 / (1 + 1.5)`, twice for a repeated word."""
    train, asked = toy_rows(2, seed=1), toy_queries(3, seed=2)
    train.columns["prompt"][:], train.columns["response"][:] = ["Zürich", "7"], ""
    asked.columns["prompt"][:], asked.columns["response"][:] = ["zürich", "7 7", "unheard of"], ""
    weight = np.log(2) / 2.5
    torch.testing.assert_close(score(Lexical(), train, asked), torch.tensor([[weight, 0], [0, 2 * weight], [0, 0]]).float())


def test_lexical_without_any_word() -> None:
    train, asked = toy_rows(3, seed=1), toy_queries(2, seed=2)
    train.columns["prompt"][:], train.columns["response"][:] = "", "?!"
    assert (score(Lexical(), train, asked) == 0).all()
    train.columns["prompt"][0] = "word"
    asked.columns["prompt"][:], asked.columns["response"][:] = None, None
    assert (score(Lexical(), train, asked) == 0).all()


def test_lexical_has_no_stop_words() -> None:
    """They belong to one language; here they are all that the texts have."""
    train, asked = toy_rows(2, seed=1), toy_queries(1, seed=2)
    train.columns["prompt"][:], train.columns["response"][:] = ["the", "of"], ""
    asked.columns["prompt"][:], asked.columns["response"][:] = ["of"], ""
    assert (score(Lexical(), train, asked)[0] > 0).tolist() == [False, True]


def test_lexical_names_its_text(index: Toy, queries: Toy) -> None:
    scores = Lexical(text="response").score(Lexical(text="response").fit(index.index()), index.index(), queries.index())
    assert scores.provenance["text"] == "response"


@pytest.mark.parametrize("text", ["prompt", "response", "both"])
def test_tfidf_is_scikit_learns(text: Any, index: Toy, queries: Toy) -> None:
    """Repeated words, words that no row has and a text without words among them."""
    index.columns["prompt"][:2], queries.columns["prompt"][:2] = ["a b b b c", "?!"], ["b b a unheard", "?!"]
    index.columns["response"][1] = queries.columns["response"][1] = ""
    vectorizer = TfidfVectorizer(token_pattern=TOKEN)
    rows_NV = vectorizer.fit_transform(documents(index, text))
    expected_QN = (vectorizer.transform(documents(queries, text)) @ rows_NV.T).toarray()
    torch.testing.assert_close(score(TfIdf(text=text), index, queries).double(), torch.from_numpy(expected_QN), rtol=0, atol=1e-6)


def test_tfidf_by_hand() -> None:
    """ "a" is in both rows (weight 1), "b" in one (weight 1 + ln 1.5)."""
    train, asked = toy_rows(2, seed=1), toy_queries(2, seed=2)
    train.columns["prompt"][:], train.columns["response"][:] = ["A a b", "a"], ""
    asked.columns["prompt"][:], asked.columns["response"][:] = ["a zzz", "b"], ""
    b = 1 + np.log(1.5)
    expected = torch.tensor([[2, np.hypot(2, b)], [b, 0]]).float() / float(np.hypot(2, b))
    torch.testing.assert_close(score(TfIdf(), train, asked), expected)


def test_tfidf_without_any_word() -> None:
    train, asked = toy_rows(3, seed=1), toy_queries(2, seed=2)
    train.columns["prompt"][:], train.columns["response"][:] = "", "?!"
    assert (score(TfIdf(), train, asked) == 0).all()


PAPER = Path("../shared/data/paper")


@pytest.mark.skipif(not PAPER.is_dir(), reason="the released rows are not here")
@pytest.mark.parametrize(("name", "expected"), [("math", (1, 1)), ("grammars", (0.64, 0.305)), ("emotion", (0.456, 0.226))])
def test_tfidf_on_the_released_rows(name: str, expected: tuple[float, float]) -> None:
    """Accuracy and cover that the prompt's words alone reach, as scikit-learn's vectors give them with the same words."""
    train, test = (pd.read_parquet(PAPER / f"{name}-{split}.parquet") for split in ("train", "test"))
    rows, asked = toy_rows(len(train), seed=1), toy_queries(len(test), seed=2)
    rows.columns["prompt"], asked.columns["prompt"] = train["prompts"].to_numpy(object), test["prompts"].to_numpy(object)
    labels = ClassLabels(train["variation"].to_numpy(str), test["variation"].to_numpy(str))
    ranking = Ranking(score(TfIdf(text="prompt"), rows, asked).double().numpy())
    found = accuracy(ranking, labels).value, cover(ranking, labels, places(labels)).value
    assert found == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("method", [lambda: Lexical(text="title"), lambda: TfIdf(text="title"), lambda: Embedding(model="x", text="title")])  # type: ignore[arg-type]
def test_an_unknown_text_is_refused(method: Any) -> None:
    with pytest.raises(UsageError, match="text is 'title', expected one of prompt, response, both"):
        method()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_encoder(tmp_path_factory.mktemp("encoder"))


def test_embedding_is_the_mean_over_a_texts_own_tokens(encoder: str, index: Toy, queries: Toy) -> None:
    """Each text alone, without padding, by the plain formula."""
    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()

    def embed(toy: Toy) -> torch.Tensor:
        documents = [f"{prompt}\n{response}" for prompt, response in zip(toy.columns["prompt"], toy.columns["response"], strict=True)]
        with torch.no_grad():
            return torch.stack([model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in documents])

    expected = torch.cosine_similarity(embed(queries)[:, None], embed(index)[None], dim=-1)
    with quiet():
        found = score(Embedding(model=encoder, batch_size=3), index, queries)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert found.std() > 0.01


def test_embedding_cuts_what_the_encoder_cannot_read(encoder: str, index: Toy) -> None:
    index.columns["prompt"][0] = "river delta " * 500
    with quiet():
        values_QN = score(Embedding(model=encoder), index, toy_queries(1, seed=2))
    assert torch.isfinite(values_QN).all()


def test_embedding_refuses_what_is_no_encoder(tmp_path: Path, index: Toy) -> None:
    with pytest.raises(UsageError, match="cannot be loaded as an encoder"):
        Embedding(model=str(tmp_path / "nowhere")).fit(index.index())
    with pytest.raises(UsageError, match="has no padding token"):
        Embedding(model=save_tiny_encoder(tmp_path / "unpadded", padding=False)).fit(index.index())


# ------------------------------------------------------------------------------------------------------ controls


def test_length_and_loss_are_the_columns(index: Toy, queries: Toy) -> None:
    for method, column in ((Length(), "n_tokens"), (Loss(), "loss")):
        expected = torch.from_numpy(index.columns[column].astype(np.float32)).expand(4, -1)
        torch.testing.assert_close(score(method, index, queries), expected)


def test_random_is_uniform_and_without_pattern() -> None:
    values_QN = draw([f"q{i}" for i in range(100)], [f"n{i}" for i in range(500)], seed=0)
    assert -1 <= values_QN.min() < -0.99
    assert 0.99 < values_QN.max() < 1
    assert abs(values_QN.mean()) < 0.01
    assert abs(values_QN.var() - 1 / 3) < 0.01
    between = np.corrcoef(values_QN)
    assert np.abs(between[~np.eye(100, dtype=bool)]).max() < 0.25  # 4,950 pairs of 500 numbers: five standard errors and more


def test_random_depends_on_its_seed_and_copies_share_a_draw() -> None:
    assert not np.array_equal(draw(["q"], ["a", "b"], seed=0), draw(["q"], ["a", "b"], seed=1))
    values_QN = draw(["q"], ["a", "b", "a~2", "a~3"], seed=0)
    assert values_QN[0, 0] == values_QN[0, 2] == values_QN[0, 3] != values_QN[0, 1]
    assert draw(["my~1"], ["a"], seed=0) != draw(["my~2"], ["a"], seed=0)  # a user names queries as they like


# ------------------------------------------------------------------------------------------------------ curvature


def test_the_identity_solves_to_what_it_is_given(index: Toy) -> None:
    b_KD = torch.randn(3, LAYOUT.size, generator=torch.Generator().manual_seed(0))
    source = index.index()
    solve = Identity().solve(Identity().fit(source), source, b_KD)
    assert (solve.status, solve.residual_K, solve.steps) == ("closed_form", None, 0)
    torch.testing.assert_close(solve.value, b_KD, rtol=0, atol=0)
    with pytest.raises(LayoutMismatch, match=r"b is \(3, 17\)"):
        Identity().solve({}, source, b_KD[:, :17])
