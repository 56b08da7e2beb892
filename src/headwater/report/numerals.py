"""Numbers as a reader wants them: a true minus sign, powers of ten written out, and a dash where there is none."""

from __future__ import annotations

MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float | None, *, digits: int = 3) -> str:
    """`digits` significant digits; a large number to the nearest whole one."""
    if value is None:
        return NONE
    if 10**digits <= abs(value) < 1e7:
        return f"{value:,.0f}".replace("-", MINUS)
    written, _, power = f"{value:.{digits}g}".partition("e")
    return (f"{written} \N{MULTIPLICATION SIGN} {power_of_ten(int(power))}" if power else written).replace("-", MINUS)


def fixed(value: float | None, *, decimals: int = 2) -> str:
    return NONE if value is None else f"{value:.{decimals}f}".replace("-", MINUS)


def rate(value: float | None) -> str:
    """A p- or q-value: three decimals, and no false precision below them."""
    if value is None:
        return NONE
    return "< 0.001" if 0 < value < 0.001 else f"{value:.3f}"


def with_unit(value: float | None, unit: str | None, *, digits: int = 3) -> str:
    return f"{number(value, digits=digits)} {unit}" if unit and value is not None else number(value, digits=digits)


def power_of_ten(exponent: int) -> str:
    """10⁻⁶"""
    return "10" + str(exponent).translate(_SUPERSCRIPT)
