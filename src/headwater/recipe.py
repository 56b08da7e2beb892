"""Every option, in one place, that a run needs to be repeated. Flags and keyword arguments fill it; a run folder keeps it.

`IndexRecipe` and `TraceRecipe` read and write YAML, and take dotted overrides (`sketch.rank=32`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from headwater.types import UsageError

DEFAULT_METHODS = ("grad_cos", "grad_dot", "repsim", "repsim_response", "lexical", "length", "loss", "random")


def resolved(source: str) -> str:
    """A path that holds from any folder; what is no path here (a hub id, Jinja text) stays what it is."""
    try:
        return str(Path(source).resolve()) if Path(source).exists() else source
    except (OSError, ValueError):  # too long for a name, or with a character that no name has
        return source


Place = Annotated[str, AfterValidator(resolved)]


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ModelOptions(_Options):
    path: Place = Field(description="a folder as save_pretrained writes it, an adapter's folder, or a hub id")
    revision: str | None = Field(default=None, description="commit, tag or branch of a hub id")
    adapter: Place | None = Field(default=None, description="a PEFT adapter on top of it")
    merge: bool = Field(default=False, description="fold the adapter into the weights, and explain those")
    zero_adapter: bool = Field(default=False, description="set a LoRA's B to zero: the base model, in the adapter's directions")
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    task: Literal["causal-lm", "sequence-classification"] | None = Field(
        default=None, description="read from the model's config where not given"
    )
    device: str | None = Field(default=None, description="cuda where there is one, else cpu")


class DataOptions(_Options):
    source: Place = Field(description="a file (jsonl, csv, parquet), a save_to_disk folder, or a hub id")
    split: str | None = None
    columns: str | None = Field(default=None, description="prompt=...,response=... or messages=... or text=...[,label=...]")
    limit: int | None = Field(default=None, ge=1)
    chat_template: Place | None = Field(
        None, description="Jinja text or a file; the tokenizer's own where not given; 'none' for no template"
    )
    loss_on: Literal["response", "all"] = "response"
    max_length: int | None = Field(default=None, ge=2)


class ScopeOptions(_Options):
    include: tuple[str, ...] = Field(default=("*",), description="shell patterns over parameter names, among those that require a gradient")
    exclude: tuple[str, ...] = ()


class SketchOptions(_Options):
    rank: int | None = Field(default=16, ge=1, description="numbers kept on each side of a block; null keeps every gradient whole")
    whole_below: int = Field(default=4096, ge=0, description="blocks of at most so many numbers are kept whole")
    seed: int = 0


class StoreOptions(_Options):
    dtype: Literal["float32", "bfloat16", "int8"] = "bfloat16"
    shard_rows: int = Field(default=512, ge=1)
    rept_layer: int | None = Field(default=None, description="keep the feature of the method rept at this layer; -1 is the last")


class EngineOptions(_Options):
    token_budget: int = Field(
        default=2048, ge=1, description="tokens in flight, padding included; on a processor in batches of at most 1,024, side by side"
    )


class TransformOptions(_Options):
    kind: Literal["none", "adam", "second_moment"] = Field(default="none", description="what becomes of a row's gradient before the sketch")
    optimizer: Place | None = Field(default=None, description="the checkpoint folder whose optimizer state it takes")

    @field_validator("optimizer")
    @classmethod
    def _where_needed(cls, optimizer: str | None, info: ValidationInfo) -> str | None:
        if (optimizer is None) != (info.data.get("kind") == "none"):
            raise ValueError("expected a checkpoint folder with an optimizer's state for adam and second_moment, and null for none")
        return optimizer


Role = Literal["checkpoint", "base", "seed", "adam", "second_moment"]


class MemberOptions(_Options):
    """Further indexes of the same rows. See `types.MemberRole`."""

    from_run: Place | None = Field(default=None, description="the folder that a Hugging Face Trainer wrote")
    base: Place | None = Field(default=None, description="the model before fine-tuning")
    sketch_seeds: tuple[int, ...] = Field(default=(), description="one seed member for each")
    seed_models: tuple[Place, ...] = Field(default=(), description="models of other training runs, one for each of the sketch seeds")
    roles: tuple[Role, ...] | None = Field(default=None, description="the checkpoints of from_run where not given")

    @field_validator("roles")
    @classmethod
    def _what_they_need(cls, roles: tuple[Role, ...] | None, info: ValidationInfo) -> tuple[Role, ...]:
        given = info.data
        if roles is None:
            roles = ("checkpoint",) if given.get("from_run") else ()
        of_training = [role for role in roles if role in ("checkpoint", "adam", "second_moment")]
        if of_training and not given.get("from_run"):
            raise ValueError(f"{', '.join(of_training)} members are made from the output folder of a Trainer: give it (--from-run)")
        if ("seed" in roles) != bool(given.get("sketch_seeds")):
            raise ValueError("seed members and sketch_seeds belong together (--members seed --sketch-seeds 1,2): got one without the other")
        if given.get("seed_models") and len(given["seed_models"]) != len(given.get("sketch_seeds", ())):
            raise ValueError("seed_models are of as many runs as there are sketch_seeds: each member has a model and a seed of its own")
        if given.get("base") and "base" not in roles:
            raise ValueError("a base model is given and no base member asked for: expected base among them (--members base)")
        return tuple(dict.fromkeys(roles))


class _Recipe(_Options):
    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Raises UsageError that names each wrong option, and what would be right."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UsageError(f"options: {'; '.join(cls._explain(dict(found)) for found in error.errors())}") from error

    @classmethod
    def _explain(cls, found: Mapping[str, Any]) -> str:
        name = ".".join(map(str, found["loc"]))
        if found["type"] == "extra_forbidden":
            return f"there is no option {name}; there are: {', '.join(cls._names(found['loc'][:-1]))}"
        if found["type"] == "missing":
            return f"{name} is not given"
        wrong = str(found["msg"]).removeprefix("Value error, ")
        return f"{name} is {found['input']!r}: {wrong[:1].lower()}{wrong[1:]}"

    @classmethod
    def _names(cls, group: tuple[int | str, ...]) -> list[str]:
        """The options of a group, by dotted name."""
        options: Any = cls
        for name in group:
            options = options.model_fields[str(name)].annotation
        return [".".join([*map(str, group), name]) for name in options.model_fields]

    @classmethod
    def build(cls, *, config: Path | None = None, flags: Mapping[str, Any] | None = None, overrides: Iterable[str] = ()) -> Self:
        """A YAML file, then flags by dotted name (None: not given), then `name=value` overrides, each over the one before."""
        values = {} if config is None else read_yaml(config)
        for name, value in (flags or {}).items():
            if value is not None:
                _put(values, name, value)
        for override in overrides:
            name, sign, text = override.partition("=")
            if not sign:
                raise UsageError(f"override {override!r}: expected name=value, for example sketch.rank=32")
            _put(values, name, _yaml(text, where=f"override {override!r}: "))
        return cls.parse(values)

    def to_yaml(self) -> str:
        import yaml

        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)  # as ASCII: YAML reads some bare characters as a line's end


class IndexRecipe(_Recipe):
    """What `headwater index` does."""

    model: ModelOptions
    data: DataOptions
    scope: ScopeOptions = ScopeOptions()
    sketch: SketchOptions = SketchOptions()
    store: StoreOptions = StoreOptions()
    engine: EngineOptions = EngineOptions()
    transform: TransformOptions = TransformOptions()
    members: MemberOptions = MemberOptions()


class TraceRecipe(_Recipe):
    """What `headwater trace` does."""

    queries: Place | None = Field(default=None, description="a file of queries; null where they were given directly")
    measure: str | None = Field(default=None, description="by the kind of query where not given")
    methods: dict[str, dict[str, Any]] = Field(
        default={name: {} for name in DEFAULT_METHODS}, min_length=1, description="each method's name with its options"
    )
    primary: str = Field(default="", description="the method whose top row the query's tokens are shown for; the first one where not given")
    k: int = Field(default=10, ge=1)
    tokens: int = Field(default=0, ge=0, description="first rows of the primary method whose scores are taken apart token by token")
    n_reference: int = Field(default=128, ge=0, description="training rows that serve as reference queries for the hub correction")
    seed: int = 0

    @field_validator("methods", mode="before")
    @classmethod
    def _options_of_each(cls, methods: Any) -> Any:
        """A list of names will do, and a name alone in YAML (`repsim:`): both stand for a method's own defaults."""
        if isinstance(methods, Mapping):
            return {name: {} if options is None else options for name, options in methods.items()}
        return methods if isinstance(methods, str) else {str(name): {} for name in methods}

    @field_validator("primary")
    @classmethod
    def _one_of_the_methods(cls, primary: str, info: ValidationInfo) -> str:
        names = list(info.data.get("methods", {}))
        if names and primary and primary not in names:
            raise ValueError(f"expected one of the methods asked for, {', '.join(names)}")
        return primary or next(iter(names), "")


