"""Gauss-Newton products, K-FAC and EK-FAC beside curvlinops, which shares no code with this package.

    python -m benchmarks.oracles [--json] [--environments .venvs]

On a tiny GPT-2 and a tiny BERT classifier in float64, random vectors go through our Gauss-Newton operator and through curvlinops' own; on
the classifier also through K-FAC and EK-FAC with the rows' own labels (KFAC-expand: the positions of a row count as independent). What is
printed is the relative error of the products, and the ratio of their norms: a missing factor of T or N is seen at a glance. curvlinops
works in an environment of its own, made on the first run. EK-FAC scores against kronfluence's: `benchmarks.peers`.

N rows · D tracked parameters · V vectors
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from benchmarks.peers.engines import CHECKOUT, Engine, interpreter, last_line
from benchmarks.record import record
from headwater.curvature import EKFAC, KFAC
from headwater.curvature.kronecker import bases
from headwater.gradient.live import LiveSource
from headwater.gradient.scope import find_scope, make_layout
from headwater.gradient.sketch import SketchSpec
from headwater.model.session import Session
from headwater.progress import quiet
from headwater.types import Example, State

CURVLINOPS = Engine("curvlinops", "benchmarks.oracle_curvlinops", "curvlinops-for-pytorch==3.0.1")
SCRIPT = Path(__file__).with_name("oracle_curvlinops.py")
VOCABULARY, N_ROWS, LENGTH, N_VECTORS = 23, 12, 6, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="record the result and print it as the last line")
    parser.add_argument("--environments", type=Path, default=CHECKOUT / ".venvs", help="where curvlinops' environment is, or is made")
    given = parser.parse_args()
    result = measure(interpreter(CURVLINOPS, given.environments))
    for name, value in result.items():
        print(f"{name:14} {value}")
    if given.json:
        record("oracles", {"curvlinops": CURVLINOPS.version, "products": result}, "python -m benchmarks.oracles --json")


def measure(python: Path) -> dict[str, dict[str, float]]:
    """{"model operator": {"relative_error", "ratio of norms", ours over theirs}}."""
    cases = {"gpt2": gpt2(), "bert": bert()}
    with tempfile.TemporaryDirectory() as scratch, quiet():
        asked, answered = Path(scratch) / "cases.pt", Path(scratch) / "results.pt"
        torch.save({name: case for name, (_, case) in cases.items()}, asked)
        done = subprocess.run([str(python), str(SCRIPT), str(asked), str(answered)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"curvlinops failed: {last_line(done.stderr)}")
        theirs = torch.load(answered, weights_only=False)
        return {f"{name} {operator}": compared(source, case, operator, theirs[name][operator]) for name, (source, case) in cases.items()
                for operator in case["operators"]}  # fmt: skip


def compared(source: LiveSource, case: dict[str, Any], operator: str, theirs: list[Tensor]) -> dict[str, float]:
    theirs_VD = torch.cat([part.flatten(0, -2) for part in theirs]).T / len(source)
    ours_VD = applied(source, operator, torch.cat([part.flatten(0, -2) for part in case["vectors"]]).T)
    return {
        "relative_error": float((ours_VD - theirs_VD).norm() / theirs_VD.norm()),
        "ratio_of_norms": float(ours_VD.norm() / theirs_VD.norm()),
    }


def applied(source: LiveSource, operator: str, v_VD: Tensor) -> Tensor:
    """[V, D] C v, not damped."""
    if operator == "ggn":
        return source.gauss_newton(v_VD)
    curvature = (KFAC if operator == "kfac" else EKFAC)(labels="true", precision="float32")
    return in_basis(curvature.fit(source), source, v_VD)


def in_basis(state: State, source: LiveSource, v_VD: Tensor) -> Tensor:
    """`Q_S [(Q_S' V Q_A) * eigenvalues] Q_A'` of each block."""
    parts, eigenvalues = source.layout.split(v_VD), source.layout.split(state["eigenvalues"])
    images = {}
    for name, basis in bases(state, source.layout).items():
        matrix_VOI = parts[name] if parts[name].dim() == 3 else parts[name].unsqueeze(-1)
        images[name] = basis.rotate_back(basis.rotate(matrix_VOI) * eigenvalues[name].reshape(matrix_VOI.shape[1:])).reshape(
            parts[name].shape
        )
    return source.layout.join(images)


# -------------------------------------------------------------------------------------------------------------- cases


def gpt2() -> tuple[LiveSource, dict[str, Any]]:
    config = {"vocab_size": VOCABULARY, "n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 1}
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**config)).double().eval()
    tokens, _ = drawn()
    rows = [Example(id=str(i), tokens=row, loss_mask=np.arange(LENGTH) > 0) for i, row in enumerate(tokens)]
    source = live(Session(model, None, "causal-lm", name="gpt2"), rows, ("*attn*", "*mlp*", "*ln_*"))
    targets = torch.tensor(tokens[:, 1:])
    return source, case_of(source, "gpt2", config, tokens, targets, ["ggn"], causal=True)


def bert() -> tuple[LiveSource, dict[str, Any]]:
    config = {"vocab_size": VOCABULARY, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    config |= {"max_position_embeddings": 16, "num_labels": 3}
    torch.manual_seed(1)
    model = BertForSequenceClassification(BertConfig(**config)).double().eval()
    tokens, labels = drawn()
    rows = [Example(id=str(i), tokens=row, loss_mask=np.zeros(LENGTH, dtype=bool), label=int(labels[i])) for i, row in enumerate(tokens)]
    source = live(Session(model, None, "sequence-classification", name="bert"), rows, ("*query*", "*value*", "*dense*", "classifier*"))
    return source, case_of(source, "bert", config, tokens, torch.tensor(labels), ["ggn", "kfac", "ekfac"], causal=False)


def drawn() -> tuple[np.ndarray, np.ndarray]:
    """([N, T] tokens, [N] labels)."""
    rng = np.random.default_rng(0)
    return rng.integers(2, VOCABULARY, size=(N_ROWS, LENGTH)), rng.integers(0, 3, size=N_ROWS)


def live(session: Session, rows: list[Example], include: tuple[str, ...]) -> LiveSource:
    layout = make_layout(session.model, find_scope(session.model, include=include), SketchSpec(rank=None))
    return LiveSource(session, rows, layout, token_budget=24)


def case_of(
    source: LiveSource, model: str, config: dict[str, Any], tokens: np.ndarray, targets: Tensor, operators: list[str], *, causal: bool
) -> dict[str, Any]:
    """What the other side is told: weights, data, vectors, in the parameters' own shapes with the vectors last."""
    named = dict(source.session.model.named_parameters())
    names = [block.name for block in source.layout.blocks]
    generator = torch.Generator().manual_seed(2)
    return {
        "model": model,
        "config": config,
        "causal": causal,
        "weights": source.session.model.state_dict(),
        "tokens": torch.tensor(tokens),
        "targets": targets,
        "parameters": names,
        "vectors": [torch.randn(*named[name].shape, N_VECTORS, generator=generator, dtype=torch.float64) for name in names],
        "operators": operators,
    }


if __name__ == "__main__":
    main()
