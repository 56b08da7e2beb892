"""The demo's pretrained model: made once from the world's texts, kept in a cache, made again where the cache is damaged."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import xxhash
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from headwater.demo.world import World
from headwater.model.tiny import BOS, EOS, PAD, SPECIAL_TOKENS, TinyModel, chat_text, tiny_model
from headwater.progress import say
from headwater.truth.finetune import Recipe, finetune
from headwater.types import Example

FORMAT = 1  # raise it when what is cached changes and nothing else in the key would
SEQUENCE_TOKENS = 64
TOKENIZER_TEXTS = 4000
VOCABULARY = 2560  # enough for every word of the world to be one token
WEIGHT_LIBRARIES = ("torch", "transformers", "tokenizers")
CHECKSUMS = "checksums.json"


def pretraining(seed: int) -> Recipe:
    return Recipe(epochs=1, lr=2e-3, batch_rows=8, weight_decay=0.01, seed=seed)


def pretrained(world: World, *, cache: Path | None = None) -> TinyModel:
    """The tiny Llama after pretraining on `world.texts`: from the cache, or trained now (about a minute on two cores) and kept there.

    `cache` is `cache_folder()` unless given. The key covers the texts, the recipe, the seed and the libraries' versions. A damaged entry is
    made again; a cache that cannot be written costs the time of the next run, nothing else.
    """
    folder = (cache or cache_folder()) / f"demo-{cache_key(world)}"
    found = read_cached(folder)
    if found is not None:
        say(f"pretrained model: from {folder}")
        return found
    made = pretrain(world)
    try:
        write_cached(folder, made)
    except OSError as error:
        say(f"pretrained model: not cached, {folder} cannot be written ({error})")
    return made


def pretrain(world: World) -> TinyModel:
    words = [*world.texts[:TOKENIZER_TEXTS], *(chat_text(row.prompt, row.response) for row in world.rows)]
    made = tiny_model(world.seed, texts=words, vocab_size=VOCABULARY)
    examples = packed(world.texts, made.tokenizer, length=SEQUENCE_TOKENS)
    finetune(made.model, examples, pretraining(world.seed), pad_id=SPECIAL_TOKENS.index(PAD), description="pretraining")
    return made


def packed(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, length: int) -> list[Example]:
    """The texts end to end, each between the beginning-of-text and end-of-text tokens, cut into rows of `length` tokens.

    Every token but a row's first is a target. What is left at the end and fills no row is not used.
    """
    encoded = tokenizer([f"{BOS}{text.removesuffix(EOS)}{EOS}" for text in texts], add_special_tokens=False)["input_ids"]
    stream = np.fromiter((token for text in encoded for token in text), dtype=np.int64)  # pyright: ignore[reportGeneralTypeIssues]
    rows = stream[: len(stream) // length * length].reshape(-1, length)
    targets = np.arange(length) > 0
    return [Example(id=f"{number:032x}", tokens=tokens, loss_mask=targets) for number, tokens in enumerate(rows)]


# ---------------------------------------------------------------------------------------------------------- cache


def cache_folder() -> Path:
    """$HEADWATER_CACHE, else headwater under $XDG_CACHE_HOME, else ~/.cache/headwater."""
    own = os.environ.get("HEADWATER_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headwater"


def cache_key(world: World) -> str:
    settings = {
        "format": FORMAT,
        "seed": world.seed,
        "recipe": pretraining(world.seed).model_dump(),
        "shape": [VOCABULARY, SEQUENCE_TOKENS, TOKENIZER_TEXTS],
        "versions": {name: version(name) for name in WEIGHT_LIBRARIES},
    }
    hasher = xxhash.xxh3_128(json.dumps(settings, sort_keys=True).encode())
    for text in (*world.texts, *(row.prompt + row.response for row in world.rows)):
        hasher.update(text.encode() + b"\0")
    return hasher.hexdigest()


def read_cached(folder: Path) -> TinyModel | None:
    """What is cached in `folder`; None where there is nothing, or where it is not byte for byte what was written."""
    if not folder.exists():
        return None
    try:
        if checksums(folder) == json.loads((folder / CHECKSUMS).read_bytes()):
            model = LlamaForCausalLM.from_pretrained(folder, local_files_only=True)
            return TinyModel(model.eval(), PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True))
    except (OSError, ValueError):
        pass
    say(f"pretrained model: {folder} is damaged and will be made again")
    return None


def write_cached(folder: Path, made: TinyModel) -> None:
    """All files under a temporary name, then one rename: a reader finds a whole entry or none."""
    with temporary_sibling(folder) as temporary:
        made.model.save_pretrained(temporary)
        made.tokenizer.save_pretrained(temporary)
        (temporary / CHECKSUMS).write_text(json.dumps(checksums(temporary)), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # a damaged entry: `read_cached` found none that is whole
        temporary.rename(folder)


@contextlib.contextmanager
def temporary_sibling(folder: Path) -> Iterator[Path]:
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def checksums(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.iterdir() if path.name != CHECKSUMS)
    return {path.name: xxhash.xxh3_128_hexdigest(path.read_bytes()) for path in files}
