"""The demo's pretrained model: made once from the world's texts, kept in a cache, made again where the cache is damaged."""

from __future__ import annotations

from pathlib import Path

from headwater.demo.world import World
from headwater.model.tiny import PAD, SPECIAL_TOKENS, TinyModel, chat_text, tiny_model
from headwater.truth.finetune import Recipe, finetune
from headwater.truth.pretrained import from_cache, key_of, packed

SEQUENCE_TOKENS = 64
TOKENIZER_TEXTS = 4000
VOCABULARY = 2560  # enough for every word of the world to be one token


def pretraining(seed: int) -> Recipe:
    return Recipe(epochs=1, lr=2e-3, batch_rows=8, weight_decay=0.01, seed=seed)


def pretrained(world: World, *, cache: Path | None = None) -> TinyModel:
    """The tiny Llama after pretraining on `world.texts`: from the cache, or trained now (about a minute on two cores) and kept there.

    The key covers the texts, the recipe, the seed and the libraries' versions. See `headwater.truth.pretrained.from_cache`.
    """
    return from_cache(f"demo-{cache_key(world)}", lambda: pretrain(world), cache=cache)[0]


def pretrain(world: World) -> TinyModel:
    words = [*world.texts[:TOKENIZER_TEXTS], *(chat_text(row.prompt, row.response) for row in world.rows)]
    made = tiny_model(world.seed, texts=words, vocab_size=VOCABULARY)
    examples = packed(world.texts, made.tokenizer, length=SEQUENCE_TOKENS)
    finetune(made.model, examples, pretraining(world.seed), pad_id=SPECIAL_TOKENS.index(PAD), description="pretraining")
    return made


def cache_key(world: World) -> str:
    settings = {
        "seed": world.seed,
        "recipe": pretraining(world.seed).model_dump(),
        "shape": [VOCABULARY, SEQUENCE_TOKENS, TOKENIZER_TEXTS],
    }
    return key_of(settings, (*world.texts, *(row.prompt + row.response for row in world.rows)))
