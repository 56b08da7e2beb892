"""Rows into tokens and loss masks, with an account of every row."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headwater.corpus.chat import Span
from headwater.corpus.columns import Columns, as_columns
from headwater.corpus.identity import content_id, fingerprint, group_of, number_copies
from headwater.corpus.labels import LabelMap
from headwater.corpus.read import RawRow, RawRows, read_rows
from headwater.corpus.render import LossOn, Rendered, Renderer
from headwater.corpus.report import CorpusReport, Duplicates, Listing, TokenStatistics, UnusableRow, refuse_mostly_undecodable
from headwater.progress import track
from headwater.types import DataError, Example, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK_ROWS = 1000
SANE_MAX_LENGTH = 2**31  # tokenizers that know no limit say 1e30


@dataclass(frozen=True)
class Corpus:
    """Training rows ready for a model, and the account of how they came about."""

    examples: tuple[Example, ...]
    report: CorpusReport

    @property
    def fingerprint(self) -> str:
        """One hash over the ids in order, so over every token, mask and label."""
        return fingerprint(example.id for example in self.examples)

    def __len__(self) -> int:
        return len(self.examples)


def load_corpus(
    data: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    columns: Columns | str | Mapping[str, str] | None = None,
    split: str | None = None,
    limit: int | None = None,
    chat_template: str | Path | None = None,
    loss_on: LossOn = "response",
    max_length: int | None = None,
    label2id: Mapping[str, int] | None = None,
) -> Corpus:
    """`read_rows`, then `encode`: from a path, hub id, Dataset or list of dicts to a Corpus."""
    rows = read_rows(data, split=split, limit=limit)
    return encode(rows, tokenizer, columns=columns, chat_template=chat_template, loss_on=loss_on, max_length=max_length, label2id=label2id)


def encode(
    rows: RawRows,
    tokenizer: PreTrainedTokenizerBase,
    *,
    columns: Columns | str | Mapping[str, str] | None = None,
    chat_template: str | Path | None = None,
    loss_on: LossOn = "response",
    max_length: int | None = None,
    label2id: Mapping[str, int] | None = None,
) -> Corpus:
    """Tokens, loss masks and ids of all rows that can be used; the others are counted by reason and listed.

    prompt + response: through the chat template (the tokenizer's own, or `chat_template`: Jinja, a file, or "none"). Without a
    template the opening tokens that the tokenizer adds, the prompt's tokens, the response's tokens, and the end token where there is one;
    prompt and response are tokenised apart, so that the boundary is exact and the prompt's tokens are those that generation starts from
    (a tokenizer that puts a space before every text, as SentencePiece may, therefore puts one before the response too).
    messages: every assistant turn is a target. text: every token but the first. text + label: no targets, `label` is set.
    With a template the conversation is tokenised as one text; a token that holds characters of both sides belongs to the answer.
    `loss_on="all"` makes every token but the first a target.

    Rows longer than `max_length` tokens (default: the tokenizer's own limit, if it has one) keep their beginning.
    Cost: linear in the text. Raises UsageError for columns or options that do not fit, DataError where no row is left.
    """
    chosen = resolve_columns(rows, as_columns(columns))
    labels = LabelMap.fit((row.values.get(chosen.label) for row in rows.rows if chosen.label), label2id)
    renderer = Renderer.make(tokenizer, chat_template=chat_template, loss_on=loss_on, labels=labels)
    limit = resolve_max_length(tokenizer, max_length)
    listings = list(rows.undecodable)
    examples: list[Example] = []
    for chunk in _chunks(rows.rows):
        examples += _encode_chunk(chunk, chosen, renderer, max_length=limit, listings=listings)
    refuse_mostly_undecodable(listings, Counter([row.source for row in rows.rows] + [bad.source for bad in rows.undecodable]))
    settings = _settings(chosen, renderer, labels, max_length=limit, own_template=chat_template is None)
    return _account(number_copies(examples, {}), rows, listings, settings)


def _chunks(rows: Sequence[RawRow]) -> Iterator[Sequence[RawRow]]:
    chunks = [rows[i : i + CHUNK_ROWS] for i in range(0, len(rows), CHUNK_ROWS)]
    return track(chunks, total=len(chunks), description=f"tokenising {len(rows):,} rows")


def _encode_chunk(
    rows: Sequence[RawRow], columns: Columns, renderer: Renderer, *, max_length: int | None, listings: list[Listing]
) -> list[Example]:
    """The usable rows of a chunk; what happened to the others (and to truncated ones) is appended to `listings`."""
    rendered: list[tuple[RawRow, Rendered]] = []
    for row in rows:
        try:
            rendered.append((row, renderer.render(row.values, columns)))
        except UnusableRow as why:
            listings.append(Listing(why.reason, row.source, row.row, why.note))
    encoded = tokenise([r for _, r in rendered], renderer.tokenizer, max_length=max_length)
    examples: list[Example] = []
    for (row, text), tokens in zip(rendered, encoded, strict=True):
        listing = _listing_of(row, text, tokens)
        if listing:
            listings.append(listing)
        if not listing or listing.reason == "truncated":
            examples.append(to_example(text, tokens, source=row.source, row=row.row))
    return examples


def _listing_of(row: RawRow, text: Rendered, encoded: Encoded) -> Listing | None:
    cut = f"cut from {encoded.n_full} tokens to {len(encoded.tokens)}"
    if text.label is None and not encoded.loss_mask.any():
        note = cut if encoded.truncated else f"{encoded.n_full} tokens and none of them can be predicted"
        return Listing("no_response_token", row.source, row.row, note)
    return Listing("truncated", row.source, row.row, cut) if encoded.truncated else None


def to_example(text: Rendered, encoded: Encoded, *, source: str, row: int) -> Example:
    """`meta["truncated"]` is true where tokens were cut."""
    return Example(
        id=content_id(encoded.tokens, encoded.loss_mask, text.label),
        tokens=encoded.tokens,
        loss_mask=encoded.loss_mask,
        prompt=text.prompt,
        response=text.response,
        label=text.label,
        group=group_of(text.prompt, text.response, text.label),
        source=source,
        row=row,
        meta={"truncated": encoded.truncated},
    )


def _account(examples: list[Example], rows: RawRows, listings: list[Listing], settings: Mapping[str, Any]) -> Corpus:
    if not examples:
        raise _nothing_left(rows, listings, settings)
    report = CorpusReport(
        rows_read=rows.n_read,
        rows_kept=len(examples),
        listings=tuple(sorted(listings, key=lambda x: (x.source, x.row))),
        duplicates=Duplicates.of(examples),
        tokens=TokenStatistics.of(examples),
        settings=settings,
    )
    return Corpus(tuple(examples), report)


def _nothing_left(rows: RawRows, listings: list[Listing], settings: Mapping[str, Any]) -> DataError:
    first = {listing.reason: listing.note for listing in reversed(listings)}
    counts = Counter(listing.reason for listing in listings)
    why = "; ".join(f"{count} {reason} (first: {first[reason]})" for reason, count in counts.items())
    return DataError(
        f"none of {rows.n_read} rows read from {', '.join(rows.columns)} can be used: {why}. Columns were read as {settings['columns']}, "
        f"with at most {settings['max_length']} tokens; map other columns or raise --max-length"
    )


def _settings(columns: Columns, renderer: Renderer, labels: LabelMap, *, max_length: int | None, own_template: bool) -> dict[str, Any]:
    template = "none" if renderer.template is None else "the tokenizer's own" if own_template else "given"
    settings: dict[str, Any] = {
        "columns": columns.to_json(),
        "chat_template": template,
        "loss_on": renderer.loss_on,
        "max_length": max_length,
    }
    return {**settings, "labels": {"rule": labels.rule, "label2id": dict(labels.names)}} if columns.label else settings


def resolve_columns(rows: RawRows, columns: Columns | None) -> Columns:
    """The given columns, or the usual ones, checked against every source."""
    if columns is None:
        names = dict.fromkeys(itertools.chain.from_iterable(rows.columns.values()))
        columns = Columns.detect(names, source=", ".join(rows.columns))
    for source, names in rows.columns.items():
        columns.check(names, source=source)
    return columns


def resolve_max_length(tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> int | None:
    """The given limit, else the tokenizer's own if it is one at all, else None: no limit."""
    if max_length is None:
        own = tokenizer.model_max_length
        return int(own) if own and own < SANE_MAX_LENGTH else None
    if max_length < 2:
        raise UsageError(f"got max_length {max_length}, expected at least 2: one token to read and one to predict")
    return max_length


# ------------------------------------------------------------------------------------------------------- tokens


@dataclass(frozen=True)
class Encoded:
    """A row's tokens. `characters` [T, 2] are each token's range in the joined pieces, (-1, -1) for added ones; None if not asked for."""

    tokens: np.ndarray
    loss_mask: np.ndarray
    n_full: int  # tokens before truncation
    characters: np.ndarray | None = None

    @property
    def truncated(self) -> bool:
        return len(self.tokens) < self.n_full


def tokenise(
    rendered: Sequence[Rendered], tokenizer: PreTrainedTokenizerBase, *, max_length: int | None, with_characters: bool = False
) -> list[Encoded]:
    """All rows in one call of the tokenizer. Character offsets are computed only where a target begins or ends within a piece."""
    if not rendered:
        return []
    with_offsets = with_characters or not all(_piecewise(row) for row in rendered)
    if with_offsets and not tokenizer.is_fast:
        raise UsageError(
            f"{type(tokenizer).__name__} gives no character offsets, which chat templates and spans need; "
            'load the fast tokenizer, or render without a template (chat template "none")'
        )
    output = tokenizer(
        [piece for row in rendered for piece in row.pieces],
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        return_offsets_mapping=with_offsets,
        verbose=False,
    )
    offsets: Any = output["offset_mapping"] if with_offsets else itertools.repeat(None)
    pieces = iter(zip(output["input_ids"], offsets, strict=False))  # without offsets the second never ends
    return [_assemble(row, list(itertools.islice(pieces, len(row.pieces))), max_length=max_length) for row in rendered]


def _piecewise(row: Rendered) -> bool:
    """Whether each piece is a target as a whole or not at all."""
    return row.all_targets or all(_covers(row.targets, span) or not _touches(row.targets, span) for span in _piece_spans(row))


def _piece_spans(row: Rendered) -> list[Span]:
    ends = list(itertools.accumulate(len(piece) for piece in row.pieces))
    return list(zip([0, *ends], ends))  # noqa: B905  one start too many


def _covers(targets: Sequence[Span], span: Span) -> bool:
    return any(start <= span[0] and span[1] <= end for start, end in targets)


def _touches(targets: Sequence[Span], span: Span) -> bool:
    return any(start < span[1] and span[0] < end for start, end in targets)


def _assemble(row: Rendered, pieces: list[tuple[list[int], list[Span] | None]], *, max_length: int | None) -> Encoded:
    body = [token for tokens, _ in pieces for token in tokens]
    tokens = np.array([*row.opening, *body, *row.closing], dtype=np.int64)
    characters = None if pieces[0][1] is None else _characters(row, [offsets or [] for _, offsets in pieces])
    mask = np.zeros(len(tokens), dtype=bool)
    inside = slice(len(row.opening), len(row.opening) + len(body))
    if row.all_targets:
        mask[:] = True
    elif _piecewise(row):
        mask[inside] = np.repeat([_covers(row.targets, span) for span in _piece_spans(row)], [len(tokens) for tokens, _ in pieces])
    else:
        assert characters is not None
        mask = in_spans(characters, row.targets)
    if row.closing_answers:
        mask[inside.stop :] = True
    mask[:1] = False  # nothing comes before the first token
    keep = _kept_positions(row, len(tokens), max_length)
    return Encoded(tokens[keep], mask[keep], len(tokens), None if characters is None else characters[keep])


def _kept_positions(row: Rendered, n: int, max_length: int | None) -> np.ndarray:
    """The beginning; a closing token that frames the text (BERT's [SEP]) stays at the end."""
    if max_length is None or n <= max_length:
        return np.arange(n)
    n_closing = 0 if row.closing_answers else len(row.closing)
    return np.concatenate([np.arange(max_length - n_closing), np.arange(n - n_closing, n)])


def _characters(row: Rendered, offsets: list[list[Span]]) -> np.ndarray:
    shifted = [np.array(one, dtype=np.int64).reshape(-1, 2) + start for one, (start, _) in zip(offsets, _piece_spans(row), strict=True)]
    inner = np.concatenate(shifted)
    # byte-level tokenizers trim white space from offsets: a token of nothing else is reported as the empty range after it
    inner[:, 0] -= (inner[:, 0] == inner[:, 1]) & (inner[:, 0] > 0)
    added = [np.full((len(tokens), 2), -1) for tokens in (row.opening, row.closing)]
    return np.concatenate([added[0], inner, added[1]])


def in_spans(characters: np.ndarray, spans: Sequence[Span]) -> np.ndarray:
    """[T] whether a token holds a character of one of the spans."""
    mask = np.zeros(len(characters), dtype=bool)
    for start, end in spans:
        mask |= (characters[:, 0] < end) & (characters[:, 1] > start)
    return mask