class RepairRecipe(_Recipe):
    """What `headwater repair` does with the rows that a method chooses: each step takes them all."""

    lr: float = Field(gt=0, description="learning rate; without a default, since it decides how much happens at all")
    rows: int = Field(default=10, ge=1, description="rows to step on, and of each random control")
    steps: int = Field(default=10, ge=1)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    kind: Literal["helpful", "harmful"] = Field(default="helpful", description="down the loss of helpful rows, or up that of harmful ones")
    clip: float = Field(default=1.0, gt=0, description="largest norm of a step's gradient")
    draws: int = Field(default=5, ge=2, description="random controls")
    seed: int = 0


class DesignOptions(_Options):
    kind: str = Field(default="half", description="which rows are kept: see `headwater.truth.design.KINDS`")
    subsets: int = Field(default=100, ge=1, description="how many sets of rows")
    fraction: float = Field(default=0.5, gt=0, lt=1, description="of the rows in each set, for share")
    k: int | None = Field(default=None, ge=1, description="rows that are left out, for leave-out, top, bottom, zero and random")
    by: str = Field(default="group", description="column of the row table, for leave-group-out: source, label, group")
    scores: Place | None = Field(default=None, description="a .npy file, a number for each row ([N], or [Q, N]), for top, bottom and zero")
    seed: int = Field(default=0, ge=0)

    @field_validator("fraction")
    @classmethod
    def _where_it_means_something(cls, fraction: float, info: ValidationInfo) -> float:
        if fraction != 0.5 and info.data.get("kind") == "half":
            raise ValueError("a half is 0.5; for another share the design is share")
        return fraction


