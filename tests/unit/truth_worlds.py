"""An experiment small enough to repeat: a tiny model on disk, two dozen rows, three queries. Imported by spawned processes too."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from headwater.corpus import load_corpus, read_queries
from headwater.model import measures
from headwater.model.session import Session, load_session
from headwater.truth.design import subsets
from headwater.truth.finetune import Recipe
from headwater.truth.retrain import ByRecipe, Experiment, Start, retrain
from headwater.types import Measure

WORDS = ("red", "blue", "green", "old")
ROWS = [{"prompt": f"What is thing {i}?", "response": f"It is {WORDS[i % 4]} and {WORDS[i // 4 % 4]}."} for i in range(24)]
QUERIES = [{"id": f"q{i}", "prompt": f"What is thing {i}?", "response": f"It is {WORDS[i]}."} for i in range(3)]
RECIPE = {"epochs": 2, "lr": 3e-3, "batch_rows": 4}
RESPONSE = measures.get("response_log_probability")


def save_model(folder: Path) -> Path:
    from headwater.model.tiny import tiny_model

    texts = [f"{row['prompt']} {row['response']}" for row in ROWS]
    made = tiny_model(0, texts=texts, vocab_size=300, hidden_size=16, intermediate_size=32, num_hidden_layers=2)
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    return folder


def experiment(
    model: Path,
    *,
    start: Start = "cold",
    adapter: Path | None = None,
    rows: Sequence[dict[str, Any]] = ROWS,
    measure: Measure = RESPONSE,
    load: Callable[[], Session] | None = None,
    **recipe: Any,
) -> Experiment:
    load = load or partial(load_session, model, adapter=adapter)
    training = ByRecipe(load, Recipe(**{**RECIPE, **recipe}), start)
    tokenizer = training.origin.tokenizer
    return Experiment(training, load_corpus(list(rows), tokenizer).examples, read_queries(QUERIES, tokenizer), measure)


if __name__ == "__main__":  # to be killed half-way: MODEL OUT PROCESSES
    given = experiment(Path(sys.argv[1]))
    retrain(sys.argv[2], given, subsets(len(given.rows), 12), seeds=(0, 1), processes=int(sys.argv[3]), threads=1)
