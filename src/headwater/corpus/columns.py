"""Which column of a table plays which role."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Literal

from headwater.types import DataError, UsageError

Form = Literal["prompt_response", "messages", "text", "classification"]

USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "prompts", "instruction", "question"),
    "response": ("response", "responses", "completion", "output", "answer"),
    "messages": ("messages", "conversations"),
    "text": ("text",),
    "label": ("label",),
}
FORMS: dict[frozenset[str], Form] = {
    frozenset({"prompt", "response"}): "prompt_response",
    frozenset({"messages"}): "messages",
    frozenset({"text"}): "text",
    frozenset({"text", "label"}): "classification",
}
HOW_TO_MAP = "map them, for example --columns prompt=question,response=answer (or messages=..., or text=..., or text=...,label=...)"


@dataclass(frozen=True)
class Columns:
    """Roles to column names: `prompt` + `response`, `messages`, `text`, or `text` + `label`.

    `input` is Alpaca's second half of an instruction: where it is not blank it follows the prompt after an empty line.
    Raises UsageError for any other combination of roles.
    """

    prompt: str | None = None
    response: str | None = None
    messages: str | None = None
    text: str | None = None
    label: str | None = None
    input: str | None = None

    def __post_init__(self) -> None:
        roles = frozenset(self.to_json()) - {"input"}
        if roles not in FORMS or (self.input and not self.prompt):
            raise UsageError(f"columns are mapped for {sorted(self.to_json()) or 'no role'}: expected one complete form; {HOW_TO_MAP}")

    @property
    def form(self) -> Form:
        return FORMS[frozenset(self.to_json()) - {"input"}]

    def to_json(self) -> dict[str, str]:
        """{role: column}, the roles in use only."""
        return {role: name for role, name in vars(self).items() if name is not None}

    def check(self, names: Iterable[str], *, source: str) -> None:
        """Raise DataError unless every mapped column is among `names`, the columns that `source` has."""
        names = list(names)
        missing = [f"{name!r} (for {role})" for role, name in self.to_json().items() if name not in names]
        if missing:
            raise DataError(f"{source}: got columns {names}, expected {', '.join(missing)} too; {HOW_TO_MAP}")

    @staticmethod
    def parse(spec: str) -> Columns:
        """`"prompt=question,response=answer"` -> Columns. Raises UsageError."""
        pairs = [part.partition("=") for part in spec.split(",")]
        mapping = {role.strip(): name.strip() for role, _, name in pairs}
        if len(mapping) < len(pairs):
            raise UsageError(f"got columns {spec!r}, expected each role once; {HOW_TO_MAP}")
        return Columns.of(mapping)

    @staticmethod
    def of(mapping: Mapping[str, str]) -> Columns:
        """{role: column} -> Columns. Raises UsageError for a role that does not exist or a column without a name."""
        known = [f.name for f in fields(Columns)]
        wrong = [f"{role}={name}" for role, name in mapping.items() if role not in known or not name]
        if wrong:
            raise UsageError(f"got {wrong} among the columns, expected role=column with roles among {known}; {HOW_TO_MAP}")
        return Columns(**mapping)

    @staticmethod
    def detect(names: Iterable[str], *, source: str = "the data") -> Columns:
        """Columns by their exact usual names. Raises UsageError where none or more than one reading is possible."""
        names = list(names)
        found = {role: [name for name in usual if name in names] for role, usual in USUAL_NAMES.items()}
        forms = [roles for roles in FORMS if all(found[role] for role in roles)]
        if frozenset({"text", "label"}) in forms:
            forms.remove(frozenset({"text"}))
        readings = [{role: found[role] for role in roles} for roles in forms]
        if len(readings) != 1 or any(len(candidates) > 1 for candidates in readings[0].values()):
            what = f"can be read in several ways ({readings})" if readings else "have none of the usual names"
            raise UsageError(f"{source}: got columns {names}, which {what}; {HOW_TO_MAP}")
        chosen = {role: candidates[0] for role, candidates in readings[0].items()}
        if chosen.get("prompt") == "instruction" and "input" in names:
            chosen["input"] = "input"
        return Columns(**chosen)


def as_columns(value: Columns | str | Mapping[str, str] | None) -> Columns | None:
    """What a user may give for columns, as Columns; None stays None (detect)."""
    if value is None or isinstance(value, Columns):
        return value
    return Columns.parse(value) if isinstance(value, str) else Columns.of(value)
