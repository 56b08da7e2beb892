"""Identity: is what the index holds under a row's id that row, seen by this model? S sampled rows · N training rows · D stored numbers"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from headwater.audit.check import Need, Report
from headwater.audit.duplicates import row_clusters
from headwater.audit.numerics import HALF
from headwater.audit.sampled import SMALL_SHARE, Passed, cosines, passed, some_positions, stored_loss_apart
from headwater.audit.subject import Subject
from headwater.evaluate.figure import proportion_figure
from headwater.index.read import StoredIndex
from headwater.types import Example, Finding, FindingStatus

SHUFFLED = "The index is wrong about which row is which: index again, from the data as it is; do not sort or edit rows between the two."
OTHER_MODEL = "The index is of another checkpoint, or another model: open the model that was indexed, or index this one."


@dataclass(frozen=True)
class Identity:
    """Sampled rows are passed through the model again and held against what the index has under their ids.

    A row is its own where the loss agrees to `loss` of itself (`half` where the model is in half precision) and the gradients have a cosine
    of at least `alike`. What is not its own and has its match under another id was shuffled; what has no match in the whole index is of
    another checkpoint. `fail` where fewer than `own` of the rows are their own, so that a row on the edge of rounding does not condemn an
    index. Cost: a pass over the sample and one scan. Rows of almost no gradient are left out: they have no direction.
    """

    name: ClassVar[str] = "identity"
    summary: ClassVar[str] = "stored rows are the rows of their ids, seen by this model: losses and gradients computed again"
    reference: ClassVar[str] = ""
    needs: ClassVar[frozenset[Need]] = frozenset({"index"})

    rows: int = 32
    loss: float = 0.01
    half: float = 0.1
    alike: float = 0.98
    own: float = 0.95

    def passes(self, subject: Subject) -> float:
        return min(self.rows, len(subject.rows)) / max(len(subject.rows), 1)

    def __call__(self, subject: Subject) -> Report:
        index, rows = subject.stored, subject.examples(some_positions(subject, self.rows, key=4))
        if strangers := [row.id for row in rows if row.id not in set(index.ids)]:
            because = f"{len(strangers)} of {len(rows)} sampled rows have ids that the index does not have ({strangers[0]})."
            return _report(
                "fail", because, 1 - len(strangers) / len(rows), len(rows), "Index these rows, or give the data that was indexed."
            )
        if "transform" in index.spec.facts:
            because = "Not measured: the index holds updates, not plain gradients, and the model's rows are not comparable to them."
            return _report("unknown", because, None, None, "Index without a transform, and the others as members.")
        live = passed(subject.session, index.layout, rows)
        usable = torch.nonzero(_has_direction(live) & ~_bad(index, rows)).flatten()
        if not len(usable):
            because = f"Not measured: none of {len(rows)} sampled rows has a finite gradient that is not zero."
            return _report("unknown", because, None, None, "See numerics: dtype.")
        return self._judged(subject, [rows[i] for i in usable.tolist()], live.of(usable))

    def _judged(self, subject: Subject, rows: Sequence[Example], live: Passed) -> Report:
        index = subject.stored
        found = _Held.of(index, rows, live)
        tolerance = self.half if subject.session.dtype in HALF else self.loss
        same_loss_S = found.loss_S <= tolerance
        same_gradient_S = found.cosine_S >= self.alike
        own_S = same_loss_S & same_gradient_S
        share, n = proportion_figure(int(own_S.sum()), len(rows), over="rows"), len(rows)
        in_order = [row.id for row in subject.rows] == list(index.ids)
        if share.value >= self.own and not in_order:
            because = f"The {n} sampled rows are those of their ids, but they stand in another order than in the index: {_moved(subject)}."
            return _report("fail", because, share.value, n, SHUFFLED, share.interval)
        if share.value >= self.own:
            return self._own(subject, found, share.value, n, share.interval)
        elsewhere = _elsewhere(subject, rows, live, alike=self.alike)[~own_S]
        n_not, n_else = int((~own_S).sum()), int(elsewhere.sum())
        what = (
            f"{n_not} of {n} sampled rows are not what the index holds under their ids (median cosine {float(found.cosine_S.median()):.2f})"
        )
        if 2 * n_else >= n_not:
            because = f"Shuffled ids: {what}, and {n_else} of these stand in the index under the id of another row."
            return _report("fail", because, share.value, n, SHUFFLED, share.interval)
        if bool(same_loss_S[~own_S].all()):
            because = (
                f"The losses of {n} sampled rows are those stored under their ids, and the gradients of {n_not} are not (median cosine "
                f"{float(found.cosine_S.median()):.2f}): the ids and the model are right, the numbers are damaged."
            )
            return _report("unknown", because, share.value, n, "See numerics: stored rows.", share.interval)
        because = f"Another checkpoint: {what}, and {n_not - n_else} of these match no row of the index at all."
        return _report("fail", because, share.value, n, OTHER_MODEL, share.interval)

    def _own(self, subject: Subject, found: _Held, share: float, n: int, interval: tuple[float, float] | None) -> Report:
        agreed = f"losses within {float(found.loss_S.max()):.1g}, the lowest cosine {float(found.cosine_S.min()):.4f}"
        expected = subject.stored.spec.facts.get("model")
        if expected is not None and expected != subject.session.fingerprint:
            because = (
                f"The weights are not those of the index by their fingerprint, and yet {share:.0%} of {n} sampled rows agree ({agreed})."
            )
            return _report("warn", because, share, n, OTHER_MODEL, interval)
        return _report(
            "ok", f"{share:.0%} of {n} sampled rows are what the index holds under their ids ({agreed}).", share, n, "", interval
        )


@dataclass(frozen=True, eq=False)
class _Held:
    """Relative difference of the losses, and the cosine of the gradients, of each live row with what is stored under its id."""

    loss_S: Tensor
    cosine_S: Tensor

    @staticmethod
    def of(index: StoredIndex, rows: Sequence[Example], live: Passed) -> _Held:
        at = index.positions_of([row.id for row in rows])
        cosine_S = torch.nan_to_num(cosines(live.gradient_SD, index.take("gradient", at).double()), nan=-1.0)
        return _Held(stored_loss_apart(index, rows, live), cosine_S)


def _elsewhere(subject: Subject, rows: Sequence[Example], live: Passed, *, alike: float) -> Tensor:
    """[S] bool: whether the row's gradient is stored under the id of a row of another text. One scan of the index."""
    index = subject.stored
    unit_SD = live.gradient_SD / live.gradient_SD.norm(dim=1, keepdim=True)
    norms_N = index.norms("gradient").float()
    cosine_SN = index.products("gradient", unit_SD.float(), scale_N=torch.where(norms_N > 0, 1 / norms_N, 0.0))
    cluster_of = dict(zip([row.id for row in subject.rows], row_clusters(subject.rows).tolist(), strict=True))
    cluster_N = torch.tensor([cluster_of.get(row_id, -1) for row_id in index.ids])
    other_SN = torch.stack([cluster_N != cluster_of[row.id] for row in rows])
    return ((torch.nan_to_num(cosine_SN, nan=-1.0) >= alike) & other_SN).any(1)


def _has_direction(live: Passed) -> Tensor:
    norm_S = live.gradient_SD.norm(dim=1)
    finite_S = live.finite_S & (norm_S > 0)
    typical = norm_S[finite_S].median() if bool(finite_S.any()) else torch.inf
    return finite_S & (norm_S >= SMALL_SHARE * typical)


def _bad(index: StoredIndex, rows: Sequence[Example]) -> Tensor:
    at = index.positions_of([row.id for row in rows])
    return torch.from_numpy(np.asarray(index.column("bad"))[at].astype(bool))


def _moved(subject: Subject) -> str:
    if len(subject.rows) != len(subject.stored):
        return f"{len(subject.rows)} rows against {len(subject.stored)}"
    n = sum(row.id != row_id for row, row_id in zip(subject.rows, subject.stored.ids, strict=True))
    return f"{n} of {len(subject.rows)} stand elsewhere"


def _report(
    status: FindingStatus, because: str, value: float | None, n: int | None, step: str, interval: tuple[float, float] | None = None
) -> Report:
    next_step = None if status == "ok" else step
    return Report([Finding("identity", status, because, value=value, unit="share of rows", interval=interval, n=n, next_step=next_step)])
