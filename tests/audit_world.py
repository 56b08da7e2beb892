"""A tiny model trained on a few rows, its index and a trace of it, once for all tests of the audit; and a Subject over them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import headwater
from headwater.audit.subject import Subject
from headwater.auditing import open_subject
from headwater.corpus import load_corpus
from headwater.model.tiny import tiny_model
from headwater.truth.finetune import Recipe, finetune

COLOURS, THINGS = ("red", "blue", "green", "white"), ("car", "house", "river", "stone", "bird", "tree", "lamp", "door")
ROWS = [
    {"prompt": f"what colour is {thing} number {i}?", "response": f"the {thing} is {COLOURS[k % 4]}"}
    for i in range(6)
    for k, thing in enumerate(THINGS)
]
QUERIES = [
    {"id": thing, "prompt": f"what colour is {thing} number 9?", "response": f"the {thing} is {COLOURS[k % 4]}"}
    for k, thing in enumerate(THINGS)
]
TRAINING = Recipe(epochs=6, lr=1e-2, batch_rows=8)


@dataclass(frozen=True)
class AuditWorld:
    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def subject(self, **changes: Any) -> Subject:
        return open_subject(self.run, base=self.base, **changes)


def make_world(
    folder: Path,
    *,
    rows: Sequence[Mapping[str, Any]] = ROWS,
    queries: Sequence[Mapping[str, Any]] = QUERIES,
    training: Recipe = TRAINING,
    **options: Any,
) -> AuditWorld:
    """`options` are those of the index, by dotted name with double underscores. A second or two."""
    world = AuditWorld(folder)
    texts = [f"{row['prompt']} {row['response']}" for row in rows]
    network, tokenizer = tiny_model(0, texts=texts, vocab_size=320, hidden_size=16, intermediate_size=32, num_hidden_layers=2)
    for path in (world.base, world.model):
        tokenizer.save_pretrained(path)
    network.save_pretrained(world.base)
    for name, lines in (("rows", rows), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    finetune(network, load_corpus(folder / "rows.jsonl", tokenizer).examples, training, pad_id=tokenizer.pad_token_id)
    network.save_pretrained(world.model)
    run = headwater.index(world.model, folder / "rows.jsonl", world.run, **options)
    headwater.trace(run, queries=folder / "queries.jsonl", k=5)
    return world
