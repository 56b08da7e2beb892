"""Repeating data: what epochs, dropout, size, experts and the objective do, and what k copies of a document weigh.

    python -m benchmarks.repetition [--json] [--seeds 3] [--small] [--kept F]

An order-2 Markov source of 32 tokens, sequences of 16, of two kinds: "factored", whose successors are drawn by the sum of what each of the
two tokens says of them, so that every width comes near its entropy in the time given; and "table", where each pair has successors of its
own, so that none does. A GPT-2 of width 48 and 2 layers, 900 steps of 64 sequences whatever the number of
unique ones, so that 1.4, 14, 56 and 225 epochs cost the same. Validation: 1,000 fresh sequences. Other factor values: dropout .2 of what
each layer adds, of embeddings and attention weights too ("everywhere"), and from half of the training on ("dropstage"); widths 24 and 96;
four experts of a quarter of the width with top-1 routing in place of the feed-forward layer (the same parameters, a quarter of its
multiplications); and a span-mask objective (a run of four tokens is replaced by a mark and predicted at the end, another run each time) in
place of the next token.

Copies: random documents, which nothing but their copies teaches, k copies of each among the rows of 14 epochs. The model is trained three
times from one start: on everything, without one copy of each document, and without the documents. Predicted: influence by the empirical
Fisher matrix of the sketched rows, of one copy, and summed over the cluster by `rank.by_group`. Both are drops of the document's own
log-probability.
Protocol after Xue et al. 2023 (arXiv 2305.13230).

N sequences · B of a step · T positions · D documents · H width · E experts
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.record import record
from benchmarks.small import resumed, rounded, typed
from headwater import methods
from headwater.audit.sampled import passed
from headwater.gradient.scope import find_scope, make_layout
from headwater.gradient.sketch import SketchSpec
from headwater.index.memory import MemoryIndex
from headwater.index.queries import query_index
from headwater.model import measures
from headwater.model.session import Session
from headwater.rank.by_group import group_scores
from headwater.types import Example

TOKENS, LENGTH = 32, 16
CONCENTRATION = 0.1  # of the Dirichlet that a pair's successors are drawn from in a table
SPREAD = 1.5  # of what one token adds to a successor's logit in a factored source
SOURCES = ("factored", "table")
MASK, GAP, SPAN = TOKENS, TOKENS + 1, 4
LR, WARMUP, DROPOUT, EXPERTS = 3e-3, 0.05, 0.2, 4
NEAR_ZERO = 0.05  # of what removing all copies does


@dataclass(frozen=True)
class Size:
    steps: int = 900
    batch: int = 64
    validation: int = 1000
    seeds: int = 3
    epochs: tuple[float, ...] = (1.4, 14.0, 56.0, 225.0)
    widths: tuple[int, ...] = (24, 48, 96)
    copies: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    documents: int = 4  # of each number of copies
    rank: int = 12  # of the sketch
    source: str = SOURCES[0]

    def unique(self, epochs: float) -> int:
        return max(self.batch, round(self.steps * self.batch / epochs))


SMALL = Size(steps=12, batch=8, validation=20, seeds=1, epochs=(1.5, 12.0), widths=(8, 16), copies=(1, 4), documents=1, rank=4)


@dataclass(frozen=True)
class Cell:
    epochs: float
    width: int
    dropout: float = 0.0
    dropout_from: float = 0.0  # share of the training after which dropout begins
    everywhere: bool = False  # dropout of embeddings and attention weights too, as GPT-2 has it
    experts: int = 1
    spans: bool = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="record the result and print it as the last line")
    parser.add_argument("--seeds", type=int, default=Size.seeds)
    parser.add_argument("--small", action="store_true", help="a size that says nothing and takes seconds")
    parser.add_argument("--kept", type=Path, help="a file of finished parts, to go on from")
    given = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(SMALL if given.small else Size(seeds=given.seeds), kept=given.kept)
    for source in SOURCES:
        for part in ("cells", "copies", "accepted"):
            for name, found in result[source][part].items():
                print(f"{source:9} {name:40} {found}")
    if given.json:
        record("repetition", result, typed("repetition"))


def measure(size: Size, *, kept: Path | None = None) -> dict[str, Any]:
    sizes, jobs = {source: replace(size, source=source) for source in SOURCES}, dict[str, Callable[[], Any]]()
    for source, one in sizes.items():
        for seed in range(size.seeds):
            jobs |= {f"{source}/{seed}/{name}": partial(trained_cell, one, cell, seed) for name, cell in cells(one).items()}
            jobs |= {f"{source}/{seed}/copies": partial(copies, one, seed)}
    done = resumed(jobs, kept=kept)
    names = (*cells(size), "copies")
    found = {source: {name: [done[f"{source}/{seed}/{name}"] for seed in range(size.seeds)] for name in names} for source in SOURCES}
    return rounded({source: judged(sizes[source], by_seed) for source, by_seed in found.items()})


def judged(size: Size, by_seed: dict[str, list[Any]]) -> dict[str, Any]:
    found = {name: summary(by_seed[name]) for name in cells(size)}
    copied = copies_summary(by_seed["copies"])
    entropy = float(np.mean([source_entropy(seed, size.source) for seed in range(size.seeds)]))
    floor = (np.log(TOKENS) + (LENGTH - 2) * entropy) / (LENGTH - 1)  # a sequence's second token is any, the others follow the source
    facts = {"source_entropy": entropy, "lowest_possible_loss": float(floor), "accepted": accepted(size, found, copied)}
    return {"cells": found, "copies": copied, "by_seed": by_seed, **facts}


def cells(size: Size) -> dict[str, Cell]:
    """Names are "EPOCHS epochs" with what differs from the plain model after it."""
    once, often, middle = size.epochs[0], size.epochs[-2] if len(size.epochs) > 2 else size.epochs[-1], size.widths[len(size.widths) // 2]
    grid = {name(epochs): Cell(epochs, middle) for epochs in size.epochs}
    grid |= {name(epochs, "dropout"): Cell(epochs, middle, DROPOUT) for epochs in size.epochs[1:]}
    grid |= {name(often, "dropout everywhere"): Cell(often, middle, DROPOUT, everywhere=True)}
    grid |= {name(often, "dropstage"): Cell(often, middle, DROPOUT, dropout_from=0.5)}
    grid |= {name(epochs, f"width {w}"): Cell(epochs, w) for w in size.widths if w != middle for epochs in (once, often)}
    grid |= {name(epochs, "experts"): Cell(epochs, middle, experts=EXPERTS) for epochs in (once, often)}
    return grid | {name(epochs, "spans"): Cell(epochs, middle, spans=True) for epochs in (once, often)}


def name(epochs: float, factor: str = "") -> str:
    return f"{epochs:g} epochs{', ' if factor else ''}{factor}"


# --------------------------------------------------------------------------------------------------------------- source


@lru_cache(maxsize=4)
def transitions(seed: int, source: str) -> np.ndarray:
    """[V, V, V] the probabilities of the next token after each pair."""
    rng = np.random.default_rng((seed, 0))
    if source == "table":
        return rng.dirichlet(np.full(TOKENS, CONCENTRATION), size=(TOKENS, TOKENS))
    before_VV, last_VV = SPREAD * rng.normal(size=(2, TOKENS, TOKENS))
    weights = np.exp(before_VV[:, None] + last_VV[None])
    return weights / weights.sum(-1, keepdims=True)


def source_entropy(seed: int, source: str) -> float:
    """Nats of a next token, over the pairs of sequences drawn from it."""
    p, tokens_NT = transitions(seed, source), sequences(1000, seed, 2, source).numpy()
    pairs = p[tokens_NT[:, :-2], tokens_NT[:, 1:-1]]
    return float(-(pairs * np.log(np.maximum(pairs, 1e-300))).sum(-1).mean())


def sequences(n: int, seed: int, stream: int, source: str) -> Tensor:
    """[n, T] drawn from the source of this seed; another stream is another draw."""
    cumulative, rng = transitions(seed, source).cumsum(-1), np.random.default_rng((seed, 1, stream))
    tokens_NT = rng.integers(TOKENS, size=(n, LENGTH))
    for t in range(2, LENGTH):
        rows_NV = cumulative[tokens_NT[:, t - 2], tokens_NT[:, t - 1]]
        tokens_NT[:, t] = np.minimum((rng.random((n, 1)) > rows_NV).sum(1), TOKENS - 1)
    return torch.from_numpy(tokens_NT)


def spans(tokens_BT: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """([B, T + 2], bool targets): a run of `SPAN` tokens becomes one mark, and follows the sequence after another mark."""
    start_B1 = torch.randint(1, LENGTH - SPAN, (len(tokens_BT), 1), generator=generator)
    at_T, gap = torch.arange(LENGTH + 2), LENGTH - SPAN + 1
    behind_BT = torch.where(at_T < gap, at_T + SPAN - 1, start_B1 + at_T - gap - 1)
    from_BT = torch.where(at_T < start_B1, at_T, behind_BT).clamp(0, LENGTH - 1)
    masked_BT = tokens_BT.gather(1, from_BT)
    masked_BT = torch.where(at_T == start_B1, MASK, masked_BT)
    return torch.where(at_T == gap, GAP, masked_BT), (at_T > gap).expand(len(tokens_BT), -1)


# ---------------------------------------------------------------------------------------------------------------- model


class TopOne(nn.Module):
    """E feed-forward layers of 4H/E inner units; each position goes to the one that its router prefers (Switch, Fedus 2022)."""

    def __init__(self, width: int, n: int, dropout: float) -> None:
        super().__init__()
        self.router = nn.Linear(width, n)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width // n), nn.GELU(), nn.Linear(4 * width // n, width), nn.Dropout(dropout))
            for _ in range(n)
        )

    def forward(self, x_BTH: Tensor) -> Tensor:
        flat_PH = x_BTH.flatten(0, 1)
        gate_P, chosen_P = self.router(flat_PH).softmax(-1).max(-1)
        out_PH = torch.zeros_like(flat_PH)
        for e, expert in enumerate(self.experts):
            here = (chosen_P == e).nonzero().squeeze(-1)
            out_PH = out_PH.index_add(0, here, expert(flat_PH[here]) * gate_P[here, None])
        return out_PH.view_as(x_BTH)


def gpt(cell: Cell, seed: int) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    dropouts = {"resid_pdrop": cell.dropout, **dict.fromkeys(("embd_pdrop", "attn_pdrop"), cell.dropout if cell.everywhere else 0.0)}
    shape = {"n_embd": cell.width, "n_layer": 2, "n_head": 4, "n_positions": LENGTH + 2, "vocab_size": TOKENS + 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(GPT2Config(**shape, **dropouts, bos_token_id=0, eos_token_id=0))
        if cell.experts > 1:
            for block in model.transformer.h:
                block.mlp = TopOne(cell.width, cell.experts, cell.dropout)
    return model


def loss_of(model: Any, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """Nats per target."""
    logits_BTV = model(input_ids=tokens_BT, use_cache=False).logits[:, :-1]
    wanted_BT = torch.where(targets_BT[:, 1:], tokens_BT[:, 1:], -100)
    return nn.functional.cross_entropy(logits_BTV.flatten(0, 1), wanted_BT.flatten(), ignore_index=-100)


def as_asked(tokens_BT: Tensor, cell: Cell, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    if cell.spans:
        return spans(tokens_BT, generator)
    targets_BT = torch.ones_like(tokens_BT, dtype=torch.bool)
    targets_BT[:, 0] = False
    return tokens_BT, targets_BT


def train(model: Any, tokens_NT: Tensor, cell: Cell, size: Size, seed: int, *, gone_N: np.ndarray | None = None) -> None:
    """AdamW for `size.steps`, every sequence once before any comes again; without those that are gone, the others in the same order."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)  # dropout draws from the global state
        for step, batch_BT in enumerate(batches(tokens_NT, size, seed, gone_N)):
            model.train(step >= cell.dropout_from * size.steps)
            for group in optimizer.param_groups:
                group["lr"] = LR * schedule(step / size.steps)
            loss = loss_of(model, *as_asked(batch_BT, cell, generator))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    model.eval()


