"""How long the inputs and outputs of a load are: ``128``, ``64:256`` or ``normal:128,32`` tokens."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from tgis_server.errors import UsageError

FORMS = "128, 64:256 (uniform) or normal:128,32 (mean, deviation)"
NUMBER = r"([0-9]{1,9})"
REAL = r"([0-9]{1,9}(?:\.[0-9]+)?)"
MAX_DEVIATIONS = 3  # a normal length is cut here, so that the longest one is known before the run


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens, at least 1. Normal if it has a deviation, otherwise uniform from ``low`` to ``high``."""

    text: str  # as given
    low: int
    high: int
    mean: float
    deviation: float = 0.0

    @classmethod
    def parse(cls, text: str, flag: str) -> Lengths:
        """
        Args:
            flag: what the person wrote, such as ``--input-tokens``, for the error.

        Raises:
            UsageError: it has none of the three forms, or names an impossible length.
        """
        if found := re.fullmatch(NUMBER, text):
            low = high = int(found[1])
            mean, deviation = float(low), 0.0
        elif found := re.fullmatch(f"{NUMBER}:{NUMBER}", text):
            low, high = int(found[1]), int(found[2])
            mean, deviation = (low + high) / 2, 0.0
        elif found := re.fullmatch(f"normal:{REAL},{REAL}", text):
            mean, deviation = float(found[1]), float(found[2])
            low = max(1, round(mean - MAX_DEVIATIONS * deviation))
            high = round(mean + MAX_DEVIATIONS * deviation)
        else:
            raise UsageError(f"{flag} is {text}, but must be a number of tokens: {FORMS}.")
        if low > high:
            raise UsageError(f"{flag} is {text}, whose first number is above its second.")
        if low < 1 or mean < 1:
            raise UsageError(f"{flag} is {text}, but every text needs at least one token.")
        return cls(text, low, high, mean, deviation)

    def draw(self, rng: random.Random) -> int:
        if self.deviation:
            return min(self.high, max(self.low, round(rng.gauss(self.mean, self.deviation))))
        return self.low if self.low == self.high else rng.randint(self.low, self.high)
