"""Measurements of speed and quality, each a command: `python -m benchmarks.NAME --json`. Ratios, measured side by side in one run."""
