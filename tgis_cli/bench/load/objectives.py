"""``--goodput "ttft<500ms,itl<50ms"``: the limits that a request must meet to count as good."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tgis_server.errors import UsageError
from tgis_server.words.close_words import find_close, or_list

METRICS = ("ttft", "itl", "tpot", "e2e")  # "itl": every gap of a request except the slowest 5 %
UNITS = {"ms": 1e-3, "s": 1.0, "us": 1e-6, "µs": 1e-6}
EXAMPLE = '"ttft<500ms,itl<50ms"'


@dataclass(frozen=True, slots=True)
class Objective:
    """A limit on one latency of a request. Times to the first token and the end count from the intended start."""

    metric: str  # of METRICS
    limit_s: float

    def __str__(self) -> str:
        return f"{self.metric}<{self.limit_s * 1000:g}ms" if self.limit_s < 1 else f"{self.metric}<{self.limit_s:g}s"


def parse_objectives(text: str, flag: str) -> tuple[Objective, ...]:
    """
    Raises:
        UsageError: one of them is not METRIC<TIME, or a metric has two.
    """
    objectives = tuple(parse_objective(part.strip(), flag) for part in text.split(","))
    names = [objective.metric for objective in objectives]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"{flag} {text!r} limits {twice} twice: leave one out.")
    return objectives


def parse_objective(text: str, flag: str) -> Objective:
    found = re.fullmatch(r"([a-z0-9_]+)\s*<=?\s*(\d+(?:\.\d+)?)\s*([a-zµ]*)", text.lower())
    if found is None:
        raise UsageError(f"{flag} has {text!r}, which is not a limit on a latency, such as {EXAMPLE}.")
    metric, number, unit = found.groups()
    if metric not in METRICS:
        close = find_close(metric, METRICS)
        hint = f"did you mean {or_list(close)}?" if close else f"there are {', '.join(METRICS)}."
        raise UsageError(f"{flag} has an unknown latency, {metric}: {hint}")
    if unit not in UNITS:
        wrong = f"an unknown unit, {unit}" if unit else "no unit"
        raise UsageError(f"{flag} has {text!r} with {wrong}: write {metric}<{number}ms or {metric}<{number}s.")
    if not float(number):
        raise UsageError(f"{flag} has {text!r}, which no request can meet: the limit must be above 0.")
    return Objective(metric, float(number) * UNITS[unit])
