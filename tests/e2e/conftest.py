"""A tiny model with its training data on disk, and the command line as a person types it, but in this process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

COLOURS, THINGS = ("red", "blue", "green"), ("car", "house", "river", "stone", "bird", "tree")
ROWS = [
    {
        "prompt": f"What colour is {thing} number {i}?",
        "response": f"The {thing} is {COLOURS[(i + k) % 3]} and stands {'far away ' * (i % 3)}.",
    }
    for i in range(4)
    for k, thing in enumerate(THINGS)
]
QUERY = ("--prompt", "What colour is car number 3?", "--response", "The car is red.")


@dataclass(frozen=True)
class Answer:
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out.strip().splitlines()[-1])


@dataclass(frozen=True)
class World:
    """Folders made once for all tests: nobody writes into them."""

    model: Path
    data: Path
    adapter: Path
    run: Path


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tiny(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """A tiny Llama and its tokenizer, saved."""
    from headwater.model.tiny import tiny_model

    config = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, **changes}
    model, tokenizer = tiny_model(seed, texts=[f"{row['prompt']} {row['response']}" for row in ROWS], vocab_size=300, **config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def lora(base: Path, folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """A LoRA adapter for the model in `base`, with random weights on both sides."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = {"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", "init_lora_weights": False, **changes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**config))
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    model, data = tiny(root / "model"), write_rows(root / "train.jsonl", ROWS)
    adapter = lora(model, root / "adapter")
    import headwater

    run = headwater.index(model, data, root / "run", store__shard_rows=8).path
    headwater.trace(run, prompt=QUERY[1], response=QUERY[3]).report()
    return World(model, data, adapter, run)


@pytest.fixture
def run(world: World, tmp_path: Path) -> Path:
    """A finished run of one's own: to trace in, or to damage."""
    return shutil.copytree(world.run, tmp_path / "run")


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """`cli("index", model, data, "-o", run)`: the `headwater` command, from its arguments to its exit code."""
    from headwater.cli import main

    def call(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["headwater", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as done:
            code = int(done.code or 0)
        said = capfd.readouterr()
        return Answer(code, str(said.out), str(said.err))

    return call


def command(*arguments: object) -> subprocess.Popen[str]:
    """The same in a process of its own, which hears Ctrl-C even where this one was started in the background of a shell."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "headwater", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder: to see that nothing changed, or that two folders are the same."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
