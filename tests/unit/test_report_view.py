"""What is counted and decided before anything is shown: folds, hubs, scales, overlaps, and the removal's sentence."""

# ruff: noqa: RUF001 the signs of the page are what is tested
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.report_sample import sample_trace

from headwater.report.audited import worst_first
from headwater.report.experiment import effects, experiment_findings, sentence
from headwater.report.numerals import number, rate
from headwater.report.schema import Entry, Experiment, Query, parse_trace
from headwater.report.text import HIDDEN, excerpt, legible, pieces
from headwater.report.view import comparison, explorer, fold, is_hub, row_tokens, scale, scaled, score_heading, split_tokens
from headwater.types import DataError, Finding


def entries(*ids: str, near: dict[str, list[str]] | None = None) -> list[Entry]:
    return [Entry(id=id, score=1.0 / rank, near_duplicates=(near or {}).get(id, [])) for rank, id in enumerate(ids, 1)]


def test_near_duplicates_fold_under_their_first_row_and_ranks_stay() -> None:
    folded = fold(entries("a", "b", "c", "d", near={"a": ["c", "elsewhere"], "c": ["a"]}))
    assert [(entry["id"], entry["rank"]) for entry in folded] == [("a", 1), ("b", 2), ("d", 4)]
    assert folded[0]["near"] == [{"id": "c", "rank": 3, "score": pytest.approx(1 / 3)}, {"id": "elsewhere", "rank": None, "score": None}]


@pytest.mark.parametrize(
    ("rank", "hub_rank", "expected"),
    [
        (1, None, False),
        (1, 1, False),
        (1, 10, False),
        (1, 11, True),
        (1, 240, True),
        (10, 25, False),
        (10, 30, True),
        (2, 12, True),
        (2, 11, False),
    ],
)
def test_a_hub_ranks_far_lower_by_z(rank: int, hub_rank: int | None, expected: bool) -> None:
    assert is_hub(rank, hub_rank) is expected


@pytest.mark.parametrize(
    ("score", "error", "written", "heading"),
    [
        (2.56e-5, 1.8e-6, "25.6 1.8", "Score, 10⁻⁶ nats"),
        (0.256, 0.018, "0.256 0.018", "Score, nats"),
        (-31.24, 0.5, "−31.2 0.5", "Score, nats"),
        (123456.0, 10.0, "123 0", "Score, 10³ nats"),
    ],
)
def test_scores_share_one_power_of_ten(score: float, error: float, written: str, heading: str) -> None:
    axis = scale([Entry(id="a", score=score, standard_error=error), Entry(id="b", score=None)])
    assert f"{scaled(score, axis)} {scaled(error, axis)}" == written
    assert score_heading("nats", axis) == heading


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(0, 1e3)), max_size=8))
def test_the_axis_holds_every_interval_and_zero(pairs: list[tuple[float, float]]) -> None:
    axis = scale(Entry(id="x", score=score, standard_error=error) for score, error in pairs)
    assert axis["low"] <= 0 <= axis["high"]
    assert all(axis["low"] <= score - 1.96 * error and score + 1.96 * error <= axis["high"] for score, error in pairs)


def test_methods_side_by_side() -> None:
    value = sample_trace()
    value["queries"] = value["queries"][:1]
    ids = list(value["rows"])
    lists = {"grad_cos": ids[:10], "grad_dot": ids[5:15], "lexical": ids[5:8], "random": ids[30:33]}
    value["queries"][0]["ranked"] = {name: {"proponents": [{"id": id, "score": 1.0} for id in found]} for name, found in lists.items()}
    trace = parse_trace(value)
    found = comparison(trace.queries[0], trace)
    assert found["methods"] == ["grad_cos", "grad_dot", "lexical", "random"]
    assert found["overlap"] == [[10, 5, 3, 0], [5, 10, 3, 0], [3, 3, 3, 0], [0, 0, 0, 3]]
    assert [row["id"] for row in found["rows"]] == ids[:10]
    assert found["rows"][5]["ranks"] == [6, 1, 1, None]
    assert found["left_out"] == 8
    assert found["planted"] == [10, 5, 3, 0]
    assert found["sentence"] == "Of the 10 rows that grad_cos puts first, it shares 5 with grad_dot, 3 with lexical, 0 with random."


def test_no_planted_counts_where_no_row_is_marked() -> None:
    value = sample_trace()
    for row in value["rows"].values():
        row["tags"] = []
    trace = parse_trace(value)
    assert comparison(trace.queries[0], trace)["planted"] is None


def test_the_primary_method_comes_first() -> None:
    assert [method["name"] for method in explorer(parse_trace(sample_trace()))["methods"]][:2] == ["grad_cos", "grad_dot"]


def test_a_rows_tokens_are_summed_over_the_query_and_belong_to_the_primary_ranking() -> None:
    trace = sample_trace()
    first = trace["queries"][0]["ranked"]["grad_cos"]["proponents"][0]["id"]
    trace["queries"][0]["token_scores"] = [{"id": first, "row_tokens": ["a", "b"], "values": [[1.0, 0.5], [1.0, -4.5], [None, 0.0]]}]
    parsed = parse_trace(trace)
    expected = [{"text": "a", "value": 2.0, "strength": 0.5}, {"text": "b", "value": -4.0, "strength": 1.0}]
    assert row_tokens(parsed.queries[0]) == {first: expected}
    shown = explorer(parsed)["queries"][0]["ranked"]
    found = {name: [entry["id"] for entry in ranked["proponents"] if "tokens" in entry] for name, ranked in shown.items()}
    assert found == {name: [first] if name == parsed.primary else [] for name in shown}


