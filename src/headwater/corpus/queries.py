"""Queries: model outputs to be explained, encoded exactly as training rows are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater.corpus.chat import as_messages
from headwater.corpus.columns import USUAL_NAMES, Columns, as_columns
from headwater.corpus.encode import Encoded, in_spans, resolve_max_length, to_example, tokenise
from headwater.corpus.identity import number_copies
from headwater.corpus.labels import INTEGER, LabelMap
from headwater.corpus.read import RawRow, read_rows
from headwater.corpus.render import LossOn, Rendered, Renderer
from headwater.corpus.report import UnusableRow
from headwater.types import DataError, Example, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EXTRAS = ("id", "kind", "alternative", "span")
FIELDS = ("prompt", "response", "messages", "text", "label", *EXTRAS)


@dataclass(frozen=True)
class RenderedQuery:
    row: RawRow
    columns: Columns
    text: Rendered
    alternative: Rendered | None
    span: tuple[int, int] | None  # characters of the joined pieces


def query(
    tokenizer: PreTrainedTokenizerBase,
    *,
    chat_template: str | Path | None = None,
    loss_on: LossOn = "response",
    max_length: int | None = None,
    label2id: Mapping[str, int] | None = None,
    **fields: Any,
) -> Example:
    """One query from its fields: `query(tokenizer, prompt="...", response="...")`; all fields of `read_queries`, under those names."""
    unknown = sorted(set(fields) - set(FIELDS))
    if unknown:
        raise UsageError(f"got {unknown} for a query, expected fields among {list(FIELDS)}; check the spelling")
    queries = read_queries([fields], tokenizer, chat_template=chat_template, loss_on=loss_on, max_length=max_length, label2id=label2id)
    return queries[0]


def read_queries(
    source: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    columns: Columns | str | Mapping[str, str] | None = None,
    split: str | None = None,
    limit: int | None = None,
    chat_template: str | Path | None = None,
    loss_on: LossOn = "response",
    max_length: int | None = None,
    label2id: Mapping[str, int] | None = None,
) -> list[Example]:
    """Queries from a file, a Dataset or a list of dicts: `prompt` + `response`, `messages`, `text`, or `text` (or `prompt`) + `label`.

    The tokens and mask are those of the same row in a corpus; with `messages` every assistant turn is a target, so use `span` for one.
    Optional fields of a query:
        id           kept as it is and must be unique; otherwise the content's hash, as for rows
        alternative  another response (for messages: another last answer), encoded alike: `Example.alternative`
        span         only these tokens are targets: [start, end) characters of the response, or a substring that occurs once in it
    Everything else (`kind`, ...) is kept in `Example.meta`. Raises UsageError for a query that is incomplete or does not fit, DataError
    for a file that cannot be read.
    """
    raw = read_rows(source, split=split, limit=limit)
    if raw.undecodable:
        bad = raw.undecodable[0]
        raise DataError(f"{bad.source} row {bad.row}: {bad.note}; every query must be readable, repair or remove it")
    chosen = as_columns(columns)
    mapped = [(row, chosen or _columns_of(row)) for row in raw.rows]
    labels = _labels([row.values[c.label] for row, c in mapped if c.label], label2id)
    renderer = Renderer.make(tokenizer, chat_template=chat_template, loss_on=loss_on, labels=labels)
    rendered = [_render(row, cols, renderer) for row, cols in mapped]
    examples = _encode(rendered, tokenizer, max_length=resolve_max_length(tokenizer, max_length))
    return _unique(examples, named=[row.values.get("id") is not None for row in raw.rows])


def _columns_of(row: RawRow) -> Columns:
    """By the usual names, query by query: a file may mix prompts with conversations."""
    names = [name for name, value in row.values.items() if value is not None and name not in EXTRAS]
    has_response = any(name in names for role in ("response", "messages", "text") for name in USUAL_NAMES[role])
    if not has_response and {"prompt", "label"} <= set(names):
        return Columns(text="prompt", label="label")
    if not has_response:
        raise UsageError(f"{_where(row)} has fields {names} and no response; a query is a prompt and the response to explain, give both")
    return Columns.detect(names, source=_where(row))


def _where(row: RawRow) -> str:
    return f"query {row.row} of {row.source}"


def _labels(values: list[Any], label2id: Mapping[str, int] | None) -> LabelMap:
    named = [value for value in values if isinstance(value, str) and not INTEGER.fullmatch(value)]
    if named and not label2id:
        raise UsageError(f"got label {named[0]!r} in a query without the classes' names; give the class as an integer, or label2id")
    labels = LabelMap.fit(values, label2id)
    if named and not set(named) <= set(label2id or ()):
        raise UsageError(
            f"got labels {sorted(set(named))[:5]} in queries, expected the names that label2id has: {sorted(label2id or ())[:20]}"
        )
    return labels


def _render(row: RawRow, columns: Columns, renderer: Renderer) -> RenderedQuery:
    alternative, span = row.values.get("alternative"), row.values.get("span")
    if alternative is not None and span is not None:
        raise UsageError(f"{_where(row)} has both an alternative and a span, and a contrast of a span is not defined; give one of them")
    try:
        text = renderer.render(row.values, columns)
        other = None if alternative is None else renderer.render(_with_response(row, columns, alternative), columns)
    except UnusableRow as why:
        raise UsageError(f"{_where(row)} cannot be used ({why.reason}): {why.note}; a query needs a response in text") from why
    return RenderedQuery(row, columns, text, other, None if span is None else _resolve_span(row, text, span))


def _with_response(row: RawRow, columns: Columns, response: Any) -> dict[str, Any]:
    if columns.response:
        return {**row.values, columns.response: response}
    if not columns.messages:
        raise UsageError(f"{_where(row)} has an alternative but no response that it could replace; give prompt and response, or messages")
    messages = as_messages(row.values[columns.messages])
    last = max((k for k, message in enumerate(messages) if message["role"] == "assistant"), default=None)
    if last is None:
        raise UnusableRow("no_response_token", "no assistant turn")
    return {columns.messages: [*messages[:last], {**messages[last], "content": response}, *messages[last + 1 :]]}


def _resolve_span(row: RawRow, text: Rendered, span: Any) -> tuple[int, int]:
    """The span in characters of the joined pieces."""
    if text.response_at is None:
        raise UsageError(f"{_where(row)}: the chat template changes the response, so a span of it cannot be located; leave the span out")
    if isinstance(span, str):
        if not span or text.response.count(span) != 1:
            raise UsageError(
                f"{_where(row)}: span {span!r} occurs {text.response.count(span) if span else 0} times in the response, expected once; "
                "give [start, end] in characters"
            )
        start, end = text.response.index(span), text.response.index(span) + len(span)
    else:
        start, end = _character_range(row, span, len(text.response))
    return text.response_at + start, text.response_at + end


def _character_range(row: RawRow, span: Any, length: int) -> tuple[int, int]:
    try:
        start, end = (int(number) for number in span)
    except (TypeError, ValueError):
        start = end = -1
    if not 0 <= start < end <= length:
        raise UsageError(f"{_where(row)}: got span {span!r}, expected [start, end) within the {length} characters of the response")
    return start, end


def _encode(queries: list[RenderedQuery], tokenizer: PreTrainedTokenizerBase, *, max_length: int | None) -> list[Example]:
    main = tokenise([q.text for q in queries], tokenizer, max_length=max_length, with_characters=any(q.span for q in queries))
    others = iter(tokenise([q.alternative for q in queries if q.alternative], tokenizer, max_length=max_length))
    return [_to_query(q, encoded, next(others) if q.alternative else None) for q, encoded in zip(queries, main, strict=True)]


def _to_query(q: RenderedQuery, encoded: Encoded, other: Encoded | None) -> Example:
    if q.span is not None:
        assert encoded.characters is not None
        encoded = replace(encoded, loss_mask=encoded.loss_mask & in_spans(encoded.characters, [q.span]))
    for tokens in (encoded, other):
        if tokens is not None and q.text.label is None and not tokens.loss_mask.any():
            raise UsageError(
                f"{_where(q.row)}: none of its {tokens.n_full} tokens is left to explain; raise --max-length or widen the span"
            )
    example = to_example(q.text, encoded, source=q.row.source, row=q.row.row)
    used = {"id", "alternative", *q.columns.to_json().values()}
    extra = {name: value for name, value in q.row.values.items() if name not in used}
    alternative = to_example(q.alternative, other, source=q.row.source, row=q.row.row) if q.alternative and other else None
    name = q.row.values.get("id")
    return replace(example, id=example.id if name is None else str(name), meta={**extra, **example.meta}, alternative=alternative)


def _unique(examples: list[Example], *, named: list[bool]) -> list[Example]:
    """Copies of a content are numbered; a name that the user gave is never changed, so two of them are refused."""
    numbered = iter(number_copies([example for example, name in zip(examples, named, strict=True) if not name], {}))
    unique = [example if name else next(numbered) for example, name in zip(examples, named, strict=True)]
    twice = [name for name, count in Counter(example.id for example in unique).items() if count > 1]
    if twice:
        raise UsageError(f"query ids {twice[:5]} are given more than once; every query needs an id of its own")
    return unique
