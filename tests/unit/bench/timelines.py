"""Records of loads whose figures can be computed by hand."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tgis_cli.bench.load.records import GeneratorHealth, Records


@dataclass
class Timeline:
    """Calls as they would be recorded. Times are seconds after the start of the level."""

    calls: list[dict] = field(default_factory=list)
    texts: dict[int, str] = field(default_factory=dict)
    started_at: float = 0.0

    def stream(self, sent_s, first_s, gaps=(), *, due_s=None, status=0, end_s=None, input_tokens=10, asked_output=0):
        """A call whose tokens arrive at ``first_s`` and after each gap."""
        self._add(
            due_s=sent_s if due_s is None else due_s,
            sent_s=sent_s,
            first_s=first_s,
            end_s=first_s + sum(gaps) if end_s is None else end_s,
            status=status,
            input_tokens=input_tokens,
            output_tokens=len(gaps) + 1,
            asked_output=asked_output,
            gaps=gaps,
        )

    def answer(self, sent_s, end_s, *, due_s=None, status=0, output_tokens=5):
        """A unary call, or one that failed."""
        self._add(
            due_s=sent_s if due_s is None else due_s,
            sent_s=sent_s,
            first_s=np.nan,
            end_s=end_s,
            status=status,
            input_tokens=10,
            output_tokens=output_tokens,
            asked_output=0,
            gaps=(),
        )

    def _add(self, **call):
        self.calls.append(call)

    def records(self):
        calls = sorted(self.calls, key=lambda call: call["end_s"])

        def column(name, dtype):
            return np.array([call[name] for call in calls], dtype)

        return Records(
            index=np.arange(len(calls)),
            due_s=column("due_s", np.float64),
            sent_s=column("sent_s", np.float64),
            first_s=column("first_s", np.float64),
            end_s=column("end_s", np.float64),
            status=column("status", np.int64),
            input_tokens=column("input_tokens", np.int64),
            output_tokens=column("output_tokens", np.int64),
            asked_input=np.zeros(len(calls), np.int64),
            asked_output=column("asked_output", np.int64),
            gap_s=np.array([gap for call in calls for gap in call["gaps"]], np.float32),
            num_gaps=np.array([len(call["gaps"]) for call in calls], np.int64),
            texts=self.texts,
            started_at=self.started_at,
        )


def closed_loop(*, streams=2, calls_per_stream=10, ttft_s=0.5, gap_s=0.1, output_tokens=6, stagger_s=0.0):
    """Streams that send one call after the other; each starts ``stagger_s`` after the one before."""
    timeline = Timeline()
    call_s = ttft_s + gap_s * (output_tokens - 1)
    for stream in range(streams):
        for number in range(calls_per_stream):
            sent_s = stream * stagger_s + number * call_s
            timeline.stream(sent_s, sent_s + ttft_s, [gap_s] * (output_tokens - 1))
    return timeline


def open_loop(moments, durations):
    timeline = Timeline()
    for due_s, duration_s in zip(moments, durations, strict=True):
        timeline.answer(due_s, due_s + duration_s)
    return timeline


def healthy(**changes):
    facts = {
        "workers": 1,
        "send_lag_s": np.full(100, 0.001),
        "loop_lag_s": np.full(100, 0.001),
        "cpu_share": 0.2,
        "cpu_s": 1.0,
        "num_tokens": 100_000,
        "peak_bytes": 1 << 26,
    }
    return GeneratorHealth(**facts | changes)
