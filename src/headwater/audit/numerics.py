"""Numerics: the same row must give the same number, whatever stands beside it and in whatever dtype.

S sampled rows · D numbers of a gradient row
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from headwater.audit.check import Need, Report
from headwater.audit.sampled import Passed, cosines, differences, layout_of, passed, some_positions, stored_loss_apart
from headwater.audit.subject import Subject
from headwater.index.codec import decode, encode
from headwater.model.session import Session
from headwater.types import Example, Finding, FindingStatus, Layout

HALF = (torch.bfloat16, torch.float16)
KERNELS = ("sdpa", "eager")
EXTRA = 8  # positions of padding more than a batch needs


@dataclass(frozen=True)
class Numerics:
    """Losses and gradients of a few rows against themselves: again, alone, with more padding, in float32, with another attention kernel.

    A relative difference above `tolerance` (float32) or `coarse` (half precision: eight bits of mantissa over many layers) is `warn`, and
    ten times that is `fail`: no rounding explains it. Cosines between a dtype and float32 below `alike` are `warn`, below `unlike` `fail`:
    scores are made of directions. The float32 copy takes as much memory as such a model.
    """

    name: ClassVar[str] = "numerics"
    summary: ClassVar[str] = "a row gives the same loss and gradient again, alone, padded, in float32, by another attention kernel"
    reference: ClassVar[str] = ""
    needs: ClassVar[frozenset[Need]] = frozenset()

    rows: int = 8
    tolerance: float = 1e-3
    coarse: float = 0.05
    alike: float = 0.99
    unlike: float = 0.9
    same: float = 0.9  # of the rows must have their stored loss: else the stored rows are others', of which `identity` speaks
    guess: float = 1.5  # times the loss of guessing: weights that know less than nothing are not the trained ones

    def passes(self, subject: Subject) -> float:
        return 8 * min(self.rows, len(subject.rows)) / max(len(subject.rows), 1)

    def __call__(self, subject: Subject) -> Report:
        one = _Sample(self, subject)
        findings = [one.dtype(), one.loss(), one.stored(), one.repeatability(), one.mates(), one.padding(), one.side(), one.attention()]
        return Report([finding for finding in findings if finding is not None])


@dataclass(frozen=True, eq=False)
class _Sample:
    check: Numerics
    subject: Subject

    @cached_property
    def drawn(self) -> list[Example]:
        return self.subject.examples(some_positions(self.subject, self.check.rows, key=1))

    @cached_property
    def layout(self) -> Layout:
        return layout_of(self.subject)

    @property
    def session(self) -> Session:
        return self.subject.session

    @cached_property
    def all_alone(self) -> Passed:
        return self._pass(self.drawn, alone=True)

    @cached_property
    def rows(self) -> list[Example]:
        """Those whose loss and gradient are finite: of the others `dtype` speaks, and nobody else."""
        return [row for row, finite in zip(self.drawn, self.all_alone.finite_S.tolist(), strict=True) if finite]

    @cached_property
    def alone(self) -> Passed:
        return self.all_alone.of(self.all_alone.finite_S)

    @property
    def tolerance(self) -> float:
        return self.check.coarse if self.session.dtype in HALF else self.check.tolerance

    def _pass(self, rows: Sequence[Example], *, alone: bool = False, session: Session | None = None, extra: int = 0) -> Passed:
        batches = [[i] for i in range(len(rows))] if alone else [list(range(len(rows)))]
        return passed(session or self.session, self.layout, rows, batches=batches, extra=extra)

    # ------------------------------------------------------------------------------------------------- the same again

    def repeatability(self) -> Finding:
        step = "Look for randomness in the model's forward pass (dropout that eval() does not switch off, sampling, noise)."
        return self._held("repeatability", "again in the same batch", lambda: (self._pass(self.rows), self._pass(self.rows)), step)

    def mates(self) -> Finding:
        step = "Something mixes the rows of a batch (a loss averaged over it, a norm over it, a router with a capacity): index row by row."
        return self._held("batch mates", "in a batch of the others", lambda: (self.alone, self._pass(self.rows)), step)

    def padding(self) -> Finding:
        longest = max((row.n_tokens for row in self.rows), default=0)
        extra = EXTRA if self.session.max_length is None else min(EXTRA, self.session.max_length - longest)
        if self.rows and extra < 1:
            because = f"Not measured: the longest sampled row has {longest} tokens, as many as the model has positions."
            return Finding(
                "numerics: padding", "unknown", because, next_step="Shorter rows (--set data.max_length) leave room to measure it."
            )
        step = "The model sees padding on the right of a row: give its config the pad token's id, or index rows of one length."
        more = f"with {extra} more positions of padding"
        return self._held("padding", more, lambda: (self.alone, self._pass(self.rows, alone=True, extra=extra)), step)

    def attention(self) -> Finding:
        name, network = "numerics: attention kernel", self.session.network
        now = getattr(network.config, "_attn_implementation", None)
        other = next((kernel for kernel in KERNELS if kernel != now), KERNELS[-1])
        try:
            with _attention(network, other):
                by_other = self._pass(self.rows) if self.rows else None
        except (ValueError, ImportError, AttributeError, NotImplementedError) as error:
            because = f"Not measured: {type(network).__name__} has no other kernel than {now} here ({str(error).splitlines()[0][:120]})."
            return Finding(name, "unknown", because, next_step="Nothing to do where the model has one kernel only.")
        step = f"One of the two kernels is wrong for this model: compare both with its reference before you trust {now}."
        if by_other is None:
            return self._not_finite(name)
        return self._judged("attention kernel", f"by {other} in place of {now}", differences(self._pass(self.rows), by_other), step)

    def side(self) -> Finding:
        """Padding on the left is attended to and shifts positions: our batches have no mask that would hide it."""
        padded = [row for row in self.rows if _leading(row, self.subject.session)]
        side = getattr(self.session.tokenizer, "padding_side", "right")
        if not padded:
            because = (
                f"None of {len(self.rows)} sampled rows begins with padding; batches are padded on the right, whatever the tokenizer's "
                f"side ({side}) is."
            )
            return Finding("numerics: padding side", "ok" if self.rows else "unknown", because, value=0.0, n=len(self.rows))
        bare = [_without_leading(row, _leading(row, self.session)) for row in padded]
        values_S = differences(self._pass(bare, alone=True), self._pass(padded, alone=True))
        found = self._judged("padding side", f"without the padding that {len(padded)} of {len(self.rows)} rows begin with", values_S, "")
        step = "Rows are encoded without padding: remove it from their tokens (it stands on the left, where a causal model sees it)."
        return replace(found, next_step=None if found.status == "ok" else step)

    def _held(self, name: str, how: str, passes: Callable[[], tuple[Passed, Passed]], step: str) -> Finding:
        if not self.rows:
            return self._not_finite(f"numerics: {name}")
        return self._judged(name, how, differences(*passes()), step)

    def _not_finite(self, name: str) -> Finding:
        because = f"Not measured: none of {len(self.drawn)} sampled rows has a finite loss and gradient."
        return Finding(name, "unknown", because, next_step="See numerics: dtype.")

    def _judged(self, name: str, how: str, values_S: Tensor, step: str) -> Finding:
        worst = float(values_S.max()) if bool(values_S.isfinite().all()) else math.inf
        status = graded(worst, warn=self.tolerance, fail=10 * self.tolerance)
        because = f"Loss and gradient of {len(values_S)} rows differ by at most {worst:.2g} {how}; rounding is below {self.tolerance:g}."
        return Finding(
            f"numerics: {name}", status, because, value=worst if math.isfinite(worst) else None, unit="relative difference",
            n=len(values_S), next_step=None if status == "ok" else step,
        )  # fmt: skip

    # ---------------------------------------------------------------------------------------------------------- dtype

    def dtype(self) -> Finding:
        """The model's dtype against a float32 copy of the same weights."""
        name, dtype = "numerics: dtype", str(self.session.dtype).removeprefix("torch.")
        bad = len(self.drawn) - len(self.rows)
        step = "Load the model in float32 (--dtype float32) and index again; if losses are still not finite, the checkpoint is damaged."
        if bad:
            because = f"{bad} of {len(self.drawn)} sampled rows have a loss or a gradient that is not a finite number in {dtype}."
            return Finding(name, "fail", because, value=bad / len(self.drawn), unit="share of rows", n=len(self.drawn), next_step=step)
        if self.session.dtype not in HALF:
            because = f"The model is in {dtype}, and the losses and gradients of {len(self.drawn)} sampled rows are finite."
            return Finding(name, "ok", because, n=len(self.drawn))
        wide = self._pass(self.rows, alone=True, session=_in_float32(self.session))
        cosine = float(cosines(self.alone.gradient_SD, wide.gradient_SD).median())
        loss = float(((self.alone.loss_S - wide.loss_S).abs() / wide.loss_S.abs().clamp(min=1)).median())
        status = graded(1 - cosine, warn=1 - self.check.alike, fail=1 - self.check.unlike)
        because = (
            f"In {dtype} the median row's gradient has a cosine of {cosine:.4f} with that of the same weights in float32, and its loss "
            f"differs by {loss:.2g} of itself."
        )
        return Finding(name, status, because, value=cosine, unit="cosine", n=len(self.rows), next_step=None if status == "ok" else step)

    def loss(self) -> Finding:
        """Weights that were destroyed agree with their float32 copy; but they know less than a guess."""
        name = "numerics: loss"
        if not self.rows:
            return self._not_finite(name)
        targets = sum(max(row.n_loss_tokens, 1) if row.label is None else 1 for row in self.rows)
        found, guess = float(self.alone.loss_S.sum()) / targets, math.log(_choices(self.session))
        status = graded(found / guess, warn=1.05, fail=self.check.guess)
        because = f"The sampled rows have a loss of {found:.3g} nats per target; guessing among all tokens or classes has {guess:.3g}."
        step = "These are not the weights that were trained on these rows: look at the checkpoint, its dtype and the tokenizer."
        return Finding(
            name, status, because, value=found, unit="nats per target", n=len(self.rows), next_step=None if status == "ok" else step
        )

    def stored(self) -> Finding | None:
        """The index's rows against fresh ones, where the stored loss is that of this row and model; elsewhere `identity` speaks."""
        index, name = self.subject.index, "numerics: stored rows"
        if index is None:
            return None
        if "transform" in index.spec.facts:
            return Finding(name, "unknown", "Not measured: the index holds updates, not plain gradients.", next_step="Nothing to do.")
        known = set(index.ids)
        here = [i for i, row in enumerate(self.rows) if row.id in known]
        at = index.positions_of([self.rows[i].id for i in here])
        fresh = self.alone.of(torch.tensor(here, dtype=torch.long))
        same_S = stored_loss_apart(index, [self.rows[i] for i in here], fresh) <= max(0.01, self.tolerance)
        good_S = ~torch.from_numpy(np.asarray(index.column("bad"))[at].astype(bool))
        if not bool(good_S.any()) or float(same_S[good_S].double().mean()) < self.check.same:
            n_same = int((same_S & good_S).sum())
            because = f"Not measured: {n_same} of {len(self.drawn)} sampled rows have the loss that the index holds for them."
            return Finding(name, "unknown", because, next_step="See identity and numerics: dtype.")
        same_S &= good_S
        stored_SD, fresh_SD = index.take("gradient", at)[same_S].double(), fresh.gradient_SD[same_S]
        cosine_S = torch.nan_to_num(cosines(fresh_SD, stored_SD), nan=-1.0)
        rounded_S = cosines(fresh_SD, decode(encode(fresh_SD.float(), index.spec.dtype, index.layout), index.layout).double())
        cosine = float(cosine_S.median())
        status = graded(1 - cosine, warn=1 - self.check.alike, fail=1 - self.check.unlike)
        if status == "ok" and bool((cosine_S < self.check.unlike).any()):
            status = "fail"
        because = (
            f"Rows stored as {index.spec.dtype} have a median cosine of {cosine:.4f} with fresh ones, the worst one "
            f"{float(cosine_S.min()):.4f}; rounding alone would leave {float(rounded_S.median()):.4f}."
        )
        step = "Rows were damaged, or the dtype is too coarse for them: `headwater verify RUN`, or index with --set store.dtype=float32."
        return Finding(name, status, because, value=cosine, unit="cosine", n=int(same_S.sum()), next_step=None if status == "ok" else step)


