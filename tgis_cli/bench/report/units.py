"""Values of one column in one unit, with as many decimals as they need."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeGuard

UNKNOWN = "-"
LONG_S, SHORT_S = 10.0, 0.5  # a column that reaches the first, or stays above the second, is in seconds
MAX_DECIMALS = 3
DIGITS = 3  # significant ones; more would exceed any measurement's precision
MANY = 100.0  # times the old value; larger changes are not written in percent
ABSURD = 1e12  # in any unit; larger values get an exponent, so that a wrong figure does not widen its table
BYTES = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


@dataclass(frozen=True, slots=True)
class Unit:
    """How the values of a column are written."""

    name: str  # "ms"; empty for counts
    per_base: float = 1.0  # how many of it make one second, byte or other unit of the result
    decimals: int = 0  # at most; larger values have fewer

    def format(self, value: float | None) -> str:
        if not is_known(value):
            return UNKNOWN
        size = float(f"{value * self.per_base:.{DIGITS}g}")
        if abs(size) >= ABSURD:
            return f"{size:g}"
        decimals = min(self.decimals, max(DIGITS - 1 - magnitude(size), 0)) if size else 0
        return f"{value * self.per_base:,.{decimals}f}"

    def format_with_name(self, value: float | None) -> str:
        return f"{self.format(value)} {self.name}".rstrip()


def choose_unit(unit: str, values: Iterable[float | None]) -> Unit:
    """
    Args:
        unit: the result's; ``share`` is shown in percent.
    """
    sizes = [abs(value) for value in values if is_known(value) and value]
    smallest, largest = min(sizes, default=1.0), max(sizes, default=1.0)
    name, per_base = unit, 1.0
    if unit == "share":
        name, per_base = "%", 100.0
    elif unit == "s" and (not sizes or (largest < LONG_S and smallest < SHORT_S)):
        name, per_base = "ms", 1000.0
    elif unit == "bytes":
        name, size = next(((name, size) for name, size in BYTES if largest >= size), ("B", 1))
        per_base = 1 / size
    if unit != "s" and all(float(size * per_base).is_integer() for size in sizes):
        return Unit(name, per_base)
    return Unit(name, per_base, count_decimals(smallest * per_base, largest * per_base))


def count_decimals(smallest: float, largest: float) -> int:
    """As many as give the smallest value three significant digits, or two beside values of a thousand or more."""
    digits = 3 if largest < 1000 else 2
    return min(max(digits - 1 - magnitude(smallest), 0), MAX_DECIMALS)


def magnitude(value: float) -> int:
    return math.floor(math.log10(abs(value))) if value else 0


def write_change(*ratios: float) -> str:
    """``+4.5 %`` for a ratio of 1.045; ``-1.0 to +4.5 %`` for two, the ends of an interval.

    Large ratios are written as ``120x``, and an upper end that says nothing is left out: ``-1.0 % or more``.
    """
    if not ratios or not is_known(ratios[0]):
        return UNKNOWN
    low, high = ratios[0], ratios[-1]
    if len(ratios) == 1 and low >= MANY:
        return f"{low:.3g}x"
    if len(ratios) > 1 and high >= MANY:
        return f"{write_change(low)} or more" if low > 0 else UNKNOWN
    return " to ".join(f"{(ratio - 1) * 100:+.1f}" for ratio in ratios) + " %"


def is_known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)
