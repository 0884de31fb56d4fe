"""Values of one column in one unit, with as many decimals as they need."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeGuard

UNKNOWN = "-"
LONG_S, SHORT_S = 10.0, 0.5  # a column that reaches the first, or stays above the second, is in seconds
MAX_DECIMALS = 3
BYTES = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


@dataclass(frozen=True, slots=True)
class Unit:
    """How the values of a column are written."""

    name: str  # "ms"; empty for counts
    per_base: float = 1.0  # so many of it are one second, byte or other unit of the result
    decimals: int = 0

    def format(self, value: float | None) -> str:
        if not is_known(value):
            return UNKNOWN
        return f"{value * self.per_base:,.{self.decimals}f}"

    def format_with_name(self, value: float | None) -> str:
        return f"{self.format(value)} {self.name}".rstrip()


def choose_unit(unit: str, values: Iterable[float | None]) -> Unit:
    """
    Args:
        unit: of the result; ``share`` is shown in percent.
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
    return math.floor(math.log10(value))


def write_change(*ratios: float) -> str:
    """``+4.5 %`` for a ratio of 1.045; ``-1.0 to +4.5 %`` for two, the ends of an interval."""
    if not ratios or not all(map(is_known, ratios)):
        return UNKNOWN
    return " to ".join(f"{(ratio - 1) * 100:+.1f}" for ratio in ratios) + " %"


def is_known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)
