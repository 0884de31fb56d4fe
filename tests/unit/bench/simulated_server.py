"""A server that exists only as arithmetic: a load on it takes no time, and its figures can be computed by hand.

Each step makes one token for each of the calls in the batch, and lasts ``step_s`` plus ``row_s`` for each of them.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from tgis_cli.bench.load.calls import Arrivals
from tgis_cli.bench.load.orders import Totals
from tgis_cli.bench.load.records import GeneratorHealth, Records
from tgis_cli.clients.address import Address


class FakeClient:
    """Says what a load asks of a server before it sends anything; a word is a token."""

    address = Address("127.0.0.1", 8033, is_tls=False, source="--url")

    def __init__(self, url: str = "", max_sequence_length: int = 2048, max_new_tokens: int = 1024) -> None:
        self.url = url
        self._info = SimpleNamespace(max_sequence_length=max_sequence_length, max_new_tokens=max_new_tokens)

    def model_info(self) -> Any:
        return self._info

    def count_tokens(self, texts: list[str]) -> list[int]:
        return [1 + len(text.split()) for text in texts]


@dataclass
class SimulatedServer:
    """Plays the processes that send calls."""

    step_s: float = 0.01
    row_s: float = 0.0
    max_rows: int = 8
    output_tokens: int = 20
    input_tokens: int = 16
    on_level: Callable[[Arrivals], None] = lambda arrivals: None
    levels: list[Arrivals] = field(default_factory=list)
    is_stopped: bool = False

    def stop(self) -> None:
        self.is_stopped = True

    def run_level(self, arrivals: Arrivals, on_tick: Callable[[Any], None]) -> tuple[Records, GeneratorHealth]:
        self.levels.append(arrivals)
        self.on_level(arrivals)
        calls = self._serve(arrivals)
        totals = {"sent": len(calls), "completed": len(calls), "output_tokens": len(calls) * self.output_tokens}
        on_tick(Totals(**totals, ttft_s=array("f", [0.02]), itl_s=array("f", [0.01])))
        return to_records(arrivals, calls, self.input_tokens), make_health(len(calls))

    def _serve(self, arrivals: Arrivals) -> list[tuple[float, list[float]]]:
        """Due time and moments of the tokens of each call, in the order of their ends."""
        due = deque(arrivals.due_s or [0.0] * (arrivals.concurrency or 0))
        num_left = (arrivals.max_calls or math.inf) - len(due) if arrivals.concurrency else 0
        batch: list[tuple[float, list[float]]] = []
        done: list[tuple[float, list[float]]] = []
        now = 0.0
        while due or batch:
            if not batch and due:
                now = max(now, due[0])
            while due and due[0] <= now and len(batch) < self.max_rows:
                batch.append((due.popleft(), []))
            now += self.step_s + self.row_s * len(batch)
            for _, moments in batch:
                moments.append(now)
            ended = [call for call in batch if len(call[1]) == self.output_tokens]
            batch = [call for call in batch if len(call[1]) < self.output_tokens]
            done += ended
            if arrivals.concurrency is not None and now < (arrivals.max_s or math.inf):
                more = int(min(len(ended), num_left))
                num_left -= more
                due.extend([now] * more)
        return done


def to_records(arrivals: Arrivals, calls: list[tuple[float, list[float]]], input_tokens: int) -> Records:
    count = len(calls)
    counts = np.array([len(moments) for _, moments in calls], dtype=np.int64)
    due = np.array([due_s for due_s, _ in calls])
    return Records(
        index=np.arange(count) + arrivals.first_index,
        due_s=due,
        sent_s=due + 1e-4,
        first_s=np.array([moments[0] for _, moments in calls]),
        end_s=np.array([moments[-1] for _, moments in calls]),
        status=np.zeros(count, dtype=np.int64),
        input_tokens=np.full(count, input_tokens),
        output_tokens=counts,
        asked_input=np.full(count, input_tokens),
        asked_output=counts,
        gap_s=np.concatenate([np.diff(moments) for _, moments in calls] or [np.zeros(0)]).astype(np.float32),
        num_gaps=counts - 1,
        texts={},
    )


def make_health(num_calls: int) -> GeneratorHealth:
    return GeneratorHealth(
        workers=1,
        send_lag_s=np.full(num_calls, 1e-4),
        loop_lag_s=np.full(10, 1e-4),
        cpu_share=0.01,
        cpu_s=0.01,
        num_tokens=num_calls,
        peak_bytes=1 << 20,
    )
