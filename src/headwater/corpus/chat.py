"""Conversations as the model's template writes them, and where in that text the assistant speaks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater.corpus.report import UnusableRow
from headwater.types import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]
Span = tuple[int, int]

NO_TEMPLATE = "none"
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
MARKS_ASSISTANT = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Chat:
    """A rendered conversation: its text, and the character ranges of the assistant's turns (end-of-turn marks included)."""

    text: str
    turns: tuple[Span, ...]


def resolve_template(tokenizer: PreTrainedTokenizerBase, chat_template: str | Path | None) -> str | None:
    """The Jinja template to use: the tokenizer's own for None, a file's content for its path, no template at all for "none".

    Raises UsageError for a string that is neither a template nor a file.
    """
    if chat_template is None:
        return tokenizer.get_chat_template() if tokenizer.chat_template else None
    given = str(chat_template)
    if given == NO_TEMPLATE:
        return None
    if "{" in given:
        return given
    if not Path(given).is_file():
        raise UsageError(
            f'got chat template {given!r}, which is neither a Jinja template nor a file; check the path, or "none" for no template'
        )
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"chat template {given}: not readable as UTF-8 text ({error})") from error


def as_messages(value: Any) -> list[Message]:
    """Checked messages with `role` and `content`; ShareGPT's `from` and `value` are renamed. Raises UnusableRow."""
    if value is None:
        raise UnusableRow("empty", "no messages")
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(m, Mapping) for m in value):
        raise UnusableRow("undecodable", f"messages are of type {type(value).__name__}, expected a list of {{role, content}}")
    return [_as_message(m) for m in value]


def _as_message(raw: Message) -> Message:
    # Arrow gives every message of a column the same keys, so an absent one is None
    message = {key: value for key, value in raw.items() if value is not None}
    if "role" not in message and "from" in message:
        role = str(message.pop("from"))
        message = {"role": SHAREGPT_ROLES.get(role, role), "content": message.pop("value", ""), **message}
    if not isinstance(message.get("role"), str) or not isinstance(message.get("content", ""), str):
        raise UnusableRow("undecodable", f"a message with keys {sorted(message)}: expected role and content, both text")
    return message


def render_chat(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, template: str) -> Chat:
    """The conversation's text and the assistant's turns in it.

    Where the template marks what the assistant says (`{% generation %}`), that is taken. Elsewhere turn k runs from the end of the
    rendering of the messages before it (with the generation prompt) to the end of the rendering up to it: what generation would
    have been asked to continue, and what it should have answered. Cost: one rendering plus up to two per turn.
    Raises UnusableRow where the template refuses the conversation, UsageError where it is not valid Jinja or its turns cannot be located.
    """
    if MARKS_ASSISTANT.search(template):
        return _render_marked(messages, tokenizer, template)
    text = _render(messages, tokenizer, template)
    turns = [k for k, message in enumerate(messages) if message["role"] == "assistant"]
    starts = [_turn_start(text, messages[:k], tokenizer, template) for k in turns]
    ends = [_turn_end(text, start, messages[: k + 1], messages, tokenizer, template) for k, start in zip(turns, starts, strict=True)]
    return Chat(text, tuple(zip(starts, ends, strict=True)))


def _render_marked(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, template: str) -> Chat:
    from transformers.utils.chat_template_utils import render_jinja_template

    special: dict[str, Any] = dict(tokenizer.special_tokens_map)
    with _template_errors():
        texts, spans = render_jinja_template(
            [[dict(message) for message in messages]],
            chat_template=template,
            return_assistant_tokens_mask=True,
            **special,
        )
    return Chat(texts[0], tuple((int(start), int(end)) for start, end in spans[0]))


def _render(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, template: str, *, then_answer: bool = False) -> str:
    with _template_errors():
        rendered = tokenizer.apply_chat_template(
            [dict(message) for message in messages], chat_template=template, tokenize=False, add_generation_prompt=then_answer
        )
    assert isinstance(rendered, str)
    return rendered


class _template_errors:
    """A template that does not parse is a wrong option; one that refuses a conversation (roles must alternate, ...) is about the row."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from jinja2 import TemplateError, TemplateSyntaxError

        if isinstance(error, TemplateSyntaxError):
            raise UsageError(f"the chat template is not valid Jinja: line {error.lineno}: {error}; repair it or give another") from error
        if isinstance(error, (TemplateError, TypeError, ValueError)):
            raise UnusableRow("undecodable", f"the chat template refuses it: {error}") from error


def _turn_start(text: str, before: Sequence[Message], tokenizer: PreTrainedTokenizerBase, template: str) -> int:
    if not before:
        return 0
    asked = _render(before, tokenizer, template, then_answer=True)
    if text.startswith(asked):
        return len(asked)
    # some generation prompts open a thinking block that the finished conversation does not have: up to there it must still agree
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(text, asked, strict=False)))
    if common < len(_render(before, tokenizer, template)):
        raise _not_located()
    return common


def _turn_end(
    text: str, start: int, upto: Sequence[Message], messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, template: str
) -> int:
    if len(upto) == len(messages):
        return len(text)
    ended = _render(upto, tokenizer, template)
    if text.startswith(ended):
        return len(ended)
    # templates that write the last turn differently (with an empty thinking block): its words and what ends them are the same
    said = str(upto[-1].get("content", "")).strip()
    closing = ended[ended.rindex(said) + len(said) :] if said in ended else None
    at = text.find(said + closing, start) if said and closing else -1
    if at < 0 or closing is None:
        raise _not_located()
    return at + len(said) + len(closing)


def _not_located() -> UsageError:
    return UsageError(
        "this chat template writes earlier turns differently as the conversation goes on, so the assistant's turns cannot be located; "
        "give a template that marks them with {% generation %} ... {% endgeneration %} (--chat-template FILE)"
    )
