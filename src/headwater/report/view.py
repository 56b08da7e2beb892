"""From a trace to what the page's script shows: everything that is counted or decided is decided here, where it is tested."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from types import MappingProxyType
from typing import Any

from headwater.report.icons import SHAPES
from headwater.report.numerals import fixed, power_of_ten
from headwater.report.schema import Entry, Query, QueryVerdict, Ranked, Row, TokenMatrix, Trace
from headwater.report.text import HIDDEN
from headwater.report.verdicts import MARKS, MEANINGS, SIDES, Told, probability

TEXT_LIMIT = 20_000  # characters of one text that go into the page; the rest is named by its length and stays in the source
TOP = 10  # ranks that methods are compared on
COMPARED_ROWS = 24
KINDS = {
    "planted": "A small group of training rows was made to teach this behaviour.",
    "ordinary": "An ordinary question; its causes are not known beforehand.",
    "control": "Nothing in the training data causes this: a confident list here would be a false one.",
}
INTERVAL = 1.96  # standard errors on each side of a score: 95 % under a normal error


NOT_AUDITED = Told({})


def explorer(trace: Trace, said: Told = NOT_AUDITED) -> dict[str, Any]:
    """The JSON island of the page."""
    methods = trace.ordered_methods
    return {
        "hidden": HIDDEN,
        "interval": INTERVAL,
        "top": TOP,
        "kinds": KINDS,
        "marks": SHAPES,
        "audited": said.any,
        "measure": trace.measure.model_dump(),
        "primary": trace.primary,
        "methods": [{"name": m.name, "unit": m.unit, "summary": m.summary, "provenance": _pretty(m.provenance)} for m in methods],
        "queries": [{**_query(query, trace), "verdict": verdict_of(said.of(query.id))} for query in trace.queries],
        "rows": {id: _row(row) for id, row in trace.rows.items()},
    }


def _query(query: Query, trace: Trace) -> dict[str, Any]:
    return {
        "id": query.id,
        "kind": query.kind,
        "prompt": clip(query.prompt),
        "response": clip(query.response),
        "alternative": None if query.alternative is None else clip(query.alternative),
        "measure_value": query.measure_value,
        **split_tokens(query),
        "ranked": {name: ranking(ranked, row_tokens(query) if name == trace.primary else {}) for name, ranked in query.ranked.items()},
        "comparison": comparison(query, trace),
    }


def verdict_of(verdict: QueryVerdict) -> dict[str, Any]:
    """A verdict as it is shown: its mark and word, what it means, and the findings that decided it."""
    return {
        "mark": MARKS[verdict.status],
        "word": verdict.status,
        "probability": None if verdict.probability is None else probability(verdict),
        "meaning": MEANINGS[verdict.status],
        "reasons": [{"mark": one.status, "side": SIDES[one.status], "name": one.name, "because": one.because} for one in verdict.findings],
    }


def _row(row: Row) -> dict[str, Any]:
    kept = row.model_dump(include={"source", "row", "label", "n_tokens", "n_loss_tokens", "loss", "copies"})
    return {**kept, "planted": row.planted, "prompt": clip(row.prompt), "response": clip(row.response)}


def clip(text: str) -> dict[str, Any]:
    """A text for the page, with its true length."""
    return {"text": text[:TEXT_LIMIT], "length": len(text)}


def split_tokens(query: Query) -> dict[str, Any]:
    """The tokens before the first target are the prompt's, the others the response's; `contribution_max` scales the colours."""
    before = list(takewhile(lambda token: not token.target, query.tokens))
    sizes = [abs(token.contribution) for token in query.tokens if token.contribution is not None]
    return {
        "prompt_tokens": [token.model_dump() for token in before],
        "response_tokens": [token.model_dump() for token in query.tokens[len(before) :]],
        "contribution_max": max(sizes, default=None),
    }


def row_tokens(query: Query) -> dict[str, list[dict[str, Any]]]:
    """{row: its tokens, each with what it adds to the score for the whole query, and that over the row's largest} of rows taken apart."""
    return {one.id: _weighted(one) for one in query.token_scores}


def _weighted(one: TokenMatrix) -> list[dict[str, Any]]:
    values = [sum(value or 0.0 for value in column) for column in zip(*one.values, strict=True)] or [0.0] * len(one.row_tokens)
    largest = max(map(abs, values), default=0.0) or 1.0
    return [{"text": text, "value": value, "strength": abs(value) / largest} for text, value in zip(one.row_tokens, values, strict=True)]


# ------------------------------------------------------------------------------------------------------ one ranking


def ranking(ranked: Ranked, tokens: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """`tokens` are those of rows whose score was taken apart."""
    entries = [*ranked.proponents, *ranked.opponents]
    return {
        "proponents": fold(ranked.proponents, tokens),
        "opponents": fold(ranked.opponents, tokens),
        "scale": scale(entries),
    }


def fold(entries: Sequence[Entry], tokens: Mapping[str, Any] = MappingProxyType({})) -> list[dict[str, Any]]:
    """The ranking with near-duplicates moved under their first row. Ranks stay those of the unfolded list."""
    ranks = {entry.id: rank for rank, entry in enumerate(entries, 1)}
    scores = {entry.id: entry.score for entry in entries}
    out: list[dict[str, Any]] = []
    folded: set[str] = set()
    for entry in entries:
        if entry.id in folded:
            continue
        folded.update(entry.near_duplicates)
        near = [{"id": id, "rank": ranks.get(id), "score": scores.get(id)} for id in entry.near_duplicates if id != entry.id]
        rank = ranks[entry.id]
        shown = entry.model_dump(include={"id", "score", "standard_error", "z", "p", "q", "hub_rank"})
        apart = {"tokens": tokens[entry.id]} if entry.id in tokens else {}
        out.append({**shown, "rank": rank, "hub": is_hub(rank, entry.hub_rank), "near": near, **apart})
    return out


def is_hub(rank: int, hub_rank: int | None) -> bool:
    """A row that its score ranks far higher than its z does: it scores like that for every query.

    Both ranks count from the list's own end, the top for proponents and the bottom for opponents.
    """
    return hub_rank is not None and hub_rank >= max(3 * rank, rank + 10)


def scale(entries: Iterable[Entry]) -> dict[str, Any]:
    """One axis and one power of ten for a whole table, so that its numbers line up.

    `factor` multiplies a score before it is printed with `decimals`; `exponent` is what the header says (10^exponent).
    """
    scored = [(entry.score, INTERVAL * (entry.standard_error or 0.0)) for entry in entries if entry.score is not None]
    low = min((score - error for score, error in scored), default=0.0)
    high = max((score + error for score, error in scored), default=0.0)
    largest = max((abs(score) for score, _ in scored), default=0.0)
    exponent = _exponent(largest)
    whole = math.floor(math.log10(largest)) - exponent if largest > 0 else 0
    return {"low": min(low, 0.0), "high": max(high, 0.0), "exponent": exponent, "decimals": max(0, min(3, 2 - whole))}


def scaled(value: float | None, axis: Mapping[str, Any]) -> str:
    """A score on a table's common scale: the digits only, the power of ten is in the heading."""
    return fixed(None if value is None else value * 10.0 ** -axis["exponent"], decimals=axis["decimals"])


def score_heading(unit: str | None, axis: Mapping[str, Any]) -> str:
    """ "Score, 10⁻⁶ nats"."""
    parts = [power_of_ten(axis["exponent"]) if axis["exponent"] else "", unit or ""]
    return ", ".join(["Score", " ".join(filter(None, parts))]).rstrip(", ")


def _exponent(largest: float) -> int:
    """0 for numbers that read well as they are, otherwise a multiple of 3."""
    if largest == 0 or 0.05 <= largest < 10_000:
        return 0
    return 3 * math.floor(math.log10(largest) / 3)


# ------------------------------------------------------------------------------------------------ methods side by side


def comparison(query: Query, trace: Trace) -> dict[str, Any]:
    """Which rows each method puts in its top 10, and how many any two methods share."""
    found = tops(query, trace)
    names = list(found)
    rows = compared_rows(found, trace.primary)
    return {
        "methods": names,
        "rows": [{"id": id, "ranks": [_rank(id, found[name]) for name in names]} for id in rows],
        "left_out": len({id for top in found.values() for id in top} - set(rows)),
        "overlap": [[len(set(found[a]) & set(found[b])) for b in names] for a in names],
        "sizes": [len(found[name]) for name in names],
        "planted": planted_found(found, trace),
        "sentence": overlap_sentence(found, trace.primary),
    }


def tops(query: Query, trace: Trace) -> dict[str, list[str]]:
    """{method: the ids of its first 10 rows}, the primary method first."""
    names = [method.name for method in trace.ordered_methods if method.name in query.ranked]
    return {name: [entry.id for entry in query.ranked[name].proponents[:TOP]] for name in names}


def compared_rows(tops: dict[str, list[str]], primary: str) -> list[str]:
    """The primary method's rows, then rows that two methods or more found, most often found first."""
    count: dict[str, int] = {}
    for top in tops.values():
        for id in top:
            count[id] = count.get(id, 0) + 1
    first = tops.get(primary, [])
    shared = [id for id in count if count[id] > 1 and id not in first]
    return [*first, *sorted(shared, key=lambda id: -count[id])][:COMPARED_ROWS]


def overlap_sentence(tops: dict[str, list[str]], primary: str) -> str:
    mine = set(tops.get(primary, []))
    if not mine:
        return f"{primary} has no ranking for this query."
    shared = [f"{len(mine & set(top))} with {name}" for name, top in tops.items() if name != primary]
    return f"Of the {len(mine)} rows that {primary} puts first, it shares {', '.join(shared)}." if shared else ""


def planted_found(tops: dict[str, list[str]], trace: Trace) -> list[int] | None:
    """Per method, how many of its top rows are marked as planted; None where no row of the trace is."""
    if not any(row.planted for row in trace.rows.values()):
        return None
    return [sum(trace.rows[id].planted for id in top) for top in tops.values()]


def _rank(id: str, top: list[str]) -> int | None:
    return top.index(id) + 1 if id in top else None


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str) if value else ""
