"""Headwater beside its peers on one workload: `python -m benchmarks.peers --json`.

    engines.py       each engine's pins and the virtual environment that is made for it
    job.py           what is run, in which rows of the table it appears, which figure it stands for
    task.py          inside an engine's process: the workload, the stages' clock, the training pass, peak memory, scores
    ENGINE.py        one engine: a function for each of its jobs, `job(task) -> scores`; run as `python -m benchmarks.peers.ENGINE`
    exact.py         gradient products by plain autograd, which an engine's exact ones are held against
    table.py         results -> the table and the JSON

`task.py` and the engines' files import numpy, torch, transformers and the engine, and nothing of Headwater: they run in the engine's
environment. `headwater.py` has the same interface and runs in this one.
"""