def graded(value: float, *, warn: float, fail: float) -> FindingStatus:
    """What is not a number is no comfort."""
    return "ok" if value <= warn else "warn" if value <= fail else "fail"


def _in_float32(session: Session) -> Session:
    return replace(session, model=copy.deepcopy(session.model).float())


def _choices(session: Session) -> int:
    config = session.network.config
    return int(config.num_labels if session.task == "sequence-classification" else config.get_text_config().vocab_size)


@contextmanager
def _attention(network: Any, kernel: str) -> Iterator[None]:
    before = network.config._attn_implementation
    network.set_attn_implementation(kernel)
    try:
        if network.config._attn_implementation != kernel:
            raise ValueError(f"{kernel} was not taken")
        yield
    finally:
        network.set_attn_implementation(before)


def _leading(row: Example, session: Session) -> int:
    """How many padding tokens a row begins with; one that opens every text (GPT-2's end of text) is none."""
    tokenizer = session.tokenizer
    pad = getattr(tokenizer, "pad_token_id", None)
    run = int(np.argmax(row.tokens != pad)) if pad is not None and bool((row.tokens != pad).any()) else 0
    return max(run - 1, 0) if pad in (tokenizer.bos_token_id, tokenizer.eos_token_id) else run


def _without_leading(row: Example, n: int) -> Example:
    mask = row.loss_mask[n:].copy()
    mask[:1] = False
    return replace(row, tokens=row.tokens[n:], loss_mask=mask)
