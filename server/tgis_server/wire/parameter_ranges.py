"""The values that request parameters may have: what the server checks, and what clients check before they send.

A zero on the wire means "not given" and is not in a range, unless zero is a value of its own. Limits that depend on the
model are in ``ModelInfoResponse``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

DEFAULT_MAX_NEW_TOKENS = 20


@dataclass(frozen=True, slots=True)
class Range:
    """From ``low`` to ``high``; NaN and infinity are never in it."""

    low: float
    high: float = math.inf
    excludes_low: bool = False
    has_zero: bool = False  # 0 is allowed too, although it is less than ``low``

    def __contains__(self, value: float) -> bool:
        if not -math.inf < value < math.inf:
            return False
        is_above = self.low < value if self.excludes_low else self.low <= value
        return (is_above and value <= self.high) or (self.has_zero and value == 0)

    def __str__(self) -> str:
        """``from 1 to 10``, ``above 0 and at most 1``, ``0 or at least 0.05``."""
        zero = "0 or " if self.has_zero else ""
        low = format_number(self.low)
        if self.high == math.inf:
            return zero + (f"above {low}" if self.excludes_low else f"at least {low}")
        high = format_number(self.high)
        return zero + (f"above {low} and at most {high}" if self.excludes_low else f"from {low} to {high}")


def format_number(number: float) -> str:
    """All digits of an integer; the significant digits of other numbers."""
    return str(int(number)) if number == int(number) else f"{number:g}"


UINT32 = Range(0, 2**32 - 1)
UINT64 = Range(0, 2**64 - 1)

TEMPERATURE = Range(0.05, has_zero=True)  # 0 = greedy
TOP_K = Range(0, 2**31 - 1)  # 0 = off; the first implementation of this API read larger values as negative
TOP_P = Range(0, 1, excludes_low=True)
TYPICAL_P = Range(0, 1, excludes_low=True)  # the server also accepts negative values, which mean off
REPETITION_PENALTY = Range(0, excludes_low=True)
DECAY_FACTOR = Range(1, 10)
TOP_N_TOKENS = Range(0, 10)
NUM_STOP_SEQUENCES = Range(0, 6)
STOP_SEQUENCE_BYTES = Range(1, 240)
