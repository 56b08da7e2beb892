"""The engines, their pins, and the virtual environment that is made for each of them.

An environment has the project's pins (`constraints.txt`: one torch, one transformers for all engines), the engine, and what `task.py` reads
the workload with. torchvision and torchaudio, which some engines ask for and none of these jobs uses, come built for CUDA and break
`import transformers` beside a CPU torch: they are taken out again.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).parents[2]
SHARED = ("transformers", "peft", "safetensors")
UNWANTED = ("torchvision", "torchaudio")


@dataclass(frozen=True)
class Engine:
    """`pin` is pip's requirement; empty for the engine that runs in this environment."""

    name: str
    module: str
    pin: str = ""

    @property
    def version(self) -> str:
        return self.pin.partition("==")[2]


ENGINES = {
    engine.name: engine
    for engine in (
        Engine("headwater", "benchmarks.peers.headwater"),
        Engine("kronfluence", "benchmarks.peers.kronfluence", "kronfluence==1.0.1"),
        Engine("bergson", "benchmarks.peers.bergson", "bergson==2.5.1"),
        Engine("dattri-llm", "benchmarks.peers.dattri_llm", "dattri-llm[attribution]==0.1.0"),
        Engine("traker", "benchmarks.peers.traker", "traker==0.3.2"),
    )
}


def interpreter(engine: Engine, cache: Path) -> Path:
    """The python of the engine's environment, made where it is not there yet (minutes, about 1.5 GB). RuntimeError where pip fails."""
    if not engine.pin:
        return Path(sys.executable)
    folder = cache / engine.name
    python, made = folder / "bin" / "python", folder / "made-for"
    wanted = " ".join((engine.pin, *SHARED))
    if not made.exists() or made.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        _run(sys.executable, "-m", "venv", str(folder))
        _run(str(python), "-m", "pip", "install", "--quiet", "--constraint", str(CHECKOUT / "constraints.txt"), engine.pin, *SHARED)
        _run(str(python), "-m", "pip", "uninstall", "--quiet", "--yes", *UNWANTED)
        made.write_text(wanted)
    return python


class Interpreters(NamedTuple):
    """The python of each engine; for an engine without one, the error."""

    pythons: dict[str, Path]
    errors: dict[str, str]


def interpreters(names: Iterable[str], cache: Path) -> Interpreters:
    found = Interpreters({}, {})
    for name in names:
        try:
            found.pythons[name] = interpreter(ENGINES[name], cache)
        except (OSError, RuntimeError) as error:
            found.errors[name] = str(error)
    return found


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[2:5])} failed: {last_line(done.stderr)}")


def last_line(text: str) -> str:
    """What a traceback or pip ends with: the error itself."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it said nothing")
