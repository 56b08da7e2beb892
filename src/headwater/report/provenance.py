"""Where the numbers come from: the corpus, the index, and the command that makes them again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from headwater.report.markup import Markup, el, foreign
from headwater.report.numerals import NONE
from headwater.report.parts import Facts, cut, facts, section
from headwater.report.text import excerpt

LISTED_ROWS = 50
JSON_LIMIT = 40_000


def corpus_section(corpus: Mapping[str, Any] | None) -> Markup:
    if corpus is None:
        return section(
            "corpus", "Corpus", note="There is no corpus report (corpus.json): what was read, left out or duplicated is unknown."
        )
    own = {key: value for key, value in corpus.items() if not isinstance(value, (Mapping, list))}
    groups = [("rows", own), *((key, value) for key, value in corpus.items() if isinstance(value, Mapping))]
    tables = [table for name, values in groups if (table := _value_table(name, values))]
    note = "What was read, what was set aside and why, and what was found twice."
    return section("corpus", "Corpus", el("div", *tables, class_="tables"), *_listed(corpus), note=note)


def _value_table(name: str, values: Mapping[str, Any]) -> Markup | None:
    rows = [el("tr", el("th", label, scope="row"), el("td", _plain(value), class_="number")) for label, value in _scalars(values)]
    return el("table", el("caption", name.replace("_", " ")), el("tbody", *rows), class_="plain") if rows else None


def _scalars(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(name, value) of every single value, at any depth; lists are shown elsewhere."""
    for key, value in values.items():
        name = f"{prefix}{str(key).removeprefix('n_').replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{name}: ")
        elif not isinstance(value, list):
            yield name, value


def _plain(value: Any) -> object:
    if value is None:
        return NONE
    if isinstance(value, (bool, str)):
        return foreign(excerpt(str(value), 200))
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _listed(value: Mapping[str, Any], prefix: str = "") -> Iterator[Markup]:
    """Lists of the report (rows set aside, groups of duplicates), folded, and cut where they are long."""
    for key, items in value.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        if isinstance(items, Mapping):
            yield from _listed(items, f"{name}: ")
        elif isinstance(items, list) and items:
            yield _list(name, items)


def _list(name: str, items: Sequence[Any]) -> Markup:
    lines = [el("li", el("code", cut(_one_line(item), 300))) for item in items[:LISTED_ROWS]]
    left = len(items) - len(lines)
    more = el("p", f"{left:,} more are in corpus.json.", class_="quiet") if left else None
    return el("details", el("summary", f"{name} ({len(items):,})"), el("ol", *lines), more)


def _one_line(item: Any) -> str:
    return item if isinstance(item, str) else json.dumps(item, ensure_ascii=False, default=str)


def index_section(index: Mapping[str, Any] | None, run: Mapping[str, Any] | None) -> Markup:
    if index is None and run is None:
        return section("index", "Index", note="There is no index/index.json and no run.json: how the rows were stored is unknown.")
    index, run = index or {}, run or {}
    outside = _out_of_scope(find_key([run, index], "outside"))
    return section("index", "Index", facts(index_facts(index)), outside, _raw("index.json", index), _raw("run.json", run))


def index_facts(index: Mapping[str, Any]) -> Facts:
    layout = find_key(index, "layout")
    blocks = layout.get("blocks", []) if isinstance(layout, Mapping) else []
    sketched = [block for block in blocks if block.get("shape") != block.get("stored")]
    return [
        ("Stored as", find_key(index, "dtype")),
        ("Numbers per row (D)", f"{sum(_size(block.get('stored', [])) for block in blocks):,}" if blocks else None),
        ("Parameters in scope", f"{sum(_size(block.get('shape', [])) for block in blocks):,}" if blocks else None),
        ("Blocks", f"{len(blocks):,}, of which {len(sketched):,} sketched" if blocks else None),
        ("Hidden size", find_key(index, "hidden_size")),
        ("Sketch seed", layout.get("sketch_seed") if isinstance(layout, Mapping) else None),
    ]


def find_key(value: Any, key: str) -> Any:
    """The first value stored under `key` in nested mappings; None where there is none. Other writers decide how deep it is."""
    if isinstance(value, Mapping) and key in value:
        return value[key]
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return next((found for item in inner if (found := find_key(item, key)) is not None), None)


def _size(shape: Sequence[int]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total


def _out_of_scope(outside: Any) -> Markup | None:
    """The parameters that no score knows of, by reason: a list of {"reason", "tensors", "parameters", "names"}."""
    if not isinstance(outside, list) or not outside:
        return None
    total = sum(_count(group, "parameters") for group in outside)
    title = f"{total:,} parameters are out of scope: the scores know nothing about changes there"
    return el("details", el("summary", title), el("ul", *(_outside_group(group) for group in outside)))


def _outside_group(group: Any) -> Markup:
    if not isinstance(group, Mapping):
        return el("li", foreign(_one_line(group)))
    told = f" ({_count(group, 'parameters'):,} in {_count(group, 'tensors'):,} tensors): "
    names = group.get("names") or []
    return el("li", foreign(str(group.get("reason", "no reason given"))), told, el("code", foreign(", ".join(map(str, names)))))


def _count(group: Any, key: str) -> int:
    value = group.get(key) if isinstance(group, Mapping) else None
    return value if isinstance(value, int) else 0


def _raw(name: str, value: Mapping[str, Any]) -> Markup | None:
    if not value:
        return None
    written = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    cut = f"\n… {len(written) - JSON_LIMIT:,} more characters are in the file" if len(written) > JSON_LIMIT else ""
    return el("details", el("summary", name), el("pre", foreign(written[:JSON_LIMIT]), cut))


def reproduce_section(name: str) -> Markup:
    return section(
        "reproduce",
        "Reproduce",
        el("pre", el("code", f"headwater replay {shlex.quote(name)}"), class_="command"),
        note="The run folder holds every option and seed. This makes it again:",
    )
