"""Whether a query's trace can be believed: a probability from what was measured, and the findings that decided it. Q queries"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from headwater.audit.subject import Subject
from headwater.types import Verdict


def verdicts(subject: Subject, evidence: Mapping[str, np.ndarray]) -> tuple[Verdict, ...]:
    return tuple(Verdict(query.id, "unknown") for query in subject.asked.queries)
