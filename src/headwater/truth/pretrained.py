"""Small pretrained models: running text packed into rows to train on, and a cache of what such a training left."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from headwater.model.tiny import BOS, EOS, TinyModel
from headwater.progress import say
from headwater.types import Example

FORMAT = 1  # raise it when what is cached changes and nothing else in the key would
WEIGHT_LIBRARIES = ("torch", "transformers", "tokenizers")
CHECKSUMS = "checksums.json"


def from_cache(name: str, make: Callable[[], TinyModel], *, cache: Path | None = None) -> tuple[TinyModel, Path]:
    """What is kept in `cache` (`cache_folder()` unless given) under that name, else what `make` makes, which is then kept; and where.

    A damaged entry is made again; a cache that cannot be written costs the time of the next run, nothing else.
    """
    folder = (cache or cache_folder()) / name
    found = read_cached(folder)
    if found is not None:
        say(f"pretrained model: from {folder}")
        return found, folder
    made = make()
    try:
        write_cached(folder, made)
    except OSError as error:
        say(f"pretrained model: not cached, {folder} cannot be written ({error})")
    return made, folder


def key_of(settings: dict[str, Any], texts: Sequence[str]) -> str:
    """Over the settings, the libraries that make weights, and every text."""
    facts = {"format": FORMAT, **settings, "versions": {name: version(name) for name in WEIGHT_LIBRARIES}}
    hasher = xxhash.xxh3_128(json.dumps(facts, sort_keys=True).encode())
    for text in texts:
        hasher.update(text.encode() + b"\0")
    return hasher.hexdigest()


def packed(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, length: int) -> list[Example]:
    """The texts end to end, each between the beginning-of-text and end-of-text tokens, cut into rows of `length` tokens.

    Every token but a row's first is a target. What is left at the end and fills no row is not used.
    """
    encoded = tokenizer([f"{BOS}{text.removesuffix(EOS)}{EOS}" for text in texts], add_special_tokens=False)["input_ids"]
    stream = np.fromiter((token for text in encoded for token in text), dtype=np.int64)  # pyright: ignore[reportGeneralTypeIssues]
    rows = stream[: len(stream) // length * length].reshape(-1, length)
    targets = np.arange(length) > 0
    return [Example(id=f"{number:032x}", tokens=tokens, loss_mask=targets) for number, tokens in enumerate(rows)]


def cache_folder() -> Path:
    """$HEADWATER_CACHE, else headwater under $XDG_CACHE_HOME, else ~/.cache/headwater."""
    own = os.environ.get("HEADWATER_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headwater"


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
