"""From a row's columns to the text that the model reads, and which characters of it are the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from headwater.corpus.chat import Message, Span, as_messages, render_chat, resolve_template
from headwater.corpus.columns import Columns
from headwater.corpus.labels import LabelMap
from headwater.corpus.report import UnusableRow
from headwater.types import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LossOn = Literal["response", "all"]
Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Rendered:
    """A row before tokenisation.

    The pieces are tokenised one by one, so that no token crosses from one into the next; `targets` are character ranges over
    the joined pieces. `opening` and `closing` are special tokens put around them.
    """

    pieces: tuple[str, ...]
    targets: tuple[Span, ...]
    prompt: str
    response: str
    response_at: int | None = None  # where in the joined pieces the response begins; None where the template rewrote it
    label: int | None = None
    opening: Tokens = ()
    closing: Tokens = ()
    closing_answers: bool = False  # the closing token is part of the answer: a target, and cut by truncation like the rest
    all_targets: bool = False  # every token but the first


@dataclass(frozen=True)
class SpecialTokens:
    """What the tokenizer puts around a text by itself: <s> and the like."""

    opening: Tokens
    closing: Tokens

    @staticmethod
    def of(tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
        """Seen from one example, because tokenizers have no common way to ask."""
        probe = tokenizer("a", return_special_tokens_mask=True)
        tokens: list[int] = list(probe["input_ids"])  # type: ignore[arg-type]
        special: list[int] = list(probe["special_tokens_mask"])  # type: ignore[arg-type]
        if 0 not in special:  # "a" is not in the vocabulary, so nothing shows where the text would stand
            ends = [token for token in tokens if token in (tokenizer.eos_token_id, tokenizer.sep_token_id)]
            return SpecialTokens(tuple(tokens[: len(tokens) - len(ends)]), tuple(ends))
        first, last = special.index(0), len(special) - special[::-1].index(0)
        return SpecialTokens(tuple(tokens[:first]), tuple(tokens[last:]))


@dataclass(frozen=True)
class Renderer:
    """How rows become text under one tokenizer: the same for training rows and for queries."""

    tokenizer: PreTrainedTokenizerBase
    template: str | None
    loss_on: LossOn
    special: SpecialTokens
    labels: LabelMap

    @staticmethod
    def make(tokenizer: PreTrainedTokenizerBase, *, chat_template: str | Path | None, loss_on: LossOn, labels: LabelMap) -> Renderer:
        if loss_on not in get_args(LossOn):
            raise UsageError(f"got loss_on {loss_on!r}, expected one of {list(get_args(LossOn))}")
        template = resolve_template(tokenizer, chat_template)
        return Renderer(tokenizer, template, loss_on, SpecialTokens.of(tokenizer), labels)

    def render(self, values: Mapping[str, Any], columns: Columns) -> Rendered:
        """Raises UnusableRow (empty, undecodable, no_response_token) for the row, UsageError where no row could be rendered."""
        if columns.form == "classification":
            return self._classified(values, columns)
        if columns.form == "text":
            return self._text(text_of(values, columns.text))
        if columns.form == "messages":
            return self._chat(as_messages(values.get(str(columns.messages))))
        prompt, response = prompt_of(values, columns), text_of(values, columns.response)
        if self.template is None:
            return self._prompt_response(prompt, response)
        return self._chat([{"role": "user", "content": prompt}, {"role": "assistant", "content": response}], prompt=prompt)

    def _prompt_response(self, prompt: str, response: str) -> Rendered:
        """Prompt and response are tokenised apart, as in generation: the model was given the prompt's own tokens. Then the end token."""
        eos = self.tokenizer.eos_token_id
        return Rendered(
            pieces=(prompt, response),
            targets=((len(prompt), len(prompt) + len(response)),),
            prompt=prompt,
            response=response,
            response_at=len(prompt),
            opening=self.special.opening,
            closing=() if eos is None else (int(eos),),  # type: ignore[arg-type]
            closing_answers=True,
            all_targets=self.loss_on == "all",
        )

    def _text(self, text: str) -> Rendered:
        return Rendered((text,), (), "", text, 0, opening=self.special.opening, closing=self.special.closing, all_targets=True)

    def _classified(self, values: Mapping[str, Any], columns: Columns) -> Rendered:
        text, label = text_of(values, columns.text), self.labels.to_id(values.get(str(columns.label)))
        return Rendered((text,), (), text, "", label=label, opening=self.special.opening, closing=self.special.closing)

    def _chat(self, messages: list[Message], *, prompt: str | None = None) -> Rendered:
        """The conversation is one piece, as the template and the training code see it, with the answer found by character offsets."""
        if self.template is None:
            raise UsageError("got messages, but this tokenizer has no chat template; give one with --chat-template FILE")
        answer = _check_messages(messages, loss_on=self.loss_on)
        chat = render_chat(messages, self.tokenizer, self.template)
        start, end = chat.turns[-1] if chat.turns else (len(chat.text), len(chat.text))
        return Rendered(
            pieces=(chat.text,),
            targets=chat.turns,
            prompt=chat.text[:start] if prompt is None else prompt,
            response=chat.text[start:end] if answer is None else answer,
            response_at=None if answer is None else _find_answer(chat.text, answer, start),
            all_targets=self.loss_on == "all",
        )


def _check_messages(messages: list[Message], *, loss_on: LossOn) -> str | None:
    """The last answer's text (None where it is a tool call without words). Raises UnusableRow for a conversation without one."""
    for message in messages:
        _check_text(message.get("content", ""))
    answers = [message for message in messages if message["role"] == "assistant"]
    if not any(message.get("content", "").strip() for message in messages):
        raise UnusableRow("empty", "no message has text")
    if answers and not any(message.get("content", "").strip() or message.get("tool_calls") for message in answers):
        raise UnusableRow("empty", "the assistant says nothing")
    if not answers and loss_on == "response":
        raise UnusableRow("no_response_token", "no assistant turn")
    return answers[-1].get("content") if answers else None


def _find_answer(text: str, answer: str, start: int) -> int | None:
    """Where the answer begins in the rendered text; templates may trim white space around it."""
    trimmed = answer.strip()
    at = text.find(trimmed, start)
    return None if at < 0 else at - answer.index(trimmed)


def prompt_of(values: Mapping[str, Any], columns: Columns) -> str:
    """The prompt, which may be blank, with Alpaca's input after it."""
    prompt = text_of(values, columns.prompt, may_be_blank=True)
    more = text_of(values, columns.input, may_be_blank=True) if columns.input else ""
    return f"{prompt}\n\n{more}" if more.strip() else prompt


def text_of(values: Mapping[str, Any], column: str | None, *, may_be_blank: bool = False) -> str:
    """The column's text. Raises UnusableRow where it is blank, absent, no text, or not encodable as UTF-8."""
    value = values.get(str(column))
    value = "" if value is None else value
    if not isinstance(value, str):
        raise UnusableRow("undecodable", f"{column} is of type {type(value).__name__}, expected text")
    _check_text(value)
    if not may_be_blank and not value.strip():
        raise UnusableRow("empty", f"{column} is blank")
    return value


def _check_text(value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UnusableRow("undecodable", f"a lone surrogate at character {error.start}: half of a broken emoji, most likely") from error
