"""What a benchmark leaves behind: its result, the command, the versions and the machine, in `benchmarks/results/NAME.json`."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "headwater")


def record(name: str, result: dict[str, Any], command: str) -> Path:
    """Write a benchmark's result with its command, date and machine; print the result as one JSON object, the last line of output."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    value = {"name": name, **stamp(command), **result}
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(json.dumps(result), flush=True)
    return path


def stamp(command: str) -> dict[str, Any]:
    """Where a result is from. One that has a stamp of its own keeps it when it is recorded."""
    return {"command": command, "date": datetime.now(UTC).date().isoformat(), "machine": machine()}


def machine() -> dict[str, Any]:
    """Versions, processor and threads: what a ratio may depend on."""
    import torch

    return {
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "cpu": _cpu_model(),
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
