"""Displacement: how far training moved the parameters, how far it moved the behaviour, and whether the one points at the other.

Q queries · F fractions of the way from the base model to the trained one · R random changes
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from headwater.audit.behaviour import can_answer, greedy_answers, shown
from headwater.audit.check import Need, Plot, Report, Series
from headwater.audit.subject import Subject
from headwater.corpus import collate
from headwater.evaluate.figure import Figure, mean_figure
from headwater.index.queries import member_session
from headwater.index.read import StoredIndex
from headwater.model.session import Session
from headwater.truth.retrain import measured
from headwater.types import Example, Finding, Measure, UsageError

FORWARD = 1 / 3  # of a training pass
FEWEST = 5  # queries: with fewer, a cosine whose interval reaches 0 says nothing against the training


@dataclass(frozen=True)
class Displacement:
    """Table 5 of the paper, with what it lacks. It set the norm of the change beside the behaviour: two trainings with like norms and
    unlike behaviour. That shows that a norm is no measure of influence, and nothing of influence itself, which is a projection.

    norm: `||d|| / ||theta_0||` with d = theta_1 - theta_0, beside the change of the queries' measure, and beside what d does with its
    numbers in random order. Training that moves the queries no further than the furthest of `draws` of these (chance: 1 in `draws` + 1) is
    not about these queries: `warn`.
    projection: the cosine of d with the gradient of the measure, and `grad m(theta_0) . d` against the change that came: `warn` where the
    parameters did not move the way in which the measure changed, over queries.

    The weights are moved from base to trained and put back, bit for bit. An adapter's d is its B (its B A times the scale in the norm), as
    B = 0 is the base model. Cost: a forward pass over the `queries` at each of F + R points and a gradient at both ends.
    """

    name: ClassVar[str] = "displacement"
    summary: ClassVar[str] = "distance of parameters against distance of behaviour, and the projection of the one on the other"
    reference: ClassVar[str] = "Li et al. 2024, section 4.3 and table 5"
    needs: ClassVar[frozenset[Need]] = frozenset({"base", "trace"})

    fractions: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    draws: int = 19
    queries: int = 32

    def passes(self, subject: Subject) -> float:
        if subject.trace is None:
            return 0.0
        queries = self.chosen(subject)
        answers = sum(query.n_loss_tokens * query.n_tokens for query in queries) if can_answer(subject.session) else 0
        forward = (len(self.fractions) + self.draws) * sum(query.n_tokens for query in queries) + len(self.fractions) * answers
        work = FORWARD * forward + 2 * sum(query.n_tokens for query in queries)
        return work / max(sum(row.n_tokens for row in subject.rows), 1)

    def chosen(self, subject: Subject) -> list[Example]:
        return list(subject.asked.queries[: self.queries])

    def __call__(self, subject: Subject) -> Report:
        try:
            move = Move.between(subject.base_session, subject.session)
        except UsageError as error:
            step = "Name the model that the training started from: --base MODEL."
            return Report([Finding(f"displacement: {what}", "unknown", f"Not measured: {error}", next_step=step) for what in TOLD])
        queries, measure = self.chosen(subject), subject.asked.measure
        path = walk(move, queries, measure, self.fractions, subject.behaves)
        random_RQ = randomly(move, queries, measure, self.draws, subject.seed)
        slopes = [slope(move, queries, measure, at) for at in (0.0, 1.0)]
        findings = [norm_finding(move, path, random_RQ, measure), projection_finding(move, path, slopes, measure)]
        plots = path_plots(path, slopes[0], along_checkpoints(subject, queries, path), measure)
        everyone = len(queries) == len(subject.asked.queries)
        return Report(findings, {"moved": path.change_Q} if everyone else {}, plots)


TOLD = ("norm", "projection")


# ------------------------------------------------------------------------------------------------ moving the weights


@dataclass(frozen=True, eq=False)
class Move:
    """From the base model's weights to those of the session's model, in place: the parameters that differ, at both ends."""

    session: Session
    parameters: Sequence[nn.Parameter]
    start: Sequence[Tensor]
    end: Sequence[Tensor]
    norm: float
    base_norm: float

    @staticmethod
    def between(base: Session, session: Session) -> Move:
        """Raises UsageError where the one is not the other's base."""
        pairs = _adapter(session) if hasattr(session.model, "peft_config") else _weights(base, session)
        moved = [(parameter, start) for parameter, start in pairs if not torch.equal(parameter.detach(), start)]
        ends = [parameter.detach().clone() for parameter, _ in moved]
        return Move(session, [p for p, _ in moved], [start for _, start in moved], ends, *distance(base, session))

    @contextmanager
    def moving(self) -> Iterator[Any]:
        """Gives `go(fraction)`, and `go(fraction, directions)` from the base along others. Afterwards all is as it was, bit for bit."""
        wanted = [parameter.requires_grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        try:
            yield self._go
        finally:
            self._set(self.end)
            for parameter, was in zip(self.parameters, wanted, strict=True):
                parameter.requires_grad_(was)

    def _go(self, fraction: float, directions: Sequence[Tensor] | None = None) -> None:
        if directions is None:
            self._set([torch.lerp(start, end, fraction) for start, end in zip(self.start, self.end, strict=True)])
        else:
            self._set([start + fraction * direction for start, direction in zip(self.start, directions, strict=True)])

    @torch.no_grad()
    def _set(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    @property
    def changes(self) -> list[Tensor]:
        return [end - start for start, end in zip(self.start, self.end, strict=True)]


def _weights(base: Session, session: Session) -> list[tuple[nn.Parameter, Tensor]]:
    before = dict(base.model.named_parameters())
    after = dict(session.model.named_parameters())
    odd = [name for name in {**after, **before} if name not in before or name not in after or before[name].shape != after[name].shape]
    if odd:
        raise UsageError(
            f"{base.name} is not what {session.name} was trained from: {len(odd)} parameters have no counterpart of the same shape, the "
            f"first is {odd[0]}."
        )
    return [(parameter, before[name].detach().to(parameter)) for name, parameter in after.items()]


def _adapter(session: Session) -> list[tuple[nn.Parameter, Tensor]]:
    """A LoRA's B, from zero: with the trained A fixed the way is straight in the weights, `theta_0 + fraction B A scale`."""
    found = [(p, torch.zeros_like(p)) for name, p in session.model.named_parameters() if ".lora_B." in name or ".lora_embedding_B." in name]
    if not found:
        raise UsageError(f"{session.adapter} is no plain LoRA, and what it was before training is not known.")
    return found


def distance(base: Session, session: Session) -> tuple[float, float]:
    """(`||theta_1 - theta_0||`, `||theta_0||`) over the parameters of the base that are trained; a LoRA's as `||scale B A||`."""
    if not hasattr(session.model, "peft_config"):
        pairs = [(after.detach().double(), before.double()) for after, before in _weights(base, session)]
        return _norm([after - before for after, before in pairs]), _norm([before for _, before in pairs])
    layers = [cast(Any, module) for module in session.model.modules() if hasattr(module, "get_delta_weight")]
    with torch.no_grad():
        changes = [layer.get_delta_weight(name) for layer in layers for name in layer.active_adapters]
    return _norm(changes), _norm([layer.get_base_layer().weight.detach() for layer in layers])


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


# --------------------------------------------------------------------------------------------------------- measuring


@dataclass(frozen=True, eq=False)
class Path:
    fractions: Sequence[float]
    measure_FQ: np.ndarray
    shown_FQ: np.ndarray | None  # whether the greedy answer shows the behaviour

    @property
    def change_Q(self) -> np.ndarray:
        return self.measure_FQ[-1] - self.measure_FQ[0]


def walk(move: Move, queries: Sequence[Example], measure: Measure, fractions: Sequence[float], behaves: Any) -> Path:
    """The queries at each fraction of the way, in order."""
    ordered = sorted({0.0, 1.0, *fractions})
    values: list[np.ndarray] = []
    answers: list[np.ndarray] = []
    with move.moving() as go:
        for fraction in ordered:
            go(fraction)
            values.append(measured(move.session, measure, queries))
            answers += _shown(move.session, queries, behaves)
    return Path(ordered, np.stack(values), np.stack(answers) if answers else None)


def _shown(session: Session, queries: Sequence[Example], behaves: Any) -> list[np.ndarray]:
    """None or one."""
    if not can_answer(session):
        return []
    return [shown(greedy_answers(session, queries), queries, tokenizer=session.tokenizer, behaves=behaves)]


def randomly(move: Move, queries: Sequence[Example], measure: Measure, draws: int, seed: int) -> np.ndarray:
    """[R, Q] the change of the measure where the base model is changed by the same numbers in another order, tensor by tensor.

    Norm, mean and outliers of the change are kept, the direction is not.
    """
    generator = torch.Generator().manual_seed(seed)
    values_RQ = np.empty((draws, len(queries)))
    with move.moving() as go:
        go(0.0)
        before_Q = measured(move.session, measure, queries)
        for r in range(draws):
            go(1.0, [_shuffled(change, generator) for change in move.changes])
            values_RQ[r] = measured(move.session, measure, queries) - before_Q
    return values_RQ


def _shuffled(change: Tensor, generator: torch.Generator) -> Tensor:
    order = torch.randperm(change.numel(), generator=generator).to(change.device)
    return change.flatten()[order].view_as(change)


@dataclass(frozen=True, eq=False)
class Slope:
    """`grad m . d` of each query at one end of the way, and its cosine."""

    predicted_Q: np.ndarray
    cosine_Q: np.ndarray


def slope(move: Move, queries: Sequence[Example], measure: Measure, fraction: float) -> Slope:
    """A gradient for each query, of every parameter that moved: through the model's own logits, so that the head's weight has one too."""
    plain = copy.copy(move.session)
    plain.head = None
    predicted_Q, norm_Q = np.zeros(len(queries)), np.zeros(len(queries))
    with move.moving() as go:
        go(fraction)
        for q, query in enumerate(queries if move.parameters else ()):
            batch = collate([query], pad_id=plain.pad_id).to(plain.device)
            (value,) = measure.fn(plain.run(batch), batch)
            gradients = torch.autograd.grad(value, list(move.parameters), allow_unused=True)
            known = [(g.double(), change.double()) for g, change in zip(gradients, move.changes, strict=True) if g is not None]
            predicted_Q[q] = sum(float((g * change).sum()) for g, change in known)
            norm_Q[q] = _norm([g for g, _ in known])
    length = _norm(move.changes)
    with np.errstate(invalid="ignore", divide="ignore"):
        return Slope(predicted_Q, predicted_Q / (norm_Q * length))


def along_checkpoints(subject: Subject, queries: Sequence[Example], path: Path) -> list[tuple[float, Figure]]:
    """(distance from the base, change of the measure) at each checkpoint that the index has a member of."""
    members = [] if subject.index is None else subject.index.members("checkpoint")
    found: list[tuple[float, Figure]] = []
    for member in members:
        stored = cast(StoredIndex, member.index)
        at = (
            subject.session if stored.spec.facts["model"] == subject.stored.spec.facts["model"] else member_session(stored, subject.session)
        )
        change_Q = measured(at, subject.asked.measure, queries) - path.measure_FQ[0]
        found.append((distance(subject.base_session, at)[0], mean_figure(change_Q)))
    return found


# ------------------------------------------------------------------------------------------------- what is said of it


def norm_finding(move: Move, path: Path, random_RQ: np.ndarray, measure: Measure) -> Finding:
    """`ok` where training moved the queries further than every random change of the same size."""
    name, relative = "displacement: norm", move.norm / move.base_norm if move.base_norm else math.nan
    if not move.parameters:
        return Finding(name, "warn", "Training did not move a single parameter.", value=0.0, next_step="Is this base the model itself?")
    change, random_R = mean_figure(path.change_Q), np.abs(random_RQ).mean(1)
    moved = float(np.abs(path.change_Q).mean())
    answered = "" if path.shown_FQ is None else f", the share of answers that show it from {path.shown_FQ[0].mean():.0%} to "
    answered += "" if path.shown_FQ is None else f"{path.shown_FQ[-1].mean():.0%}"
    unit = f" {measure.unit}" if measure.unit else ""
    because = (
        f"The parameters moved by {relative:.3g} of their norm, the measure of {change.n} queries by {_told(change, measure)}{answered}. "
        f"The norm alone says nothing of that: with its numbers in random order the same change moves a query's measure up or down by "
        f"{random_R.mean():.2g}{unit}, at most by {random_R.max():.2g} in {len(random_R)} draws; training moved it by {moved:.2g}."
    )
    known = {"value": relative, "unit": "of the base's norm", "n": change.n}
    if moved > random_R.max():
        return Finding(name, "ok", because, **known)
    because += " That is no further than chance: what the model says to these queries need not come from these rows."
    return Finding(name, "warn", because, **known, next_step="Look at what the base model says: it may have said this before training.")


def projection_finding(move: Move, path: Path, slopes: Sequence[Slope], measure: Measure) -> Finding:
    """`ok` where the parameters moved the way in which the measure changed, by the interval over queries."""
    name = "displacement: projection"
    if not move.parameters:
        return Finding(name, "unknown", "Training did not move a single parameter: there is nothing to project.", next_step=NO_MOVE)
    first, last = slopes
    along = mean_figure(first.cosine_Q * np.sign(path.change_Q))
    predicted, change, at_end = (mean_figure(values_Q) for values_Q in (first.predicted_Q, path.change_Q, last.predicted_Q))
    because = (
        f"The change of the parameters has a cosine of {along} with the gradient of the measure, counted along the change that came "
        f"({along.n} queries). To first order it predicts {_told(predicted, measure)} from the base and {_told(at_end, measure)} at the "
        f"trained weights; {_told(change, measure)} came."
    )
    known = {"value": along.value, "interval": along.interval, "n": along.n}
    if along.interval is not None and along.interval[0] > 0:
        return Finding(name, "ok", because, **known)
    if along.n < FEWEST:
        return Finding(name, "unknown", f"{because} Undetermined.", **known, next_step=f"Trace {FEWEST} queries or more.")
    step = "Do not read the size of scores as a change of behaviour; hold them against removal (the removal check)."
    return Finding(name, "warn", f"{because} The parameters did not move along these behaviours.", **known, next_step=step)


NO_MOVE = "Name the model that the training started from: --base MODEL."


def _told(figure: Figure, measure: Measure) -> str:
    unit = f" {measure.unit}" if measure.unit else ""
    interval = "" if figure.interval is None else f" [{figure.interval[0]:+.3g}, {figure.interval[1]:+.3g}]"
    return f"{figure.value:+.3g}{unit}{interval}"


def path_plots(path: Path, first: Slope, checkpoints: Sequence[tuple[float, Figure]], measure: Measure) -> list[Plot]:
    steps = [mean_figure(values_Q - path.measure_FQ[0]) for values_Q in path.measure_FQ]
    predicted = mean_figure(first.predicted_Q).value
    drawn = [_line("measured", path.fractions, steps)]
    drawn.append(Series("first order from the base", path.fractions, [fraction * predicted for fraction in path.fractions]))
    if checkpoints and (length := checkpoints[-1][0]) > 0:
        drawn.append(_line("checkpoints, by distance", [far / length for far, _ in checkpoints], [figure for _, figure in checkpoints]))
    unit = f"change of the measure, {measure.unit}" if measure.unit else "change of the measure"
    way = "fraction of the way from base to trained"
    plots = [Plot("Distance of parameters against distance of behaviour", way, unit, drawn, note="Mean over queries, with its interval.")]
    if path.shown_FQ is not None:
        answers = [mean_figure(shown_Q) for shown_Q in path.shown_FQ]
        plots.append(Plot("The behaviour on the way from base to trained", way, "share shown", [_line("answers", path.fractions, answers)]))
    return plots


def _line(name: str, x: Sequence[float], figures: Sequence[Figure]) -> Series:
    low, high = ([None if figure.interval is None else figure.interval[side] for figure in figures] for side in (0, 1))
    return Series(name, list(x), [figure.value for figure in figures], low, high)