def schedule(done: float) -> float:
    """A rise, then a cosine to a tenth."""
    return done / WARMUP if done < WARMUP else 0.1 + 0.45 * (1 + math.cos(math.pi * (done - WARMUP) / (1 - WARMUP)))


def batches(tokens_NT: Tensor, size: Size, seed: int, gone_N: np.ndarray | None = None) -> Iterator[Tensor]:
    rng, order = np.random.default_rng((seed, 2)), np.empty(0, dtype=np.int64)
    kept_N = np.ones(len(tokens_NT), dtype=bool) if gone_N is None else ~gone_N
    for _ in range(size.steps):
        while len(order) < size.batch:
            epoch = rng.permutation(len(tokens_NT))
            order = np.concatenate([order, epoch[kept_N[epoch]]])
        yield tokens_NT[torch.from_numpy(order[: size.batch])]
        order = order[size.batch :]


# ---------------------------------------------------------------------------------------------------------------- cells


def trained_cell(size: Size, cell: Cell, seed: int) -> dict[str, float]:
    """Losses at the end, and the share of training sequences whose second half is continued word for word from the first."""
    tokens_NT, fresh_NT = (sequences(n, seed, stream, size.source) for stream, n in enumerate((size.unique(cell.epochs), size.validation)))
    model = gpt(cell, seed)
    train(model, tokens_NT, cell, size, seed)
    some = tokens_NT[: size.validation]
    return {
        "train": end_loss(model, some, cell),
        "validation": end_loss(model, fresh_NT, cell),
        "continued": math.nan if cell.spans else continued(model, some),
        "unique": len(tokens_NT),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


@torch.no_grad()
def end_loss(model: Any, tokens_NT: Tensor, cell: Cell) -> float:
    return float(loss_of(model, *as_asked(tokens_NT, cell, torch.Generator().manual_seed(5))))


@torch.no_grad()
def continued(model: Any, tokens_NT: Tensor) -> float:
    guesses_NT = model(input_ids=tokens_NT, use_cache=False).logits.argmax(-1)
    half = LENGTH // 2
    return float((guesses_NT[:, half - 1 : -1] == tokens_NT[:, half:]).all(1).double().mean())


def summary(found: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over seeds, and the standard deviation of the validation loss."""
    means = {key: float(np.mean([one[key] for one in found])) for key in found[0]}
    spread = float(np.std([one["validation"] for one in found], ddof=1)) if len(found) > 1 else math.nan
    return {key: value for key, value in {**means, "validation_sd": spread}.items() if math.isfinite(value)}


# --------------------------------------------------------------------------------------------------------------- copies


@dataclass(frozen=True)
class Planted:
    """The rows of a training, and which document each one is a copy of (-1: none)."""

    tokens_NT: Tensor
    document_N: np.ndarray

    @property
    def last_copy_N(self) -> np.ndarray:
        """Whether a row is the last copy of its document."""
        last = {document: n for n, document in enumerate(self.document_N.tolist()) if document >= 0}
        return np.isin(np.arange(len(self.document_N)), list(last.values()))


def planted(size: Size, seed: int) -> tuple[Planted, Tensor, np.ndarray]:
    """(rows, documents [D, T], copies of each [D]): random tokens among sequences of the source, as many as 14 epochs have."""
    n_copies_D = np.repeat(size.copies, size.documents)
    documents_DT = torch.from_numpy(np.random.default_rng((seed, 3)).integers(TOKENS, size=(len(n_copies_D), LENGTH)))
    of_copies = np.repeat(np.arange(len(n_copies_D)), n_copies_D)
    plain_NT = sequences(max(size.unique(size.epochs[1]) - len(of_copies), size.batch), seed, 0, size.source)
    document_N = np.concatenate([np.full(len(plain_NT), -1), of_copies])
    return Planted(torch.cat([plain_NT, documents_DT[torch.from_numpy(of_copies)]]), document_N), documents_DT, n_copies_D


def copies(size: Size, seed: int) -> dict[str, Any]:
    """Each document's log-probability after the three trainings, and what influence predicts of the two removals."""
    rows, documents_DT, n_copies_D = planted(size, seed)
    gone = {"full": None, "one fewer": rows.last_copy_N, "none": rows.document_N >= 0}
    cell = Cell(size.epochs[1], size.widths[len(size.widths) // 2])
    found, models = dict[str, np.ndarray](), dict[str, Any]()
    for member, gone_N in gone.items():
        models[member] = gpt(cell, seed)
        train(models[member], rows.tokens_NT, cell, size, seed, gone_N=gone_N)
        found[member] = log_probability(models[member], documents_DT)
    one_D, all_D, rank_D = predicted(models["full"], rows, documents_DT, size)
    return {
        "copies": n_copies_D.tolist(),
        "log_probability": found["full"].tolist(),
        "true_one": (found["full"] - found["one fewer"]).tolist(),
        "true_all": (found["full"] - found["none"]).tolist(),
        "predicted_one": one_D.tolist(),
        "predicted_all": all_D.tolist(),
        "row_rank": rank_D.tolist(),
    }


@torch.no_grad()
def log_probability(model: Any, tokens_DT: Tensor) -> np.ndarray:
    """[D] nats, of all tokens but the first."""
    log_probs = model(input_ids=tokens_DT, use_cache=False).logits[:, :-1].log_softmax(-1)
    return log_probs.gather(-1, tokens_DT[:, 1:, None]).sum((1, 2)).double().numpy()


def predicted(model: Any, rows: Planted, documents_DT: Tensor, size: Size) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """([D] the drop without one copy, [D] without its cluster, [D] how many rows score higher for the document than its best copy)."""
    session = Session(model, SimpleNamespace(pad_token_id=0), "causal-lm", "markov")
    layout = make_layout(model, find_scope(model), SketchSpec(rank=size.rank, whole_below=0))
    examples = [example(f"row-{n}", tokens_T) for n, tokens_T in enumerate(rows.tokens_NT)]
    found = passed(session, layout, examples)
    groups = [f"document-{d}" if d >= 0 else f"row-{n}" for n, d in enumerate(rows.document_N)]
    columns = {"group": groups, "bad": np.zeros(len(examples), dtype=bool)}
    index = MemoryIndex([one.id for one in examples], layout, "loss", {"gradient": found.gradient_SD}, columns)
    asked = [example(f"document-{d}", tokens_T) for d, tokens_T in enumerate(documents_DT)]
    queries = query_index(session, layout, asked, measures.get("response_log_probability"))
    method = methods.get("fisher")
    scores = method.score(method.fit(index), index, queries)
    grouped = group_scores(scores, index, by="group")
    one_D = np.array([values_N[rows.document_N == d].mean() for d, values_N in enumerate(scores.values_QN)])
    all_D = np.array([values_G[grouped.groups.index(f"document-{d}")] for d, values_G in enumerate(grouped.values_QG)])
    rank_D = np.array([(values_N > values_N[rows.document_N == d].max()).sum() for d, values_N in enumerate(scores.values_QN)])
    return one_D, all_D, rank_D


def example(row_id: str, tokens_T: Tensor) -> Example:
    return Example(row_id, tokens_T.numpy(), np.arange(len(tokens_T)) > 0)


def copies_summary(found: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By the number of copies, the means over documents and seeds; beside them what one copy's removal is of that of all."""
    flat = {key: np.concatenate([np.asarray(one[key], dtype=np.float64) for one in found]) for key in found[0]}
    by_k: dict[str, dict[str, float]] = {}
    for k in np.unique(flat["copies"]):
        here = flat["copies"] == k
        means = {key: float(values[here].mean()) for key, values in flat.items() if key != "copies"}
        error = float(flat["true_one"][here].std(ddof=1) / math.sqrt(here.sum())) if here.sum() > 1 else math.nan
        shares = {
            "true_one_over_all": means["true_one"] / means["true_all"],
            "predicted_one_over_true_all": means["predicted_one"] / means["true_all"],
        }
        ratios = {
            "true_cluster_over_copy": means["true_all"] / means["true_one"],
            "predicted_cluster_over_copy": means["predicted_all"] / means["predicted_one"],
        }
        by_k[f"{k:g} copies"] = {
            key: value for key, value in {**means, "true_one_se": error, **shares, **ratios}.items() if math.isfinite(value)
        }
    return by_k


# ------------------------------------------------------------------------------------------------------------- accepted


def accepted(size: Size, found: dict[str, Any], copied: dict[str, Any]) -> dict[str, str]:
    """Of each line that was asked for: reached or missed, with the figure."""
    once, often = size.epochs[0], size.epochs[-2] if len(size.epochs) > 2 else size.epochs[-1]
    loss = {key: one["validation"] for key, one in found.items()}
    plain = [loss[name(epochs)] for epochs in size.epochs]
    rise = loss[name(often)] - loss[name(once)]
    recovered, everywhere = ((loss[name(often)] - loss[name(often, factor)]) / rise for factor in ("dropout", "dropout everywhere"))
    middle = size.widths[len(size.widths) // 2]
    by_width = {e: [loss[name(e, "" if w == middle else f"width {w}")] for w in size.widths] for e in (once, often)}
    stage = abs(loss[name(often, "dropstage")] - loss[name(often, "dropout")])
    experts, masked = (loss[name(often, factor)] - loss[name(once, factor)] for factor in ("experts", "spans"))
    ks = list(copied)
    most = copied[ks[-1]]
    ratios = {side: [copied[k][f"{side}_cluster_over_copy"] for k in ks] for side in ("predicted", "true")}
    return {
        f"val({often:g}) / val({once:g}) >= 1.5": said(loss[name(often)] / loss[name(once)] >= 1.5, loss[name(often)] / loss[name(once)]),
        "monotone in epochs": said(rising(plain), *plain),
        "dropout of what layers add recovers >= 80 % of the gap": said(recovered >= 0.8, recovered),
        "dropout everywhere recovers >= 80 % of the gap": said(everywhere >= 0.8, everywhere),
        "monotone in width when repeated": said(rising(by_width[often]), *by_width[often]),
        "width matters < .15 when not repeated": said(np.ptp(by_width[once]) < 0.15, *by_width[once]),
        "dropstage within .1 of dropout": said(stage < 0.1, stage),
        "experts overfit as the dense model of as many parameters (rise within 30 %)": said(abs(experts / rise - 1) <= 0.3, experts, rise),
        "a span mask degrades more": said(masked > rise, masked, rise),
        "cluster over copy grows with k, predicted": said(rising(ratios["predicted"]), *ratios["predicted"]),
        "cluster over copy grows with k, true": said(rising(ratios["true"]), *ratios["true"]),
        "one of the most copies is predicted near 0": near_zero(most["predicted_one_over_true_all"]),
        "one of the most copies is near 0": near_zero(most["true_one_over_all"]),
    }  # fmt: skip


def near_zero(share: float) -> str:
    return said(abs(share) < NEAR_ZERO, share)


def rising(values: Sequence[float]) -> bool:
    return all(a < b for a, b in itertools.pairwise(values))


def said(reached: Any, *figures: float) -> str:
    return f"{'reached' if reached else 'missed'}: {', '.join(f'{figure:.3g}' for figure in figures)}"


if __name__ == "__main__":
    main()
