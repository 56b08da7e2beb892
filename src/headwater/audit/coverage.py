"""Coverage: how much of what training moved the trace looks at, and whether the loss stands on the tokens that it should.

S sampled rows · T positions · D numbers of a whole gradient
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from headwater.audit.check import Need, Report
from headwater.audit.numerics import graded
from headwater.audit.sampled import layout_of, some_positions
from headwater.audit.subject import Subject
from headwater.corpus import collate
from headwater.corpus.chat import NO_TEMPLATE
from headwater.corpus.columns import Columns
from headwater.corpus.encode import tokenise
from headwater.corpus.labels import LabelMap
from headwater.corpus.render import Renderer
from headwater.corpus.report import UnusableRow
from headwater.evaluate.figure import mean_figure
from headwater.gradient.check import autograd_row
from headwater.gradient.scope import find_scope, matrix_shape
from headwater.model.measures import LOSS
from headwater.model.session import Session
from headwater.types import Block, Example, Finding, HeadwaterError, Layout

PAIR = Columns(prompt="prompt", response="response")


@dataclass(frozen=True)
class Coverage:
    """Shares of the trained parameters and of the gradient's norm in scope; and of the loss positions on what is no response.

    Scope: below `wide` of either is `warn`, and a gradient norm below `narrow` is `fail`: what is scored is then nearly orthogonal to what
    a row does to the model. Loss: padding is `fail` above `padding` (one position in a thousand is an accident, more is a mask that was
    forgotten; the paper's v2 code had 59 to 78 % there), a prompt above `prompt` is `warn`, since `loss_on="all"` may be how the model
    was trained.
    """

    name: ClassVar[str] = "coverage"
    summary: ClassVar[str] = "share of parameters and gradient norm in scope; share of loss positions on padding, prompt, special tokens"
    reference: ClassVar[str] = ""
    needs: ClassVar[frozenset[Need]] = frozenset()

    rows: int = 8
    texts: int = 256
    wide: float = 0.9
    narrow: float = 0.1
    padding: float = 0.001
    prompt: float = 0.05
    special: float = 0.5

    def passes(self, subject: Subject) -> float:
        return 2 * min(self.rows, len(subject.rows)) / max(len(subject.rows), 1)

    def __call__(self, subject: Subject) -> Report:
        trained, inside = _trained(subject.session), layout_of(subject)
        return Report([self._parameters(trained, inside), self._norm(subject, trained, inside), self._positions(subject)])

    def _parameters(self, trained: Layout, inside: Layout) -> Finding:
        names = {block.name for block in inside.blocks}
        n_trained = sum(block.size for block in trained.blocks)
        share = sum(block.size for block in trained.blocks if block.name in names) / n_trained
        status = graded(1 - share, warn=1 - self.wide, fail=1)
        because = f"{share:.1%} of {n_trained:,} parameters that require a gradient are in scope."
        return Finding("coverage: parameters", status, because, value=share, n=n_trained, next_step=_widen(status, trained, names))

    def _norm(self, subject: Subject, trained: Layout, inside: Layout) -> Finding:
        names = {block.name for block in inside.blocks}
        rows = subject.examples(some_positions(subject, self.rows, key=2))
        shares_S = np.array([_share_inside(subject.session, trained, row, names) for row in rows])
        figure = mean_figure(shares_S, over="rows", seed=subject.seed)
        if not figure.n:
            because = f"Not measured: none of {len(rows)} sampled rows has a finite gradient."
            return Finding("coverage: gradient norm", "unknown", because, next_step="See numerics: dtype.")
        status = graded(1 - figure.value, warn=1 - self.wide, fail=1 - self.narrow)
        because = (
            f"The gradient in scope has {figure.value:.1%} of the norm of a row's whole gradient, which is its cosine with it: the mean of "
            f"{figure.n} rows."
        )
        return Finding(
            "coverage: gradient norm", status, because, value=figure.value, interval=figure.interval, n=figure.n,
            next_step=_widen(status, trained, names),
        )  # fmt: skip

    # -------------------------------------------------------------------------------------------------- loss positions

    def _positions(self, subject: Subject) -> Finding:
        name = "coverage: loss positions"
        if all(row.label is not None for row in subject.rows):
            return Finding(name, "ok", "The loss of a row is that of its class: it has no positions.", n=len(subject.rows))
        total = sum(row.n_loss_tokens for row in subject.rows)
        if not total:
            step = "Look at the loss masks: a response may have been cut off by max_length."
            return Finding(name, "fail", "No row has a position that counts in the loss.", value=0.0, n=0, next_step=step)
        padded = sum(int((padding(row, subject.session) & row.loss_mask).sum()) for row in subject.rows) / total
        special = sum(_on_special(row, subject.session) for row in subject.rows) / total
        prompted, n_known = _on_prompts(subject, self.texts)
        share = padded + prompted
        status = "fail" if padded > self.padding else "warn" if max(prompted / self.prompt, special / self.special) > 1 else "ok"
        border = f"({n_known} sampled rows whose border is known)" if n_known else "(no row's border between prompt and response is known)"
        because = (
            f"Of {total:,} loss positions {padded:.1%} are on padding, {prompted:.1%} on the prompt {border} and {special:.1%} on special "
            "tokens."
        )
        return Finding(
            name, status, because, value=share, unit="share of loss positions", n=total, next_step=self._step(padded, prompted, status)
        )

    def _step(self, padded: float, prompted: float, status: str) -> str | None:
        if status == "ok":
            return None
        if padded > self.padding:
            return (
                "The loss mask counts padding: mask it out in training (labels of -100) and encode the rows without it; then index again."
            )
        if prompted > self.prompt:
            return 'If the model was trained on responses alone, index with --set data.loss_on=response; if on all, read "loss" as such.'
        return "Most of the loss is on special tokens: responses are very short, or a template repeats; a content measure says more."


def padding(row: Example, session: Session) -> np.ndarray:
    """[T] whether a position holds padding: its token, but for the first of a run where that token also opens or ends a text."""
    pad = getattr(session.tokenizer, "pad_token_id", None)
    if pad is None:
        return np.zeros(row.n_tokens, dtype=bool)
    is_pad_T = row.tokens == pad
    if pad in (session.tokenizer.bos_token_id, session.tokenizer.eos_token_id):
        return is_pad_T & np.concatenate([[False], is_pad_T[:-1]])
    return is_pad_T


def prompt_end(row: Example, renderers: Sequence[Renderer]) -> int | None:
    """How many tokens stand before the response, by encoding its text again with the loss on the response; None where no way of doing so
    gives the row's tokens (text that was cut before its response), or the row has targets in several turns."""
    for renderer in renderers:
        try:
            rendered = renderer.render({"prompt": row.prompt, "response": row.response}, PAIR)
            again = tokenise([rendered], renderer.tokenizer, max_length=None)[0]
        except (HeadwaterError, UnusableRow):
            continue
        n, targets = min(len(again.tokens), row.n_tokens), np.flatnonzero(again.loss_mask)
        if len(targets) and targets[0] < n and np.array_equal(again.tokens[:n], row.tokens[:n]):
            return None if _in_turns(row, int(targets[0])) else int(targets[0])
    return None


def _in_turns(row: Example, end: int) -> bool:
    """Whether targets before the border are followed by what is none: an earlier turn's answer, not a loss on everything."""
    before = np.flatnonzero(row.loss_mask[:end])
    return bool(len(before)) and not row.loss_mask[before[0] : end].all()


def _on_prompts(subject: Subject, n_texts: int) -> tuple[float, int]:
    """(share of loss positions before the response, over how many rows): the mask of a sample of the rows that have a prompt."""
    rows = [row for row in subject.examples(some_positions(subject, n_texts, key=3)) if row.label is None]
    if not any(row.prompt for row in rows):
        return 0.0, 0
    templates = [None, NO_TEMPLATE] if subject.session.tokenizer.chat_template else [NO_TEMPLATE]
    labels = LabelMap.fit([], None)
    renderers = [
        Renderer.make(subject.session.tokenizer, chat_template=template, loss_on="response", labels=labels) for template in templates
    ]
    ends = [(row, prompt_end(row, renderers) if row.prompt else 0) for row in rows]
    known = [(int(row.loss_mask[:end].sum()), row.n_loss_tokens) for row, end in ends if end is not None]
    before, total = (sum(counts) for counts in zip(*known, strict=True)) if known else (0, 0)
    return before / max(total, 1), len(known)


def _on_special(row: Example, session: Session) -> int:
    special = np.isin(row.tokens, list(getattr(session.tokenizer, "all_special_ids", [])))
    return int((special & ~padding(row, session) & row.loss_mask).sum())


def _trained(session: Session) -> Layout:
    """Every parameter that requires a gradient, whole."""
    parameters = dict(session.model.named_parameters())
    shapes = {name: matrix_shape(parameters[name]) for name in find_scope(session.model).names}
    return Layout(tuple(Block(name, shape, shape) for name, shape in shapes.items()))


def _share_inside(session: Session, trained: Layout, row: Example, names: set[str]) -> float:
    """`||g in scope|| / ||g||` of one row; NaN where its gradient is not finite or zero. Memory: one gradient of the whole model."""
    parts = trained.split(autograd_row(session, trained, collate([row], pad_id=session.pad_id), LOSS))
    squares = {name: float(part.double().square().sum()) for name, part in parts.items()}
    total = sum(squares.values())
    inside = sum(square for name, square in squares.items() if name in names)
    return (inside / total) ** 0.5 if np.isfinite(total) and total > 0 else np.nan


def _widen(status: str, trained: Layout, names: set[str]) -> str | None:
    if status == "ok":
        return None
    left = sorted((block for block in trained.blocks if block.name not in names), key=lambda block: -block.size)
    return f"Index with more in scope (--set scope.include); the largest tensors left out: {', '.join(block.name for block in left[:3])}."
