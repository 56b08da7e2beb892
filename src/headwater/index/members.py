"""The members of a run: which ones a recipe asks for, each as a recipe of its own, and their making."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from headwater.atomic import read_json
from headwater.corpus import Corpus
from headwater.index.build import index_corpus, open_session
from headwater.index.files import read_parts
from headwater.index.member_files import MemberRecord, member_home, read_member, write_member
from headwater.index.read import StoredIndex
from headwater.index.spec import spec_path
from headwater.progress import say
from headwater.recipe import IndexRecipe, MemberOptions, ModelOptions, Role, TransformOptions
from headwater.training.folder import Checkpoint, TrainerFolder
from headwater.types import IntegrityError, UsageError


@dataclass(frozen=True)
class PlannedMember:
    """A member that a recipe asks for: what will be recorded of it, and the recipe of its own index."""

    record: MemberRecord
    recipe: IndexRecipe


# -------------------------------------------------------------------------------------------------------- planning


def plan_members(recipe: IndexRecipe) -> tuple[PlannedMember, ...]:
    """Every member of the recipe, by role and in order. Reads the training's output folder, loads no model.

    Raises UsageError where the folder lacks what a role is made of.
    """
    options = recipe.members
    training = TrainerFolder.open(options.from_run) if options.from_run else None
    return tuple(member for role in options.roles or () for member in PLANS[role](recipe, training))


def _checkpoints(recipe: IndexRecipe, training: TrainerFolder | None) -> Iterator[PlannedMember]:
    assert training is not None, "the recipe's own check asks for a folder"
    if not training.checkpoints:
        raise UsageError(
            f"{training.path} has no checkpoint-N folder. Likely cause: trained with save_strategy='no'; train with checkpoints."
        )
    for order, checkpoint in enumerate(training.checkpoints):
        record = _at(checkpoint, f"checkpoint-{checkpoint.step}", "checkpoint", order)
        yield PlannedMember(record, _derived(recipe, model=_model_at(recipe.model, checkpoint.path)))


def _adam(recipe: IndexRecipe, training: TrainerFolder | None) -> Iterator[PlannedMember]:
    assert training is not None, "the recipe's own check asks for a folder"
    for order, checkpoint in enumerate(_with_optimizer(training)):
        record = _at(checkpoint, f"adam-{checkpoint.step}", "adam", order)
        transform = TransformOptions(kind="adam", optimizer=str(checkpoint.path))
        yield PlannedMember(record, _derived(recipe, model=_model_at(recipe.model, checkpoint.path), transform=transform))


def _second_moment(recipe: IndexRecipe, training: TrainerFolder | None) -> Iterator[PlannedMember]:
    assert training is not None, "the recipe's own check asks for a folder"
    last = _with_optimizer(training)[-1]
    notes = (f"the optimizer's state is that of {last.path.name}",)
    record = MemberRecord("second_moment", "second_moment", 0, step=last.step, notes=notes)
    yield PlannedMember(record, _derived(recipe, transform=TransformOptions(kind="second_moment", optimizer=str(last.path))))


def _base(recipe: IndexRecipe, training: TrainerFolder | None) -> Iterator[PlannedMember]:
    model, note = _base_model(recipe, training)
    yield PlannedMember(MemberRecord("base", "base", 0, notes=(note,)), _derived(recipe, model=model))


def _seeds(recipe: IndexRecipe, training: TrainerFolder | None) -> Iterator[PlannedMember]:
    seeds, models = recipe.members.sketch_seeds, recipe.members.seed_models
    taken = [recipe.sketch.seed, *seeds]
    if len(set(taken)) < len(taken):
        raise UsageError(f"sketch seeds are {taken}, the main index's first: each member needs one of its own, or it says nothing new")
    for order, seed in enumerate(seeds):
        model = _model_at(recipe.model, Path(models[order])) if models else recipe.model
        sketch = recipe.sketch.model_copy(update={"seed": seed})
        record = MemberRecord(f"seed-{seed}", "seed", order, notes=(f"sketch seed {seed}{f', model {models[order]}' if models else ''}",))
        yield PlannedMember(record, _derived(recipe, model=model, sketch=sketch))


PLANS: dict[Role, Callable[[IndexRecipe, TrainerFolder | None], Iterator[PlannedMember]]] = {
    "checkpoint": _checkpoints,
    "base": _base,
    "seed": _seeds,
    "adam": _adam,
    "second_moment": _second_moment,
}


def _at(checkpoint: Checkpoint, name: str, role: Role, order: int) -> MemberRecord:
    rate = checkpoint.rate
    if rate is None:
        return MemberRecord(name, role, order, checkpoint.step, notes=("the learning rate is not known: neither recorded nor logged",))
    return MemberRecord(name, role, order, checkpoint.step, rate.value, notes=(f"learning rate {rate.value:g}, {rate.known_from}",))


def _with_optimizer(training: TrainerFolder) -> list[Checkpoint]:
    found = [checkpoint for checkpoint in training.checkpoints if checkpoint.has_optimizer]
    if not found:
        raise UsageError(
            f"none of the {len(training.checkpoints)} checkpoints in {training.path} has an optimizer's state, which adam and "
            "second_moment members are made of. Likely cause: trained with save_only_model=True. Train with HeadwaterCallback, or without "
            "that option."
        )
    return found


def _base_model(recipe: IndexRecipe, training: TrainerFolder | None) -> tuple[ModelOptions, str]:
    """The weights before fine-tuning, and where they come from: as named, as recorded, or an adapter undone."""
    adapter, named = recipe.model.adapter or (recipe.model.path if _is_adapter(Path(recipe.model.path)) else None), recipe.members.base
    if named and (adapter is None or _is_adapter(Path(named))):
        return _model_at(recipe.model, Path(named)) if Path(named).exists() else _of_hub(recipe.model, named), "the model that was named"
    if named:
        undone = {"path": named, "revision": None, "adapter": adapter, "zero_adapter": True}
        return recipe.model.model_copy(update=undone), "the model that was named, under the trained adapter with its B at zero"
    if training is not None and training.initial is not None:
        return _model_at(recipe.model, training.initial), "the weights before the first step, kept by HeadwaterCallback"
    if adapter:
        return recipe.model.model_copy(update={"zero_adapter": True}), "the trained adapter with its B at zero: the base model's function"
    raise UsageError(
        "a base member is the rows at the model before fine-tuning, and nothing says which that is. Name it with --base MODEL, or train "
        "with HeadwaterCallback(initial_weights=True)."
    )


def _model_at(main: ModelOptions, folder: Path) -> ModelOptions:
    """The main model's options with other weights: another adapter on the same base where only adapters were saved."""
    if main.adapter and _is_adapter(folder):
        return main.model_copy(update={"adapter": str(folder.resolve())})
    return main.model_copy(update={"path": str(folder.resolve()), "revision": None, "adapter": None})