def test_token_scores_of_another_width_are_refused() -> None:
    trace = sample_trace()
    trace["queries"][0]["token_scores"] = [{"id": "r", "row_tokens": ["a", "b"], "values": [[1.0]]}]
    with pytest.raises(DataError, match="token scores of row 'r' have 2 tokens and lines of another length"):
        parse_trace(trace)


def test_tokens_split_before_the_first_target() -> None:
    tokens = [
        {"text": "a"},
        {"text": "b", "target": True, "contribution": -0.4},
        {"text": "c"},
        {"text": "d", "target": True, "contribution": 0.1},
    ]
    found = split_tokens(Query.model_validate({"id": "q", "tokens": tokens, "ranked": {}}))
    assert [token["text"] for token in found["prompt_tokens"]] == ["a"]
    assert [token["text"] for token in found["response_tokens"]] == ["b", "c", "d"]
    assert found["contribution_max"] == 0.4


def test_findings_are_sorted_worst_first_and_stay_in_order_otherwise() -> None:
    statuses = ["ok", "unknown", "fail", "warn", "fail"]
    findings = [Finding(name=str(n), status=status, because="") for n, status in enumerate(statuses)]  # pyright: ignore[reportArgumentType]
    assert [finding.name for finding in worst_first(findings)] == ["2", "4", "3", "1", "0"]


# ------------------------------------------------------------------------------------------------------ experiment


def experiment(*numbers: tuple[float | None, float | None, float | None], kinds: tuple[str | None, ...] = ("planted",)) -> Experiment:
    queries = [
        {"id": f"q{n}", "kind": kind, "before": before, "after_removal": removal, "after_random_removal": random}
        for n, ((before, removal, random), kind) in enumerate(zip(numbers, kinds, strict=True))
    ]
    return Experiment.model_validate({"removed": 30, "method": "grad_cos", "queries": queries, "unit": "nats"})


@pytest.mark.parametrize(
    ("numbers", "outcome", "status", "words"),
    [
        (
            (-1.0, -20.0, -1.5),
            "caused",
            "ok",
            "lowered the measure by 19 nats; removing 30 random rows lowered the measure by 0.5 nats (38 times as much)",
        ),
        ((-1.0, -2.0, -1.0), "caused", "ok", "lowered the measure by 1 nats; removing 30 random rows lowered the measure by 0 nats."),
        ((-1.0, -2.5, -1.5), "more", "warn", "(3 times as much). That is more than chance"),
        ((-1.0, -1.4, -1.4), "none", "fail", "no evidence that these rows carried this output"),
        ((-1.0, -0.5, -1.5), "none", "fail", "raised the measure by 0.5 nats"),
        ((-1.0, None, -1.5), "unknown", "unknown", "Not measured"),
    ],
)
def test_the_removal_is_told_from_its_numbers(numbers: tuple[float | None, ...], outcome: str, status: str, words: str) -> None:
    ran = experiment(numbers)  # pyright: ignore[reportArgumentType]
    effect = effects(ran)[0]
    assert effect.outcome == outcome
    assert words in sentence(effect, ran)
    finding = experiment_findings(ran)[0]
    assert finding.status == status
    assert finding.interval is None
    assert finding.value == (None if outcome == "unknown" else pytest.approx((numbers[2] or 0) - (numbers[1] or 0)))


def test_only_a_planted_query_makes_a_finding_where_kinds_are_given() -> None:
    same = (-1.0, -2.0, -1.0)
    kinds = ("planted", "ordinary", "control")
    assert [finding.name for finding in experiment_findings(experiment(same, same, same, kinds=kinds))] == ["removal: q0"]
    assert len(experiment_findings(experiment(same, same, kinds=(None, None)))) == 2


# ------------------------------------------------------------------------------------------------------------ text


@given(st.text())
def test_legible_text_hides_nothing_and_keeps_the_rest(text: str) -> None:
    shown = legible(text)
    assert not [c for c in shown if any(low <= ord(c) <= high for low, high in HIDDEN)]
    assert "".join(piece for piece, _ in pieces(text)) == text.replace("\r\n", "\n")


def test_hidden_characters_become_code_points() -> None:
    assert legible("a\u202eb\0\ud800\U000e0041\r\nc\td") == "a[U+202E]b[U+0000][U+D800][U+E0041]\nc\td"
    assert legible("नमस्ते می‌خواهم 👩‍🚀") == "नमस्ते می‌خواهم 👩‍🚀"


@pytest.mark.parametrize(("text", "expected"), [("a\n b", "a b"), ("abcdefgh", "abcde…"), ("", ""), (" " * 100 + "x", "…")])
def test_excerpt_is_one_short_line(text: str, expected: str) -> None:
    assert excerpt(text, 6) == expected


def test_numbers_read_well() -> None:
    assert [number(value) for value in (None, 0.0, -1.5, 1.2e-7, 1234.4)] == ["–", "0", "−1.5", "1.2 × 10⁻⁷", "1,234"]
    assert [rate(value) for value in (None, 0.0, 0.0004, 0.0123, 1.0)] == ["–", "0.000", "< 0.001", "0.012", "1.000"]
