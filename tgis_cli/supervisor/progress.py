"""The progress that each process reports while it starts, and how long it has been since anything changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tgis_cli.causes.cause import ProcessHangs
from tgis_cli.supervisor.health import Reply
from tgis_server import failures
from tgis_server.wire import shard_pb2 as pb
from tgis_server.words.processes import FRONTEND

MAX_ROWS = 6  # in the live status


@dataclass(slots=True)
class ProcessProgress:
    """The last answer of one process."""

    name: str
    changed_at: float  # by the caller's clock
    reply: Reply | None = None

    @property
    def is_ready(self) -> bool:
        if isinstance(self.reply, pb.FrontendHealth):
            return self.reply.state == pb.FrontendHealth.SERVING
        return self.reply is not None and self.reply.state == pb.HealthReply.SERVING

    @property
    def is_warming_up(self) -> bool:
        return isinstance(self.reply, pb.HealthReply) and self.reply.state == pb.HealthReply.WARMING_UP

    @property
    def phase(self) -> str:
        """What the process is doing, in words; "starting" until it answers."""
        match self.reply:
            case None:
                return "starting"
            case pb.FrontendHealth(state=pb.FrontendHealth.STARTING):
                return "waiting for the shards"  # the text of the reply is meant for clients
            case pb.FrontendHealth():
                return "ready" if self.is_ready else self.reply.text.rstrip(".")
            case _:
                return "ready" if self.is_ready else self.reply.phase or "loading"

    @property
    def share(self) -> float | None:
        """The share of this phase's bytes that is done, if known."""
        if isinstance(self.reply, pb.HealthReply) and self.reply.total and not self.is_ready:
            return min(1.0, self.reply.done / self.reply.total)
        return None

    def note(self, reply: Reply | None, now: float) -> None:
        """Record an answer; ``None`` means that there was none."""
        if reply is None:
            return
        if self.reply is None or progress_of(reply) != progress_of(self.reply):
            self.changed_at = now
        self.reply = reply

    def __str__(self) -> str:
        share = f" {self.share:.0%}" if self.share is not None else ""
        return f"{self.name} {self.phase}{share}"


def progress_of(reply: Reply) -> tuple[object, ...]:
    """The part of an answer that changes only with progress, unlike ages and calls in flight."""
    if isinstance(reply, pb.FrontendHealth):
        return reply.state, reply.text
    return reply.state, reply.phase, reply.done, reply.progress_count


class StallDetector:
    """Finds the process that is holding up startup, once no process of the group has made progress for the timeout."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    def check(self, processes: list[ProcessProgress], now: float) -> None:
        """Check for progress.

        Raises:
            ProcessHangs: nothing has changed in any process for the whole timeout.
        """
        if now - max(process.changed_at for process in processes) < self._timeout_s:
            return
        waiting = [process for process in processes if not process.is_ready]
        shards = [process for process in waiting if process.name != FRONTEND]
        # A shard that is warming up waits for all others. Of several that are loading, the first to fall silent holds
        # up the rest.
        culprit = min(shards or waiting, key=lambda process: (process.is_warming_up, process.changed_at))
        doing = "has not answered once" if culprit.reply is None else f"is stuck at: {culprit.phase}"
        text = failures.NO_PROGRESS.format(process=culprit.name, doing=doing, timeout_s=self._timeout_s)
        raise ProcessHangs(culprit.name, text)


def render(processes: list[ProcessProgress], elapsed_s: float) -> Any:
    """The live status: a line per process, with a bar where the size of its work is known.

    If there are more than ``MAX_ROWS`` processes, it shows only some that are not ready.
    """
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    shown = processes if len(processes) <= MAX_ROWS else [p for p in processes if not p.is_ready][:MAX_ROWS]
    num_ready = sum(process.is_ready for process in processes)
    table = Table.grid(padding=(0, 2))
    for process in shown:
        bar = "" if process.share is None else ProgressBar(total=1.0, completed=process.share, width=24)
        mark = Text("✓", style="green") if process.is_ready else Text("…", style="yellow")
        table.add_row(mark, process.name, Text(process.phase, style="dim"), bar)
    title = f"Starting {elapsed_s:.0f} s, {num_ready} of {len(processes)} ready"
    return Group(Text(title, style="bold"), table)