def _of_hub(main: ModelOptions, name: str) -> ModelOptions:
    return main.model_copy(update={"path": name, "revision": None, "adapter": None})


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def _derived(recipe: IndexRecipe, **changes: Any) -> IndexRecipe:
    """The recipe of a member: the main one's, but for what makes it another. Further features are the main index's alone."""
    store = recipe.store.model_copy(update={"rept_layer": None})
    return recipe.model_copy(update={"members": MemberOptions(), "store": store, **changes})


# ---------------------------------------------------------------------------------------------------------- making


def build_members(recipe: IndexRecipe, main: StoredIndex, corpus: Corpus, tokenizer: Any) -> None:
    """Make every member that is not complete, one model in memory at a time; an interrupted one goes on where it stopped."""
    planned = plan_members(recipe)
    for number, member in enumerate(planned, start=1):
        say(f"member {number} of {len(planned)}: {member.record.name} ({'; '.join(member.record.notes)})")
        _build_member(member, main, corpus, tokenizer)


def _build_member(member: PlannedMember, main: StoredIndex, corpus: Corpus, tokenizer: Any) -> None:
    home = member_home(main.run, member.record.name)
    known = read_member(home / "member.json") if (home / "member.json").exists() else None
    if known is not None:
        _check_recipe(home, member)
        if known.is_main or _is_complete(home, corpus):
            write_member(main.run, replace(member.record, is_main=known.is_main))
            return
    append = _has_earlier(home, member.record.name, main, corpus)
    session = open_session(member.recipe.model, tokenizer=tokenizer)
    is_main = not append and _is_main(member, main, session.fingerprint)
    write_member(main.run, replace(member.record, is_main=is_main))
    if not is_main:
        index_corpus(member.recipe, home, session=session, corpus=corpus, append=append)


def _is_main(member: PlannedMember, main: StoredIndex, fingerprint: str) -> bool:
    """The last checkpoint is often the final model; and where nothing is sketched (LoRA) a further seed changes nothing."""
    layout = main.spec.layout
    same_sketch = member.recipe.sketch.seed == layout.sketch_seed or not any(block.sketched for block in layout.blocks)
    return member.recipe.transform.kind == "none" and same_sketch and fingerprint == main.spec.facts["model"]


def _is_complete(home: Path, corpus: Corpus) -> bool:
    """Whether all rows of the corpus are there: then not even the member's model has to be loaded."""
    has_rows = spec_path(home).exists() and any(part.fingerprint == corpus.fingerprint for part in read_parts(home))
    return has_rows and not StoredIndex.open(home).missing_rows


def _has_earlier(home: Path, name: str, main: StoredIndex, corpus: Corpus) -> bool:
    """Whether the corpus is to be appended, as it was to the main index. IntegrityError where the member lacks what that had before."""
    everything = [part.fingerprint for part in read_parts(main.run)]
    before = everything[: everything.index(corpus.fingerprint)]
    here = [part.fingerprint for part in read_parts(home)]
    if here[: len(before)] != before:
        raise IntegrityError(
            f"member {name!r} cannot be given these rows: the main index has {len(before)} earlier corpora, the member {len(here)}. "
            "Members are filled in the same order: run the command that indexed the first data, with the same --members, before this one."
        )
    return bool(before) and corpus.fingerprint not in here


def _check_recipe(home: Path, member: PlannedMember) -> None:
    """A member keeps its name for good: what it was made with cannot be changed under it."""
    path = home / "run.json"
    if not path.exists():
        return
    made = IndexRecipe.parse(read_json(path, way_out="Delete the member's folder.")["recipe"])
    differ: list[str] = [name for name in ("model", "sketch", "transform") if getattr(made, name) != getattr(member.recipe, name)]
    if differ:
        raise IntegrityError(
            f"member {member.record.name!r} in {home} was made with another {' and '.join(differ)}. Likely cause: another training "
            "of the same name. Delete the member's folder, or use another run folder (-o)."
        )
