"""An answer on cells made by hand: the best with its ties, what beats the class, and where words alone do it."""

from __future__ import annotations

import pytest
from tests.unit.study.test_claims import cell

from headwater.study.answer import Answer, answers
from headwater.study.cells import Cell


def tables(values: dict[str, float], *, metric: str = "average_precision", half: float = 0.03) -> list[Cell]:
    return [cell("emotion", method, value, metric=metric, half=half) for method, value in values.items()]


def truth(values: dict[str, float], *, half: float = 0.03) -> list[Cell]:
    return [cell("emotion", method, value, part="truth", metric="lds", half=half) for method, value in values.items()]


def only(cells: list[Cell]) -> Answer:
    (found,) = answers(cells)
    return found


def said(sentences: tuple[str, ...], words: str) -> bool:
    return any(words in sentence for sentence in sentences)


def test_the_best_for_the_class_with_what_cannot_be_told_from_it() -> None:
    found = only(tables({"repsim": 0.95, "grad_cos": 0.93, "grad_dot": 0.5, "random": 0.2, "lexical": 0.4}))
    assert found.for_class == ("repsim", "grad_cos")
    assert said(found.trust, "repsim, average precision 0.95 (0.92 to 0.98), not told apart from grad_cos")
    assert not said(found.beware, "words alone")
    assert said(found.beware, "nothing was trained again")
    assert found.for_cause == ()


def test_controls_and_the_oracle_are_never_the_method_to_use() -> None:
    found = only([*tables({"lexical": 0.99, "repsim": 0.6, "random": 0.1}), *truth({"same class": 0.9, "lexical": 0.8, "repsim": 0.3})])
    assert found.for_class == ("repsim",)
    assert found.for_cause == ("repsim",)
    assert said(found.beware, "words alone do it (lexical, average precision 0.99")


def test_what_is_no_better_than_chance_is_not_recommended() -> None:
    found = only(tables({"repsim": 0.22, "random": 0.2}))
    assert found.for_class == ()
    assert said(found.beware, "not told from a random order")


def test_auroc_or_accuracy_where_nothing_better_was_measured() -> None:
    assert said(only(tables({"repsim": 0.9}, metric="auroc")).trust, "AUROC 0.90")
    assert only(tables({"repsim": 0.9}, metric="accuracy")).for_class == ()


def test_a_method_above_the_class_says_more_than_the_class() -> None:
    found = only(truth({"grad_cos": 0.6, "repsim": 0.3, "same class": 0.4, "noise ceiling": 0.7}))
    assert found.for_cause == ("grad_cos",)
    assert said(found.trust, "More than the class: LDS above that of knowing the class alone, 0.40 (0.37 to 0.43), for grad_cos (by 0.20")
    assert said(found.trust, "noise lets anyone reach 0.70")


@pytest.mark.parametrize("value", [0.2, 0.41])
def test_where_none_is_above_the_class_nothing_says_more(value: float) -> None:
    found = only(truth({"grad_cos": value, "same class": 0.4}))
    assert said(found.beware, "nothing here says more than the class")
    assert not said(found.trust, "More than the class")


def test_a_low_share_of_the_ceiling_and_the_words_are_told() -> None:
    found = only(truth({"grad_cos": 0.2, "lexical": 0.19, "same class": 0.1, "noise ceiling": 0.9}))
    assert said(found.beware, "More than half of what can be known of the cause")
    assert said(found.beware, "lexical, LDS 0.19 (0.16 to 0.22), is not told apart from the best")


def test_no_relation_to_training_again() -> None:
    found = only(truth({"grad_cos": 0.02}, half=0.1))
    assert found.for_cause == ()
    assert said(found.beware, "not told from no relation to training again")


def test_one_row_for_all_queries_is_told() -> None:
    hub = [cell("emotion", "repsim", 0.6, metric="hub_share")]
    assert said(only([*tables({"repsim": 0.9, "random": 0.1}), *hub]).beware, "one and the same row comes first")


def test_seeds_are_pooled_and_each_model_has_its_answer() -> None:
    cells = [cell("emotion", "repsim", 0.9 + 0.02 * seed, metric="auroc", seed=seed) for seed in (0, 1)]
    found = answers([*cells, Cell("math", "big", 0, "lint", "data", "splits", value=0.0)])
    assert [(one.task, one.model) for one in found] == [("emotion", "tiny")]
    assert said(found[0].trust, "AUROC 0.91")
    assert found[0].to_json()["for_class"] == ["repsim"]
