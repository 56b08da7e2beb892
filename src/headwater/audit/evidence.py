"""The numbers that bear on a verdict, one of each for a query: on which scale they count, and what they say in plain words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Words = Callable[[float], str]


@dataclass(frozen=True)
class Evidence:
    """`scale` makes a number one that a logistic regression can use; `words` say it, for whoever reads the verdict."""

    name: str
    words: Words
    of_scores: bool = False  # on the scale of the primary method's scores: another method's means something else
    scale: Callable[[np.ndarray], np.ndarray] = np.asarray


def nats(what: str) -> Words:
    """`what` has places for "N nats further than" or "no further than"."""
    return lambda value: what.format(f"{value:.2g} nats further than" if value > 0 else f"{-value:.2g} nats less far than")


EVIDENCE = {
    one.name: one
    for one in (
        Evidence(
            "learned", nats("from the model before training, a few steps on these rows move the answer {} on random rows"), scale=np.arcsinh
        ),
        Evidence(
            "needed",
            lambda v: f"without these rows their neighbours bring the answer {abs(v):.2g} nats {'less far' if v > 0 else 'further'}",
            scale=np.arcsinh,
        ),
        Evidence("unlearned", nats("a few steps away from these rows move the answer {} away from random rows"), scale=np.arcsinh),
        Evidence("moved", lambda v: f"training as a whole moved the answer by {v:+.3g} nats", scale=np.arcsinh),
        Evidence(
            "reference",
            lambda v: f"these rows score {v:.2g} spreads above what they score for questions they do not answer",
            of_scores=True,
            scale=np.arcsinh,
        ),
        Evidence(
            "rest",
            lambda v: f"the rows after them score {v:.0%} of what these do" + (": there may be more of the kind" if v > 0.5 else ""),
            of_scores=True,
        ),
        Evidence("lexical", lambda v: f"BM25 names {v:.0%} of the same rows", of_scores=True),
        Evidence("repsim", lambda v: f"RepSim names {v:.0%} of the same rows", of_scores=True),
        Evidence("randomised", lambda v: f"the ranking correlates {v:.2f} with that of a model with shuffled weights", of_scores=True),
    )
}
