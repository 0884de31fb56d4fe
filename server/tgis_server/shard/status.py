"""A shard's status. The main thread writes it and gRPC threads read it; every write is a single assignment."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

from tgis_server.run.phases import SERVING, Phases
from tgis_server.wire import shard_pb2 as pb


@dataclass(slots=True)
class ShardStatus:
    """Answers ``Health`` and ``Info`` from memory, even while the main thread is busy."""

    state: pb.HealthReply.State = pb.HealthReply.LOADING
    phases: Phases = field(default_factory=Phases)
    done_bytes: int = 0
    total_bytes: int = 0
    progress_count: int = 0
    executed_steps: int = 0
    step_started_at: float | None = None  # monotonic; None between steps
    allowance_s: float = 0.0  # how long the current step may take, by the leader's prediction
    tick_asked_at: float | None = None  # when the oldest unanswered tick was sent
    info: pb.InfoReply | None = None  # set once, when the model is loaded

    def report_progress(self, phase: str, done: int, total: int) -> None:
        """Called by engines while they load (``engines.api.Progress``)."""
        self.done_bytes, self.total_bytes = done, total
        self.phases.enter(phase, done)
        self.progress_count += 1

    def begin_warm_up(self) -> None:
        """This shard is loaded; now all shards wait for each other."""
        self.report_progress("warming up", 0, 0)
        self.state = pb.HealthReply.WARMING_UP

    @property
    def is_serving(self) -> bool:
        return self.state == pb.HealthReply.SERVING

    def begin_serving(self) -> None:
        self.report_progress(SERVING, 0, 0)
        self.tick_asked_at = None  # ticks during loading do not count
        self.state = pb.HealthReply.SERVING

    def begin_step(self, started_at: float, allowance_s: float) -> None:
        """Note a step's start. Until the start is set, readers see the larger of the last and the new allowance."""
        self.allowance_s = max(self.allowance_s, allowance_s)
        self.step_started_at = started_at
        self.allowance_s = allowance_s

    def end_step(self) -> None:
        self.step_started_at = None

    def answer_tick(self) -> None:
        self.tick_asked_at = None

    def ask_tick(self) -> None:
        if self.tick_asked_at is None:
            self.tick_asked_at = time.monotonic()

    def health(self) -> pb.HealthReply:
        now, step_started_at, tick_asked_at = time.monotonic(), self.step_started_at, self.tick_asked_at
        allowance_s = self.allowance_s  # read after the start, so that it is never too small for the step
        return pb.HealthReply(
            state=self.state,
            phase=self.phases.current,
            done=self.done_bytes,
            total=self.total_bytes,
            progress_count=self.progress_count,
            executed_steps=self.executed_steps,
            step_age_s=now - step_started_at if step_started_at is not None else 0.0,
            tick_age_s=now - tick_asked_at if tick_asked_at is not None else 0.0,
            phases=self.phases.encode(),
            allowance_s=allowance_s,
            pid=os.getpid(),
        )
