"""Kill -9 at random moments of `headwater index`, go on with the same command: is the index, byte for byte, that of a run undisturbed?

    python -m benchmarks.crash [--json] [--kills 50] [--subprocesses 5] [--seed 0]

Every run is killed at least once, most of them several times, and then resumed to the end. Half of the kills come after a random time, half
as soon as a random number of files is there, so that they fall between the files of a shard too. To have the time go into indexing and not
into imports, runs are forked from a process that has imported everything and computed nothing; `--subprocesses` more go through
`python -m headwater index` from its first instruction.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.record import record
from headwater.progress import track

N_ROWS, SHARD_ROWS = 96, 4
DEADLINE_S = 300.0

Start = Callable[[Path], int]
"""Begins `headwater index` into a folder and returns the process id."""


@dataclass(frozen=True)
class Undisturbed:
    """The run that every other one is held against: its files, and how long it took."""

    files: dict[str, bytes]
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """One run that was killed and resumed: where each kill found it, and the files that came out otherwise."""

    phases: tuple[str, ...]
    different: tuple[str, ...]


def main() -> None:
    options = _options()
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), kills=options.kills, subprocesses=options.subprocesses, seed=options.seed)
    if options.json:
        record("crash", result, f"python -m benchmarks.crash --json --kills {options.kills} --subprocesses {options.subprocesses}")
    else:
        print(json.dumps(result, indent=1))
    if result["identical"] != result["runs"]:
        sys.exit(1)


def measure(folder: Path, *, kills: int, subprocesses: int, seed: int) -> dict[str, Any]:
    """Kill and resume so many runs, and count those that end with the bytes of an undisturbed one."""
    start_s, generator = time.monotonic(), random.Random(seed)
    _in_child(lambda: _make_inputs(folder))
    command = ["index", str(folder / "model"), str(folder / "train.jsonl"), "--shard-rows", str(SHARD_ROWS), "--quiet", "-o"]
    _import_what_a_run_imports(command, folder)
    outcomes: list[Outcome] = []
    for begin, n_runs in ((_forked(command), kills), (_spawned(command), subprocesses)):
        if n_runs:
            whole = _undisturbed(begin, folder / f"whole-{len(outcomes)}")
            for number in track(range(n_runs), total=n_runs, description="killing and resuming"):
                outcomes.append(_disturbed(begin, folder / f"run-{len(outcomes)}-{number}", whole, generator))
    return {
        "runs": len(outcomes),
        "identical": sum(not outcome.different for outcome in outcomes),
        "kills": sum(len(outcome.phases) for outcome in outcomes),
        "kills_by_phase": dict(sorted(Counter(phase for outcome in outcomes for phase in outcome.phases).items())),
        "different": sorted({name for outcome in outcomes for name in outcome.different}),
        "through_subprocess": subprocesses,
        "rows": N_ROWS,
        "shards": N_ROWS // SHARD_ROWS,
        "seconds": round(time.monotonic() - start_s, 1),
    }


def _undisturbed(begin: Start, run: Path) -> Undisturbed:
    start = time.monotonic()
    _finish(begin(run))
    return Undisturbed(_contents(run), time.monotonic() - start)


def _disturbed(begin: Start, run: Path, whole: Undisturbed, generator: random.Random) -> Outcome:
    """Kill the run one to three times (a run that was quicker than its killer is begun anew), let it end, compare."""
    phases: list[str] = []
    wanted = generator.randint(1, 3)
    while len(phases) < wanted:
        process = begin(run)
        (_kill_after_time if generator.random() < 0.5 else _kill_after_files)(process, run, whole, generator)
        if _wait(process) == -signal.SIGKILL:
            phases.append(_phase(run))
        elif not phases:
            shutil.rmtree(run)
        else:
            break
    _finish(begin(run))
    found = _contents(run)
    different = {name for name in {**found, **whole.files} if found.get(name) != whole.files.get(name)}
    shutil.rmtree(run)
    return Outcome(tuple(phases), tuple(sorted(different)))


def _kill_after_time(process: int, run: Path, whole: Undisturbed, generator: random.Random) -> None:
    time.sleep(generator.uniform(0, whole.seconds))
    _kill(process)


def _kill_after_files(process: int, run: Path, whole: Undisturbed, generator: random.Random) -> None:
    """As soon as a random number of new files is there, and up to two milliseconds: a file is written in less."""
    enough = _n_files(run) + generator.randint(1, len(whole.files))
    deadline = time.monotonic() + 4 * whole.seconds
    while _n_files(run) < enough and not _ended(process) and time.monotonic() < deadline:
        time.sleep(0.0002)
    time.sleep(generator.uniform(0, 0.002))
    _kill(process)


def _phase(run: Path) -> str:
    """Where the kill found the run, by what it left."""
    index = run / "index"
    tables, tensors, commits = (
        {path.stem for path in (index / kind).glob(f"[0-9]*{end}")}
        for kind, end in (("shards", ".parquet"), ("shards", ".safetensors"), ("commits", ".json"))
    )
    if not (run / "run.json").exists():
        return "before the run's records" if index.exists() else "before the first file"
    if any(run.rglob(".*.tmp")):
        return "within a file"
    if tensors - tables:
        return "between a shard's files"
    if tables - commits:
        return "before a shard's commit"
    if len(commits) == N_ROWS // SHARD_ROWS:
        return "after the last commit"
    return "between shards" if commits else "before the first shard"


def _contents(run: Path) -> dict[str, bytes]:
    """Every file of the run, hidden ones too. run.json says when and where it was made: of that one the rest."""
    files = {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}
    files["run.json"] = json.dumps({**json.loads(files["run.json"]), "created": None, "environment": None}).encode()
    return files


def _n_files(run: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(run))


# ------------------------------------------------------------------------------------------------------ processes


def _forked(command: list[str]) -> Start:
    return lambda run: _fork(lambda: _run_cli([*command, str(run)]))


def _import_what_a_run_imports(command: list[str], folder: Path) -> None:
    """Much is imported where it is used: a run in a child says what that is. Importing starts no thread, so forking stays safe."""

    def run_and_tell() -> None:
        with suppress(SystemExit):  # how a command ends
            _run_cli([*command, str(folder / "first")])
        (folder / "modules.json").write_text(json.dumps([name for name in sys.modules if not name.startswith("__")]))

    _in_child(run_and_tell)
    for name in json.loads((folder / "modules.json").read_text()):
        with suppress(Exception):  # some packages put names into sys.modules that cannot be imported
            importlib.import_module(name)
    import torch

    torch.set_num_threads(1)


def _spawned(command: list[str]) -> Start:
    def begin(run: Path) -> int:
        quiet = subprocess.DEVNULL
        return subprocess.Popen([sys.executable, "-m", "headwater", *command, str(run)], stdout=quiet, stderr=quiet).pid

    return begin


def _run_cli(command: list[str]) -> None:
    from headwater.cli import main as headwater

    sys.argv = ["headwater", *command]
    headwater()


def _fork(work: Callable[[], None]) -> int:
    """The child does the work in silence and ends with its exit code; it never returns into this program."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        work()
        code = 0
    except SystemExit as done:
        code = int(done.code or 0)
    finally:
        os._exit(code)


