"""The last minute of a server's metrics: rates, percentiles, and their history."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from tgis_cli.clients.metrics import PROMPT_TOKENS, RUNNING, WAITING, Change, Scrape

WINDOW_S = 60.0
RATE_S = 5.0  # a single second says nothing if requests are few and slow
MAX_POINTS = 300  # columns of the widest graph


@dataclass(frozen=True, slots=True)
class Point:
    """Between one scrape and the next. ``None``: not known."""

    requests_per_s: float | None = None
    output_tokens_per_s: float | None = None
    prompt_tokens_per_s: float | None = None
    running: float | None = None
    waiting: float | None = None
    kv_share: float | None = None


UNKNOWN = Point()


@dataclass(slots=True)
class Window:
    """Scrapes of one run of a server, oldest first. Those of a run before a restart are dropped."""

    scrapes: deque[Scrape] = field(default_factory=deque)
    points: deque[Point] = field(default_factory=lambda: deque(maxlen=MAX_POINTS))

    def add(self, scrape: Scrape) -> bool:
        """Returns whether the server has restarted since the scrape before."""
        has_restarted = bool(self.scrapes) and Change(self.scrapes[-1], scrape).has_restarted
        if has_restarted:
            self.scrapes.clear()
        if self.scrapes:
            self.points.append(make_point(Change(self.scrapes[-1], scrape)))
        self.scrapes.append(scrape)
        while len(self.scrapes) > 2 and scrape.at_s - self.scrapes[0].at_s > WINDOW_S:
            self.scrapes.popleft()
        return has_restarted

    def add_gap(self) -> None:
        """Note that nothing could be read."""
        self.points.append(UNKNOWN)

    def over(self, seconds: float) -> Change | None:
        """What happened in about the last ``seconds``, at least between two scrapes; ``None`` if there are none."""
        if len(self.scrapes) < 2:
            return None
        newest = self.scrapes[-1]
        recent = [scrape for scrape in self.scrapes if newest.at_s - scrape.at_s <= seconds]
        return Change(recent[0] if len(recent) > 1 else self.scrapes[-2], newest)


def make_point(change: Change) -> Point:
    now = change.after
    return Point(
        **read_rates(change),
        running=now.total(RUNNING),
        waiting=now.total(WAITING),
        kv_share=now.kv_used_share,
    )


def read_rates(change: Change) -> dict[str, float]:
    """Per second, by field of a point."""
    counts = {
        "requests_per_s": change.count("tgi_request_count"),
        "output_tokens_per_s": change.num_output_tokens,
        "prompt_tokens_per_s": change.count(PROMPT_TOKENS),
    }
    return {name: count / change.seconds for name, count in counts.items()}
