"""Indexing against training: the cost of collecting and storing sketched per-example gradients, in plain training passes.

    python -m benchmarks.indexing [--json] [--rows 2000] [--repeats 5] [--threads N]

One training pass is a forward and a backward pass over the same rows in length-sorted batches of 8, as transformers' own loss does it:
padded on the right, with an attention mask and labels. Indexing is everything that `headwater index` does with rows that are tokenised:
settling the layout, batches, capture, sketch, quantising, files with their fsyncs. Both run in turn in one process; the ratio is the
median over the repeats. Peak memory is that of two further processes, each of which does one of the two once.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.record import record
from headwater.gradient.scope import find_scope
from headwater.index.build import fill, settle
from headwater.index.spec import IndexSpec
from headwater.index.write import Writer
from headwater.model.session import Session
from headwater.progress import quiet
from headwater.recipe import IndexRecipe
from headwater.types import Example

VOCABULARY, HIDDEN, BATCH_ROWS = 4096, 256, 8
LINEAR = ("*_proj.weight",)  # the 28 linear layers; the peers' figures leave embedding, head and norms out
SCOPES = {"linear layers": LINEAR, "all parameters": ("*",)}


def model() -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def examples(n_rows: int, *, seed: int = 0) -> list[Example]:
    """Rows of random tokens, lengths log-normal in 16-256 with mean about 80; the loss is on every token but the first."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(np.round(rng.lognormal(np.log(80) - 0.55**2 / 2, 0.55, n_rows)), 16, 256).astype(int)
    mask = np.arange(256) > 0
    return [
        Example(id=f"{seed:08x}{i:024x}", tokens=rng.integers(2, VOCABULARY, size=n), loss_mask=mask[:n]) for i, n in enumerate(lengths)
    ]


def train(network: torch.nn.Module, rows: list[Example]) -> float:
    """Seconds of one plain training pass, without an optimiser step."""
    network.train()
    order = sorted(range(len(rows)), key=lambda i: rows[i].n_tokens)
    start = time.perf_counter()
    for first in range(0, len(rows), BATCH_ROWS):
        batch = [rows[i] for i in order[first : first + BATCH_ROWS]]
        width = max(row.n_tokens for row in batch)
        tokens, mask = torch.zeros(len(batch), width, dtype=torch.long), torch.zeros(len(batch), width, dtype=torch.long)
        for b, row in enumerate(batch):
            tokens[b, : row.n_tokens], mask[b, : row.n_tokens] = torch.from_numpy(row.tokens), 1
        network.zero_grad()
        network(input_ids=tokens, attention_mask=mask, labels=tokens.masked_fill(mask == 0, -100), use_cache=False).loss.backward()
    seconds = time.perf_counter() - start
    network.zero_grad()
    return seconds


def index(network: torch.nn.Module, rows: list[Example], include: tuple[str, ...], token_budget: int | None) -> float:
    """Seconds to index the rows into a folder that is thrown away."""
    recipe = IndexRecipe.parse({"model": {"path": "-"}, "data": {"source": "-"}, "scope": {"include": include}})
    session = Session(network, None, "causal-lm", name="benchmark")
    with tempfile.TemporaryDirectory() as folder, quiet():
        start = time.perf_counter()
        layout = settle(recipe, session, rows).layout
        writer = Writer.open(
            folder, IndexSpec(layout=layout, dtype=recipe.store.dtype, hidden_size=HIDDEN, shard_rows=recipe.store.shard_rows)
        )
        fill(writer, writer.begin("benchmark", len(rows)), rows, session, layout, token_budget or recipe.engine.token_budget)
        return time.perf_counter() - start


def peak_mb(what: str, arguments: argparse.Namespace) -> float:
    """Largest resident memory of a process that does one pass of `what`."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.indexing",
        "--child",
        what,
        "--rows",
        str(arguments.rows),
        "--threads",
        str(arguments.threads),
    ]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def child(arguments: argparse.Namespace) -> None:
    network, rows = model(), examples(arguments.rows)
    if arguments.child == "train":
        train(network, rows)
    else:
        index(network, rows, LINEAR, arguments.token_budget)
    print(peak_of_this_process_mb())


def peak_of_this_process_mb() -> float:
    """VmHWM where there is /proc: getrusage's figure outlives exec, so a child would report its parent's peak as its own."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    network, rows = model(), examples(arguments.rows)
    train(network, rows[:64])
    ratios: dict[str, list[float]] = {name: [] for name in SCOPES}
    passes: list[float] = []
    for repeat in range(arguments.repeats):
        before = train(network, rows)
        seconds = {name: index(network, rows, include, arguments.token_budget) for name, include in SCOPES.items()}
        passes.append((before + train(network, rows)) / 2)  # around both, so that a drift of the machine's speed cancels
        for name, value in seconds.items():
            ratios[name].append(value / passes[-1])
        print(
            f"repeat {repeat + 1}: " + ", ".join(f"{name} {values[-1]:.3f}" for name, values in ratios.items()), file=sys.stderr, flush=True
        )
    memory = {what: peak_mb(what, arguments) for what in ("train", "index")}
    medians = {name: statistics.median(values) for name, values in ratios.items()}
    return {
        "ratio": round(medians["linear layers"], 3),
        "ratio_all_parameters": round(medians["all parameters"], 3),
        "ratios": {name: [round(value, 3) for value in values] for name, values in ratios.items()},
        "memory_ratio": round(memory["index"] / memory["train"], 3),
        "peak_mb": {name: round(value) for name, value in memory.items()},
        "training_pass_s": round(statistics.median(passes), 2),
        "rows": len(rows),
        "tokens": sum(row.n_tokens for row in rows),
        "parameters_in_scope": find_scope(network, include=LINEAR).n_inside,
        "threads": arguments.threads,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output; kept in benchmarks/results")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--token-budget", type=int, help="tokens of an indexing batch; the package's default where not given")
    parser.add_argument("--child", choices=("train", "index"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.child:
        child(arguments)
        return
    result = measure(arguments)
    if arguments.json:
        record("indexing", result, command=f"python -m benchmarks.indexing {' '.join(sys.argv[1:])}")
    else:
        print(
            f"indexing costs {result['ratio']:.2f} training passes ({result['ratio_all_parameters']:.2f} with every parameter in scope), ",
            end="",
        )
        print(f"peak memory {result['memory_ratio']:.2f} of training's; {result['rows']:,} rows, {result['tokens']:,} tokens")


if __name__ == "__main__":
    main()
