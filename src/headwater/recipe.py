"""Every option, in one place, that a run needs to be repeated. Flags and keyword arguments fill it; a run folder keeps it.

`IndexRecipe` and `TraceRecipe` read and write YAML, and take dotted overrides (`sketch.rank=32`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from headwater.types import UsageError


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ModelOptions(_Options):
    path: str = Field(description="a folder as save_pretrained writes it, an adapter's folder, or a hub id")
    revision: str | None = Field(None, description="commit, tag or branch of a hub id")
    adapter: str | None = Field(None, description="a PEFT adapter on top of it")
    merge: bool = Field(False, description="fold the adapter into the weights, and explain those")
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    task: Literal["causal-lm", "sequence-classification"] | None = Field(None, description="read from the model's config where not given")
    device: str | None = Field(None, description="cuda where there is one, else cpu")


class DataOptions(_Options):
    source: str = Field(description="a file (jsonl, csv, parquet), a save_to_disk folder, or a hub id")
    split: str | None = None
    columns: str | None = Field(None, description="prompt=...,response=... or messages=... or text=...[,label=...]")
    limit: int | None = Field(None, ge=1)
    chat_template: str | None = Field(None, description="Jinja text or a file; the tokenizer's own where not given; 'none' for no template")
    loss_on: Literal["response", "all"] = "response"
    max_length: int | None = Field(None, ge=2)


class ScopeOptions(_Options):
    include: tuple[str, ...] = Field(("*",), description="shell patterns over parameter names, among those that require a gradient")
    exclude: tuple[str, ...] = ()


class SketchOptions(_Options):
    rank: int | None = Field(16, ge=1, description="numbers kept on each side of a block; null keeps every gradient whole")
    whole_below: int = Field(4096, ge=0, description="blocks of at most so many numbers are kept whole")
    seed: int = 0


class StoreOptions(_Options):
    dtype: Literal["float32", "bfloat16", "int8"] = "bfloat16"
    shard_rows: int = Field(512, ge=1)


class EngineOptions(_Options):
    token_budget: int = Field(1024, ge=1, description="tokens of a batch, padding included")


class _Recipe(_Options):
    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Raises UsageError that names each wrong option."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']} (got {e['input']!r})" for e in error.errors())
            raise UsageError(f"options: {wrong}") from error

    @classmethod
    def build(cls, *, config: Path | None = None, flags: Mapping[str, Any] | None = None, overrides: Iterable[str] = ()) -> Self:
        """A YAML file, then flags by dotted name (None: not given), then `name=value` overrides, each over the one before."""
        values: dict[str, Any] = {} if config is None else _read_yaml(config)
        for name, value in (flags or {}).items():
            if value is not None:
                _put(values, name, value)
        for override in overrides:
            name, sign, text = override.partition("=")
            if not sign:
                raise UsageError(f"override {override!r}: expected name=value, for example sketch.rank=32")
            _put(values, name, _yaml(text))
        return cls.parse(values)

    def to_yaml(self) -> str:
        import yaml

        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class IndexRecipe(_Recipe):
    """What `headwater index` does."""

    model: ModelOptions
    data: DataOptions
    scope: ScopeOptions = ScopeOptions()
    sketch: SketchOptions = SketchOptions()
    store: StoreOptions = StoreOptions()
    engine: EngineOptions = EngineOptions()


class TraceRecipe(_Recipe):
    """What `headwater trace` does. `methods` maps each method's name to its options."""

    queries: str | None = Field(None, description="a file of queries; null where they were given directly")
    measure: str | None = Field(None, description="by the kind of query where not given")
    methods: dict[str, dict[str, Any]]
    primary: str = Field(description="the method whose top row the query's tokens are shown for")
    k: int = Field(10, ge=1)
    n_reference: int = Field(128, ge=0, description="training rows that serve as reference queries for the hub correction")
    seed: int = 0


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        value = _yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the recipe {path}: {error.strerror or error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path}: expected a YAML mapping of options, got {type(value).__name__}")
    return value


def _yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"not YAML: {error}") from error


def _put(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise UsageError(f"option {dotted}: {parent} is not a group of options")
    values[last] = value
