"""A streamed answer as ``tgis generate`` shows it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tgis_server.wire import generation_pb2 as pb


@dataclass(slots=True)
class Answer:
    """A stream's frames put together, with the times at which they came."""

    started_at: float = field(default_factory=time.monotonic)
    first_at: float | None = None
    ended_at: float = 0.0
    text: str = ""
    last: Any = None  # the frame with the stop reason
    input_token_count: int = 0
    generated_token_count: int = 0
    seed: int = 0

    def add(self, frame: pb.GenerationResponse) -> None:
        now = time.monotonic()
        if frame.generated_token_count and self.first_at is None:
            self.first_at = now
        self.ended_at = now
        self.text += frame.text
        self.last = frame
        self.input_token_count = self.input_token_count or frame.input_token_count
        self.generated_token_count = max(self.generated_token_count, frame.generated_token_count)
        self.seed = self.seed or frame.seed

    @property
    def stop_reason(self) -> str:
        from tgis_server.wire import generation_pb2 as pb

        return str(pb.StopReason.Name(self.last.stop_reason)) if self.last is not None else "NOT_FINISHED"

    def as_dict(self) -> dict[str, Any]:
        facts = {
            "text": self.text,
            "stop_reason": self.stop_reason,
            "input_token_count": self.input_token_count,
            "generated_token_count": self.generated_token_count,
            "seconds": round(self.ended_at - self.started_at, 4),
        }
        if self.last is not None and self.last.stop_sequence:
            facts["stop_sequence"] = self.last.stop_sequence
        return facts | ({"seed": self.seed} if self.seed else {})

    def describe(self) -> str:
        """One line of statistics."""
        total_s = self.ended_at - self.started_at
        first_ms = ((self.first_at or self.ended_at) - self.started_at) * 1000
        decode_s = self.ended_at - (self.first_at or self.ended_at)
        rate = f", {(self.generated_token_count - 1) / decode_s:.1f} tokens/s after that" if decode_s > 0 else ""
        return (
            f"{self.input_token_count} tokens in, {self.generated_token_count} out in {total_s:.2f} s; "
            f"first after {first_ms:.0f} ms{rate}; {self.stop_reason}"
        )


def collect_answer(frames: Iterable[pb.GenerationResponse], *, show: bool) -> Answer:
    """Read a stream to its end.

    Args:
        show: print the text as it comes, and a line end after it unless it ends with one.
    """
    answer = Answer()
    try:
        for frame in frames:
            answer.add(frame)
            if show:
                print(frame.text, end="", flush=True)
    finally:
        if show and answer.text and not answer.text.endswith("\n"):
            print(flush=True)
    return answer
