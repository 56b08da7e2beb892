"""Where a number stands on a chart: a linear or logarithmic axis, its ticks, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from headwater.report.numerals import fixed, number, power_of_ten

STEPS = (1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` on pixels from `start` to `end`; both are logarithms to base ten where `log`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        share = (self._position(value) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """(value, as it is written) of some five round numbers on the axis."""
        return _log_ticks(self.low, self.high) if self.log else _linear_ticks(self.low, self.high)

    def _position(self, value: float) -> float:
        return math.log10(value) if self.log else value


def fit(values: Sequence[float], start: float, end: float, *, log: bool = False, zero: bool = False, pad: float = 0.04) -> Axis:
    """An axis that holds all the values, which are positive where `log`. `zero`: 0 is on it where they begin near it."""
    positions = [math.log10(value) if log else value for value in values]
    low, high = min(positions, default=0.0), max(positions, default=1.0)
    if low == high:
        room = 0.5 if log else abs(low) / 2 or 0.5
        return Axis(low - room, high + room, start, end, log)
    room = pad * (high - low)
    bottom, top = low - room, high + room
    if zero and 0 <= low < 0.4 * high:
        bottom = 0.0
    if zero and 0.4 * low < high <= 0:
        top = 0.0
    return Axis(bottom, top, start, end, log)


def _linear_ticks(low: float, high: float, count: int = 5) -> list[tuple[float, str]]:
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(step for step in STEPS if step * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(k * step, _written(k * step, step)) for k in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Powers of ten, thinned where there are many; with 2 and 5 between them where there are few."""
    first, last = math.floor(low), math.ceil(high)
    powers = [k for k in range(first, last + 1) if low - 1e-9 <= k <= high + 1e-9]
    if len(powers) >= 3:
        return [(10.0**k, _log_written(10.0**k, k)) for k in powers[:: math.ceil(len(powers) / 6)]]
    between = [(m * 10.0**k, k) for k in range(first, last + 1) for m in (1, 2, 5)]
    return [(value, _log_written(value, k)) for value, k in between if low - 1e-9 <= math.log10(value) <= high + 1e-9]


def _written(value: float, step: float) -> str:
    """All ticks of an axis with the same decimals."""
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return fixed(value + 0.0, decimals=decimals) if decimals <= 4 and abs(value) < 1e4 else number(value)


def _log_written(value: float, power: int) -> str:
    exact = math.isclose(value, 10.0**power)
    return power_of_ten(power) if exact and not -2 <= power <= 3 else number(value)