def _in_child(work: Callable[[], None]) -> None:
    """In a process of its own: a parent that has computed something may hold threads, and then must not fork."""
    _finish(_fork(work))


def _kill(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def _ended(process: int) -> bool:
    """Whether it is done; it stays there to be waited for."""
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _wait(process: int) -> int:
    """The exit code, or minus the signal that ended it."""
    deadline = time.monotonic() + DEADLINE_S
    while not _ended(process):
        if time.monotonic() > deadline:
            _kill(process)
            raise TimeoutError(f"process {process} did not end within {DEADLINE_S:.0f} s")
        time.sleep(0.002)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _finish(process: int) -> None:
    code = _wait(process)
    if code != 0:
        raise RuntimeError(f"a run that nobody killed ended with exit code {code}")


# ---------------------------------------------------------------------------------------------------------- inputs


def _make_inputs(folder: Path) -> None:
    """A tiny model with its tokenizer, and rows of unlike lengths."""
    from headwater.model.tiny import tiny_model

    rows = [{"prompt": f"Say number {i}.", "response": " ".join(str(j) for j in range(i, i + 1 + i % 7))} for i in range(N_ROWS)]
    model, tokenizer = tiny_model(0, vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object at the end, also written to benchmarks/results/crash.json")
    parser.add_argument("--kills", type=int, default=50, help="runs that are killed and resumed")
    parser.add_argument("--subprocesses", type=int, default=5, help="so many more through the real command")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    return parser.parse_args()


if __name__ == "__main__":
    main()
