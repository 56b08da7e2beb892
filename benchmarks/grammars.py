"""The paper's grammars task through the command line: a tiny model is fine-tuned on the real rows, indexed and traced.

    python -m benchmarks.grammars [--json] [--data ../shared/data] [--out runs/grammars] [--steps 800] [--epochs 15] [--seed 0]

The model is a 4-layer Llama (hidden 256, BPE of 4,096) pretrained on wikitext-2's validation text and the training prompts, then LoRA
(r = 4, alpha = 32, on q and v) on the 900 training rows. `headwater index` and `headwater trace` do the rest, for the 100 test rows. What
comes out is arithmetic on the written score matrices: accuracy (the first row is of the query's class) and cover (share of the query's
class among the first 90), the paper's two, and the largest share of queries that one row tops. Whether the class is the cause, none of
these numbers says.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.record import record
from headwater.corpus import load_corpus
from headwater.model.tiny import tiny_model
from headwater.rank.export import read_scores
from headwater.truth.finetune import Lora, Recipe, finetune
from headwater.types import Example, Scores

CLASS_ROWS = 90


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("runs/grammars"))
    parser.add_argument("--steps", type=int, default=800, help="pretraining steps of 32 pieces of 64 tokens")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    start = time.monotonic()
    train = pd.read_parquet(arguments.data / "paper" / "grammars-train.parquet")
    test = pd.read_parquet(arguments.data / "paper" / "grammars-test.parquet")
    fit = train_model(arguments, train)
    write_queries(arguments.out / "queries.jsonl", test)
    indexing_s = headwater(
        "index", arguments.out / "adapter", arguments.data / "paper" / "grammars-train.parquet", "-o", arguments.out / "run"
    )
    tracing_s = headwater("trace", arguments.out / "run", "--queries", arguments.out / "queries.jsonl")
    scores = read_scores(newest(arguments.out / "run"))
    result = {
        "methods": {name: tables(one, arguments.out / "run", train, test) for name, one in scores.items()},
        "final_loss_nats_per_target": round(float(np.mean(fit.losses[-20:])), 3),
        "rows": len(train),
        "queries": len(test),
        "training_s": round(fit.seconds),
        "indexing_s": round(indexing_s),
        "tracing_s": round(tracing_s),
        "seconds": round(time.monotonic() - start),
    }
    if arguments.json:
        record("grammars", result, command=f"python -m benchmarks.grammars {' '.join(sys.argv[1:])}")
    else:
        print(pd.DataFrame(result["methods"]).T.to_string())


def train_model(arguments: argparse.Namespace, train: pd.DataFrame) -> Any:
    """Pretrain, fine-tune, and save base model, adapter and tokenizer under `out`."""
    text = (arguments.data / "wikitext-2" / "valid.txt").read_text(encoding="utf-8")
    sizes = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4}
    network, tokenizer = tiny_model(arguments.seed, texts=[text, *train.prompts], vocab_size=4096, **sizes)
    pieces = packed(tokenizer(text + "\n".join(train.prompts))["input_ids"], 64, 32 * arguments.steps, arguments.seed)
    finetune(
        network,
        pieces,
        Recipe(epochs=1, lr=1e-3, batch_rows=32, seed=arguments.seed),
        pad_id=tokenizer.pad_token_id,
        description="pretraining",
    )
    base = arguments.out / "base"
    network.save_pretrained(base)
    tokenizer.save_pretrained(base)
    network.name_or_path = str(base.resolve())
    corpus = load_corpus(train.to_dict("records"), tokenizer)
    recipe = Recipe(
        epochs=arguments.epochs, lr=1e-3, batch_rows=24, seed=arguments.seed, lora=Lora(r=4, alpha=32, targets=("q_proj", "v_proj"))
    )
    fit = finetune(network, corpus.examples, recipe, pad_id=tokenizer.pad_token_id, description="fine-tuning")
    adapted: Any = fit.model
    adapted.peft_config["default"].base_model_name_or_path = str(base.resolve())
    adapted.save_pretrained(arguments.out / "adapter")
    return fit


def packed(tokens: list[int], width: int, n_pieces: int, seed: int) -> list[Example]:
    """Pieces of `width` tokens from random places of a text; every token but the first is a target."""
    stream = np.array(tokens, dtype=np.int64)
    starts = np.random.default_rng(seed).integers(0, len(stream) - width, size=n_pieces)
    mask = np.arange(width) > 0
    return [Example(id=f"{i:032x}", tokens=stream[a : a + width], loss_mask=mask) for i, a in enumerate(starts)]


def write_queries(path: Path, test: pd.DataFrame) -> None:
    lines = [
        json.dumps({"id": f"test-{i}", "prompt": p, "response": r})
        for i, (p, r) in enumerate(zip(test.prompts, test.response, strict=True))
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def headwater(*arguments: Any) -> float:
    """Seconds of one call of the command line, as a user would make it."""
    start = time.monotonic()
    with Path(arguments[1] if arguments[0] == "trace" else arguments[-1]).with_suffix(".log").open("a") as log:
        subprocess.run([sys.executable, "-m", "headwater", *map(str, arguments)], check=True, stdout=log, stderr=log)
    return time.monotonic() - start


def newest(run: Path) -> Path:
    return max((run / "scores").iterdir(), key=lambda path: path.stat().st_mtime)


def tables(scores: Scores, run: Path, train: pd.DataFrame, test: pd.DataFrame) -> dict[str, float]:
    """Accuracy and cover in percent, and the share of queries that have the same first row."""
    from headwater.index.read import StoredIndex

    index = StoredIndex.open(run)
    assert tuple(index.ids) == scores.train_ids
    class_N = train.variation.to_numpy()[index.column("row").astype(int)]
    class_Q = test.variation.to_numpy()
    order_QN = np.argsort(-scores.values_QN, axis=1, kind="stable")
    hits_QN = class_N[order_QN] == class_Q[:, None]
    first_Q = order_QN[:, 0]
    return {
        "accuracy": round(100 * float(hits_QN[:, 0].mean()), 1),
        "cover": round(100 * float(hits_QN[:, :CLASS_ROWS].mean()), 1),
        "same_first_row": round(float(np.bincount(first_Q).max() / len(first_Q)), 2),
    }


if __name__ == "__main__":
    main()