class TruthRecipe(_Recipe):
    """What `headwater truth` does: how a run's model would answer had it been trained on other rows."""

    queries: Place | None = Field(default=None, description="a file of queries; those of the newest trace where not given")
    measure: str | None = Field(default=None, description="by the kind of query where not given")
    design: DesignOptions = DesignOptions()
    seeds: int = Field(default=3, ge=1, description="trainings of each set of rows, with the seeds 0, 1, ...")
    start: Literal["cold", "warm"] = Field(default="cold", description="from the base model, or from the final weights")
    base: Place | None = Field(default=None, description="the model before fine-tuning, for a cold start; the run's own where it says")
    training: dict[str, Any] | None = Field(
        default=None, description="`headwater.truth.finetune.Recipe`; from the run's Trainer folder where not given"
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """The options in a YAML file. Raises UsageError where it cannot be read or is no mapping."""
    try:
        value = _yaml(path.read_text(encoding="utf-8"), where=f"{path}: ")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the recipe {path}: {error}; expected a YAML file in UTF-8") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path}: expected a YAML mapping of options, got {type(value).__name__}")
    return value


def _yaml(text: str, *, where: str = "") -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{where}not YAML: {' '.join(str(error).split())}; expected lines such as `sketch:` and `  rank: 32`") from error


def _put(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        group = values.get(parent) or {}
        if not isinstance(group, dict):
            raise UsageError(f"option {dotted}: {parent} is {group!r} and no group of options")
        values[parent] = group
        values = group
    values[last] = value
