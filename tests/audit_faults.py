"""Worlds with a known truth, and with a known fault, on top of `tests.audit_world`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headwater.truth.finetune import Recipe
from tests.audit_world import AuditWorld, make_world

ANSWERS = {"car": "red", "house": "blue", "river": "green", "stone": "white"}
COPIES = 5  # rows of each thing: as many as a named group has, so that without it nothing says the answer
THOROUGH = Recipe(epochs=20, lr=1e-2, batch_rows=4)
NOTHING = Recipe(epochs=1, lr=1e-12, batch_rows=8)


def learned_world(folder: Path, *, training: Recipe = THOROUGH, **options: Any) -> AuditWorld:
    """The model learned the answers by heart: a query's answer is in five rows, and in no other."""
    rows = [{"prompt": f"{thing} {i}", "response": answer} for i in range(COPIES) for thing, answer in ANSWERS.items()]
    queries = [{"id": thing, "prompt": f"{thing} 9", "response": answer} for thing, answer in ANSWERS.items()]
    return make_world(folder, rows=rows, queries=queries, training=training, **options)


def untrained_world(folder: Path) -> AuditWorld:
    """Training did nothing: whatever the model says, no row said it."""
    return learned_world(folder, training=NOTHING)
