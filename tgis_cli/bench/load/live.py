"""What is shown on stderr while a load runs: the level at this moment, below the levels that are done.

On a terminal these lines change in their place and disappear in the end; elsewhere there is a line every ten seconds,
and one for each level.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TextIO

from tgis_cli.bench.load.detail import Level
from tgis_cli.bench.load.levels import Plan
from tgis_cli.bench.load.orders import Totals
from tgis_cli.bench.statistics.quantiles import pick_quantile
from tgis_cli.terminal.status_line import LINE_S, StatusLine
from tgis_server.words.layout import lay_out
from tgis_server.words.sizes import format_count

MAX_SAMPLES = 2000  # the latest ones, for percentiles
RATE_S = 2.0  # over which rates are averaged


@dataclass(slots=True)
class LevelSoFar:
    """One level as it runs."""

    title: str
    is_closed: bool  # as many calls as the title says are in flight at any time
    started_at: float
    max_s: float | None
    max_calls: int | None
    progress: Totals | None = None
    ttft_s: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))
    itl_s: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))
    history: deque[tuple[float, int, int]] = field(default_factory=deque)  # (time, calls completed, tokens)

    def add(self, progress: Totals, now: float) -> None:
        self.progress = progress
        self.ttft_s.extend(progress.ttft_s)
        self.itl_s.extend(progress.itl_s)
        self.history.append((now, progress.completed, progress.output_tokens))
        while self.history[0][0] < now - RATE_S and len(self.history) > 2:
            self.history.popleft()

    def describe(self, now: float) -> str:
        """``8 streams, 4 s left: 212 tokens/s, TTFT 41 ms (p95 60), ITL 9 ms (p95 12), 3.3 requests/s``.

        What matters least is last, where narrow terminals cut.
        """
        if self.progress is None:
            return f"{self.title}: starting"
        calls, tokens = self._find_rates()
        parts = [f"{tokens:,.0f} tokens/s"]
        if not self.is_closed:
            parts.append(f"{self.progress.in_flight} in flight")
        if self.progress.failed:
            parts.append(f"{self.progress.failed} failed")
        for name, samples in (("TTFT", self.ttft_s), ("ITL", self.itl_s)):
            if samples:
                parts.append(f"{name} {to_ms(samples, 0.5)} ms (p95 {to_ms(samples, 0.95)})")
        parts.append(f"{calls:.3g} requests/s")
        return f"{self.title}, {self._describe_rest(now)}: {', '.join(parts)}"

    def _find_rates(self) -> tuple[float, float]:
        """The latest calls and tokens per second."""
        (first_s, first_calls, first_tokens), (last_s, calls, tokens) = self.history[0], self.history[-1]
        if last_s <= first_s:
            return 0.0, 0.0
        return (calls - first_calls) / (last_s - first_s), (tokens - first_tokens) / (last_s - first_s)

    def _describe_rest(self, now: float) -> str:
        assert self.progress is not None, "it is called after the first report"
        left = math.inf if self.max_s is None else self.max_s - (now - self.started_at)
        calls_left = math.inf if self.max_calls is None else self.max_calls - self.progress.sent
        if left <= 0 or calls_left <= 0:
            return "finishing"
        return f"{left:.0f} s left" if left < math.inf else format_count(int(calls_left), "request") + " left"


class Live:
    """The display of one run."""

    def __init__(self, stream: TextIO, environ: Mapping[str, str], clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._began_at = clock()
        self._line = StatusLine(stream, environ, clock, elsewhere_every_s=LINE_S)
        self._done: list[tuple[str, ...]] = []
        self._level: LevelSoFar | None = None

    def start_level(self, plan: Plan, max_s: float | None, max_calls: int | None) -> None:
        self._level = LevelSoFar(plan.title, plan.concurrency is not None, self._clock(), max_s, max_calls)
        if self._line.is_live:
            self._line.show(lambda: self._describe(f"{plan.title}: starting"))

    def tick(self, progress: Totals) -> None:
        assert self._level is not None, "a level has been started"
        level, now = self._level, self._clock()
        level.add(progress, now)
        if self._line.is_live or now - level.started_at >= LINE_S:
            self._line.show(lambda: self._describe(level.describe(now)))

    def say(self, what: str) -> None:
        """Show what is going on before the first level; elsewhere than on a terminal, only if that takes long."""
        if self._line.is_live or self._clock() - self._began_at >= LINE_S:
            self._line.show(lambda: what)

    @contextlib.contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Say so at the start of the block, and again if it takes long."""
        self.say(what)
        again = threading.Timer(LINE_S, self.say, (what,))
        again.daemon = True
        again.start()
        try:
            yield
        finally:
            again.cancel()
            again.join()  # it may be writing

    def end_level(self, level: Level) -> None:
        self._done.append(describe_row(level))
        self._level = None
        if not self._line.is_live:
            self._line.clear()  # the next line is due at once
            self._line.show(lambda: ", ".join(filter(None, self._done[-1])))

    def clear(self) -> None:
        self._line.clear()

    def _describe(self, now: str) -> str:
        if not self._line.is_live:
            return now
        rows = [" ".join(lines).strip() for lines in lay_out(self._done, indent=0)]
        return "\n".join([*rows, now])


def describe_row(level: Level) -> tuple[str, ...]:
    """Title, throughput, first token, gaps and failures of a level that is done."""
    ttft, itl = (level.latencies.get(name) for name in ("ttft", "itl"))
    return (
        level.title,
        f"{level.output_tokens_per_s.value:,.0f} tokens/s",
        *(
            f"{name} {one.percentiles['50'].value * 1000:,.0f} ms" if one and "50" in one.percentiles else ""
            for name, one in (("TTFT", ttft), ("ITL", itl))
        ),
        f"{level.failed} failed" if level.failed else "",
    )


def to_ms(samples: deque[float], share: float) -> str:
    return f"{pick_quantile(samples, share) * 1000:,.0f}"
