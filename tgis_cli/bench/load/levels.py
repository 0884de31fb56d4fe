"""Decides which levels a load has, from what the earlier levels have shown. Nothing here measures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

MAX_CONCURRENCY = 1024
SATURATION_GAIN = 1.05  # a server is saturated if twice the streams do not give this many times the throughput
MAX_FAILED_SHARE = 0.1  # with more failures than these, more load would show nothing
GOODPUT_SHARE = 0.95  # of the requests of a rate must meet the objectives
RATE_RESOLUTION = 1.1  # from the highest rate that held to the lowest that did not, when the search ends
MAX_RATES = 14
MIN_REQUESTS = 10  # of a level, on average: with fewer, the share of good ones is chance
DEFAULT_STREAMS = (1, 8, 32)
# A run without options ends within 30 s: these are for the warm-up and the levels, the rest for what comes before.
DEFAULT_WARMUP_S, DEFAULT_BUDGET_S = 4.0, 23.0


@dataclass(frozen=True, slots=True)
class Plan:
    """The load of one level: a number of streams, a rate, or neither (a trace)."""

    concurrency: int | None = None
    rate: float | None = None  # requests per second
    limit_s: float | None = field(default=None, compare=False)  # seconds until the level is ended; None: see ``Pacing``

    @property
    def title(self) -> str:
        if self.concurrency is not None:
            return f"{self.concurrency} stream{'' if self.concurrency == 1 else 's'}"
        return f"{self.rate:.4g} requests/s" if self.rate is not None else "trace"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a decision needs to know about a level."""

    plan: Plan
    throughput: float  # output tokens per second in the steady window
    latency_s: float  # end to end, at the median; NaN if no call came to its end
    failed_share: float
    objective_share: float | None  # of the requests that met the objectives
    is_saturated: bool
    took_s: float
    is_short: bool = False  # it has no steady state: its figures are those of a ramp-up


class Strategy(Protocol):
    def choose(self, done: Sequence[Outcome]) -> Plan | None:
        """The next level after these; ``None``: there is none."""


@dataclass(frozen=True, slots=True)
class FixedLevels:
    plans: tuple[Plan, ...]

    def choose(self, done: Sequence[Outcome]) -> Plan | None:
        return self.plans[len(done)] if len(done) < len(self.plans) else None


@dataclass(frozen=True, slots=True)
class DefaultLevels:
    """A few numbers of streams, as far as they fit into half a minute."""

    level_s: float  # during which calls are sent

    def choose(self, done: Sequence[Outcome]) -> Plan | None:
        if len(done) == len(DEFAULT_STREAMS):
            return None
        left_s = DEFAULT_BUDGET_S - sum(outcome.took_s for outcome in done)
        plan = Plan(concurrency=DEFAULT_STREAMS[len(done)], limit_s=left_s)
        return plan if not done or self._expect(done[-1], plan) <= left_s else None

    def _expect(self, last: Outcome, plan: Plan) -> float:
        """How long the next level lasts, in seconds.

        The latency grows with the streams: in proportion if the batch is full, and hardly at all below that. For most
        servers the truth is in between; the square root of the ratio has proved a fair guess.
        """
        assert last.plan.concurrency is not None, "default levels are numbers of streams"
        assert plan.concurrency is not None, "default levels are numbers of streams"
        latency_s = 0.0 if math.isnan(last.latency_s) else last.latency_s
        return self.level_s + latency_s * math.sqrt(plan.concurrency / last.plan.concurrency)


@dataclass(frozen=True, slots=True)
class Sweep:
    """Twice as many streams each time, until throughput stops growing."""

    def choose(self, done: Sequence[Outcome]) -> Plan | None:
        if not done:
            return Plan(concurrency=1)
        last = done[-1]
        assert last.plan.concurrency is not None, "a sweep has numbers of streams"
        is_bad = last.is_short or last.failed_share > MAX_FAILED_SHARE
        if is_bad or is_without_gain(done) or last.plan.concurrency >= MAX_CONCURRENCY:
            return None
        return Plan(concurrency=2 * last.plan.concurrency)


def is_without_gain(done: Sequence[Outcome]) -> bool:
    best = max((outcome.throughput for outcome in done[:-1]), default=0.0)
    return done[-1].throughput < SATURATION_GAIN * best


def find_knee(done: Sequence[Outcome]) -> Outcome | None:
    """The level beyond which latency grows faster than throughput; ``None`` if the levels do not reach it.

    It is where their ratio, Kleinrock's power, is highest (L. Kleinrock, "Power and deterministic rules of thumb for
    probabilistic problems in computer communications", ICC 1979).
    """
    by_streams = sorted(done, key=lambda outcome: outcome.plan.concurrency or 0)
    served = [one for one in by_streams if one.throughput > 0 and one.latency_s > 0]
    usable = [one for one in served if one.failed_share <= MAX_FAILED_SHARE and not one.is_short]
    if len(usable) < 3:
        return None
    knee = max(usable, key=lambda outcome: outcome.throughput / outcome.latency_s)
    return knee if knee is not usable[-1] else None


@dataclass(frozen=True, slots=True)
class GoodputSearch:
    """The highest rate at which enough requests meet the objectives: doubled or halved until it is bracketed, then
    bisected by the geometric mean.

    Its first level is one stream. The first rate is that of this stream's requests.
    """

    level_s: float | None = None  # during which calls are sent; None: as many calls at every rate

    def choose(self, done: Sequence[Outcome]) -> Plan | None:
        if not done:
            return Plan(concurrency=1)
        rates = [outcome for outcome in done if outcome.plan.rate is not None]
        if len(rates) >= MAX_RATES:
            return None
        if not rates:
            can_serve = self.holds(done[0]) and done[0].latency_s > 0
            return self._try(max(1 / done[0].latency_s, self.min_rate)) if can_serve else None
        held, failed = self.find_bracket(rates)
        if failed is None:
            assert held is not None, "a rate holds or does not"
            return self._try(2 * held)
        if held is None:
            return self._try(failed / 2)
        if failed / held <= RATE_RESOLUTION:
            return None
        middle = math.sqrt(held * failed)
        return self._try(middle) if held < tidy(middle) < failed else None

    def _try(self, rate: float) -> Plan | None:
        return Plan(rate=tidy(rate)) if rate >= self.min_rate else None

    @property
    def min_rate(self) -> float:
        """The lowest rate at which a level has enough calls to judge."""
        return MIN_REQUESTS / self.level_s if self.level_s else 0.0

    def find_bracket(self, done: Sequence[Outcome]) -> tuple[float | None, float | None]:
        """The highest rate that held among those below the lowest that did not; and that lowest one."""
        rates = [outcome for outcome in done if outcome.plan.rate is not None]
        failed = min((one.plan.rate or 0.0 for one in rates if not self.holds(one)), default=None)
        held = [one.plan.rate or 0.0 for one in rates if self.holds(one)]
        below = [rate for rate in held if failed is None or rate < failed]
        return max(below, default=None), failed

    def holds(self, outcome: Outcome) -> bool:
        return not outcome.is_saturated and (outcome.objective_share or 0.0) >= GOODPUT_SHARE


def tidy(rate: float) -> float:
    """Rounded to three digits, so that a rate can be read and typed."""
    return float(f"{rate:.3g}")
