from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headwater.rank.groups import clusters, jaccard, near_duplicates, shingles

LONG = "the quick brown fox jumps over the lazy dog near the old river bank at dawn today"


def test_same_group_is_a_duplicate_whatever_the_text() -> None:
    assert near_duplicates(["a", "b", "c"], ["g", "h", "g"], ["one two three", "four five six", "seven eight nine"]) == {
        "a": ["c"],
        "b": [],
        "c": ["a"],
    }


def test_rows_without_a_group_are_not_one_group() -> None:
    assert near_duplicates(["a", "b"], ["", ""], ["one two three", "four five six"]) == {"a": [], "b": []}


def test_one_changed_word_at_the_end_is_a_near_duplicate_and_another_text_is_not() -> None:
    texts = [LONG, LONG.replace("today", "tonight"), LONG.upper(), "a text about something else altogether"]
    assert near_duplicates(["a", "b", "c", "d"], ["1", "2", "3", "4"], texts) == {
        "a": ["b", "c"],
        "b": ["a", "c"],
        "c": ["a", "b"],
        "d": [],
    }


def test_the_threshold_is_the_jaccard_similarity() -> None:
    changed = LONG.replace("today", "tonight")
    alike = jaccard(shingles(LONG), shingles(changed))
    assert alike == 14 / 16
    assert near_duplicates(["a", "b"], ["1", "2"], [LONG, changed], alike=alike) == {"a": ["b"], "b": ["a"]}
    assert near_duplicates(["a", "b"], ["1", "2"], [LONG, changed], alike=alike + 0.01) == {"a": [], "b": []}


def test_a_cluster_is_what_pairs_connect() -> None:
    found = near_duplicates(["a", "b", "c"], ["g", "g", "h"], ["one two three", LONG, LONG])
    assert found == {"a": ["b", "c"], "b": ["a", "c"], "c": ["a", "b"]}


def test_short_and_empty_texts() -> None:
    assert shingles("Yes indeed") == {("yes", "indeed")}
    assert shingles("one two three four") == {("one", "two", "three"), ("two", "three", "four")}
    assert near_duplicates(["a", "b", "c", "d"], ["1", "2", "3", "4"], ["", "  ", "yes", "Yes"]) == {
        "a": [],
        "b": [],
        "c": ["d"],
        "d": ["c"],
    }
    assert near_duplicates([], [], []) == {}


TEXTS = st.lists(st.sampled_from("abcd"), max_size=9).map(" ".join)


@given(st.lists(TEXTS, min_size=1, max_size=12), st.sampled_from([0.3, 0.5, 0.8, 1.0]))
def test_clusters_are_those_of_all_pairs_compared(texts: list[str], alike: float) -> None:
    """The sets that are compared are chosen; the answer is that of comparing all."""
    sets = [shingles(text) for text in texts]
    near = np.eye(len(texts), dtype=int) + np.array([[jaccard(a, b) >= alike for b in sets] for a in sets], dtype=int)
    reached = np.linalg.matrix_power(near, len(texts)) > 0
    found = np.array(clusters([""] * len(texts), texts, alike=alike))
    assert np.array_equal(found[:, None] == found[None], reached)


def test_many_copies_of_one_row_are_clustered_without_comparing_them_all() -> None:
    texts = [LONG] * 20_000 + [LONG.replace("today", "tonight")] + ["something else entirely, said once"]
    found = clusters([""] * len(texts), texts)
    assert len(set(found[:-1])) == 1
    assert found[-1] != found[0]
