"""What an index is: layout, dtype, shard size and the facts its numbers rest on. Written once; everything else is held against it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from headwater.atomic import read_json, write_json
from headwater.types import IntegrityError, Layout, LayoutMismatch, UsageError

FORMAT = 1
Dtype = Literal["float32", "bfloat16", "int8"]
MEANING = {"layout", "gradient_of", "dtype", "hidden_size", "extra"}  # a difference in these changes what a stored number means

_WAY_OUT = "Use the options of the first run, or another folder (-o)."


@dataclass(frozen=True)
class IndexSpec:
    """`index.json`. `hidden_size` is None where no representations are kept.

    `extra` are further features of a row by name, each with its "width" and whatever decides its numbers; see `headwater.gradient.extra`.
    `facts` is what the numbers rest on (model fingerprint, task, loss, ...), as JSON. It is compared whole when an index is
    opened again: put in it what must not change between two runs that fill one index, and nothing else.
    """

    layout: Layout
    dtype: Dtype = "float32"
    gradient_of: str = "loss"
    hidden_size: int | None = None
    shard_rows: int = 512
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    extra: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.dtype not in get_args(Dtype):
            raise UsageError(f"dtype is {self.dtype!r}, expected one of {', '.join(get_args(Dtype))}")
        if self.shard_rows < 1:
            raise UsageError(f"shard_rows is {self.shard_rows}, expected 1 or more")

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        extra = {"extra": {name: dict(about) for name, about in self.extra.items()}} if self.extra else {}
        return {
            **extra,  # only where there is any: an index without keeps the fingerprint that it always had
            "format": self.format,
            "layout": self.layout.to_json(),
            "gradient_of": self.gradient_of,
            "dtype": self.dtype,
            "hidden_size": self.hidden_size,
            "shard_rows": self.shard_rows,
            "facts": json.loads(json.dumps(self.facts)),  # what a reader will see: lists for tuples, string keys
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> IndexSpec:
        """Raises KeyError, TypeError or ValueError where `value` is no spec; IntegrityError where its format is another."""
        if value["format"] != FORMAT:
            raise IntegrityError(
                f"the index has format {value['format']}, this version of headwater reads {FORMAT}: use the version that wrote it"
            )
        return IndexSpec(**{**value, "layout": Layout.from_json(value["layout"])})

    def check(self, other: IndexSpec) -> None:
        """Raise unless `other` is this spec: LayoutMismatch where stored numbers would differ in meaning, IntegrityError for the rest."""
        differ = _differences(self.to_json(), other.to_json())
        if not differ:
            return
        fields = ", ".join(differ.values())
        if differ.keys() & MEANING:
            raise LayoutMismatch(f"the index here holds other numbers than asked for; fields that differ: {fields}. {_WAY_OUT}")
        raise IntegrityError(f"the index here was made with other options; fields that differ: {fields}. {_WAY_OUT}")


def spec_path(run: Path) -> Path:
    return run / "index" / "index.json"


def read_spec(run: Path) -> IndexSpec:
    """The spec of the index in `run`. Raises IntegrityError where there is none, or it is damaged."""
    path = spec_path(run)
    if not path.exists():
        raise IntegrityError(f"there is no index in {run} ({path} does not exist). Make one with `headwater index MODEL DATA -o {run}`.")
    way_out = "It is written once and never changed, so it was damaged from outside: restore it, or index again into another folder."
    value = read_json(path, way_out=way_out)
    try:
        return IndexSpec.from_json(value)
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{path} is not the description of an index ({type(error).__name__}: {error}). {way_out}") from error


def create_spec(run: Path, spec: IndexSpec) -> None:
    """Write the spec into `run`, or check that the one there is the same."""
    if spec_path(run).exists():
        return read_spec(run).check(spec)
    return write_json(spec_path(run), spec.to_json())


def _differences(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, str]:
    """{field: "field (here ..., asked ...)"}; the facts are compared one by one, the layout by its fingerprint."""
    flat = [{**value, **{f"facts.{k}": v for k, v in value["facts"].items()}} for value in (mine, theirs)]
    found = {}
    for key in sorted({*flat[0], *flat[1]} - {"facts"}):
        here, asked = (side.get(key, "nothing") for side in flat)
        if here != asked:
            found[key] = f"{key} (here {_short(key, here)}, asked {_short(key, asked)})"
    return found


def _short(key: str, value: Any) -> str:
    return Layout.from_json(value).fingerprint if key == "layout" else json.dumps(value)[:60]
