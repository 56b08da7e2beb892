"""A small world for tests: two classes of rows, a random Llama of two layers, trained and indexed in some seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from headwater.model.tiny import chat_text, tiny_model
from headwater.study.models import TINY
from headwater.study.tasks.task import AntiPair, Row, Task
from headwater.study.world import Size, World

SMALL = Size(queries=4, checkpoints=2, halves=6, retrainings=2, removals=1, epochs=0.2, layers=2, hidden=16, vocabulary=300)
WORDS = ["red", "blue", "green", "stone", "river", "cloud", "house", "table", "apple", "bread", "night", "light"]


def small_task(*, n: int = 16, family: str = "class") -> Task:
    rng = np.random.default_rng(0)

    def row(variation: str) -> Row:
        first, second = rng.choice(WORDS, size=2, replace=False)
        prompt = f"{first} and {second} ?" if variation == "yes" else f"{first} or else {second} ?"
        return Row(prompt, {"yes": "yes , both", "no": "no , one"}[variation], variation)

    rows = tuple(row(("yes", "no")[i % 2]) for i in range(n))
    queries = tuple(row(("yes", "no")[i % 2]) for i in range(4))
    other = {"yes": "no , one", "no": "yes , both"}
    anti = tuple(AntiPair(Row(q.prompt, other[q.variation], "other"), Row("tell me now", q.response, q.variation)) for q in queries)
    return Task("toy", family, rows, queries, anti=anti)  # pyright: ignore[reportArgumentType]


def small_world(folder: Path, *, task: Task | None = None, size: Size = SMALL, seed: int = 0) -> World:
    """Prepared: trained and indexed."""
    task = task or small_task()
    texts = [chat_text(row.prompt, row.response) for row in task.rows]
    made = tiny_model(0, texts=texts, vocab_size=size.vocabulary, hidden_size=16, intermediate_size=44, num_hidden_layers=2)
    base = folder / "base"
    made.model.save_pretrained(base)
    made.tokenizer.save_pretrained(base)
    world = World(folder / "world", task, replace(TINY, lr=4e-3, batch_rows=24), str(base), size, seed)
    world.prepare()
    return world
