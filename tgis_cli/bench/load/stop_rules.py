"""When a level ends early because the server does not serve it: to wait longer, or to send more, would show nothing."""

from __future__ import annotations

from dataclasses import dataclass

from tgis_cli.bench.load.orders import Totals

STALL_S = 60.0  # a server that has begun its answers and sends nothing for so long will not send more
SILENCE_S = 600.0  # a long prompt, or a long unary answer, may take minutes before anything is sent
# This many failures in at least this many seconds, and nothing else: the server refuses everything.
REFUSED_CALLS = 100
REFUSED_S = 2.0
SHORT_S = 1.0  # a call in flight for longer has not been refused: the server may be working on it


@dataclass(slots=True)
class StopRules:
    """The rules of one level, asked with each report of its progress."""

    heard: tuple[int, int, int] = (0, 0, 0)  # tokens, calls completed, calls failed
    heard_at: float | None = None  # when any of these last changed
    served_at: float | None = None  # when tokens or calls completed last changed
    failed_before: int = 0  # calls, until then

    def find_reason(self, progress: Totals, now: float) -> str:
        """A clause that says why the level has to end; empty if it can go on."""
        heard = progress.output_tokens, progress.completed, progress.failed
        if self.served_at is None or heard[:2] != self.heard[:2]:
            self.served_at, self.failed_before = now, progress.failed
        if self.heard_at is None or heard != self.heard or not progress.in_flight:
            self.heard_at = now
        self.heard = heard
        limit_s = STALL_S if progress.streaming else SILENCE_S
        if now - self.heard_at > limit_s:
            return f"the server sent nothing for {limit_s:.0f} s"
        num_failed = progress.failed - self.failed_before
        if num_failed >= REFUSED_CALLS and now - self.served_at >= REFUSED_S and progress.oldest_s < SHORT_S:
            return f"the server refused {num_failed:,} requests in a row"
        return ""
