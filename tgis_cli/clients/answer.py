"""One answer: the frames of a stream put together, the times at which they arrived, and how it ended, in words."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tgis_cli.clients.parameter_table import as_flag
from tgis_server.errors import RequestError
from tgis_server.words.control_characters import escape_controls
from tgis_server.words.sizes import format_count

if TYPE_CHECKING:
    from tgis_server.wire import generation_pb2 as pb


# A rate over a shorter time would mean little: tokens that arrive while this process is busy are read all at once.
MIN_DECODE_S = 0.1


class SomeFailed(RequestError):
    """Some of several answers failed. Each failure has been reported, so this error adds no JSON object."""

    is_told = True


@dataclass(slots=True)
class Answer:
    """The part of an answer that has arrived so far."""

    started_at: float = field(default_factory=time.monotonic)
    first_at: float | None = None
    ended_at: float = 0.0
    text: str = ""
    last: Any = None  # the newest frame; the final one has the stop reason
    input_token_count: int = 0
    generated_token_count: int = 0
    seed: int = 0
    tokens: list[pb.TokenInfo] = field(default_factory=list)
    input_tokens: list[pb.TokenInfo] = field(default_factory=list)
    was_interrupted: bool = False  # by Ctrl-C

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
        self.tokens += frame.tokens
        self.input_tokens += frame.input_tokens

    def add_whole(self, response: pb.GenerationResponse) -> None:
        """Add an answer that arrived in one piece, so that the time of its first token is unknown."""
        self.add(response)
        self.first_at = None

    @property
    def stop_reason(self) -> str:
        """Its name in the API, or its number if this version has no name for it."""
        from tgis_server.wire import generation_pb2 as pb

        number = self.last.stop_reason if self.last is not None else pb.NOT_FINISHED
        return str(pb.StopReason.Name(number)) if number in pb.StopReason.values() else str(number)

    def as_dict(self) -> dict[str, Any]:
        """For JSON. Includes the tokens if they were requested."""
        facts: dict[str, Any] = {
            "text": self.text,
            "stop_reason": self.stop_reason,
            "input_token_count": self.input_token_count,
            "generated_token_count": self.generated_token_count,
            "seconds": round(self.ended_at - self.started_at, 4),
        }
        if self.last is not None and self.last.stop_sequence:
            facts["stop_sequence"] = self.last.stop_sequence
        if self.seed:
            facts["seed"] = self.seed
        for name in ("input_tokens", "tokens"):
            if tokens := getattr(self, name):
                facts[name] = [token_as_dict(token) for token in tokens]
        return facts

    def describe(self, setting: Callable[[str], str] = as_flag) -> list[str]:
        """Facts for a line of statistics, in order.

        Args:
            setting: gives the name under which the user sets a parameter, such as ``--max-new-tokens``.
        """
        facts = [f"{format_count(self.input_token_count, 'token')} in, {self.generated_token_count:,} out"]
        if self.first_at is not None:
            facts.append(f"first in {format_latency(self.first_at - self.started_at)}")
            decode_s = self.ended_at - self.first_at
            if decode_s >= MIN_DECODE_S and self.generated_token_count > 1:
                facts.append(f"{format_rate((self.generated_token_count - 1) / decode_s)} tokens/s")
        if self.seed:
            facts.append(f"seed {self.seed}")
        return [*facts, self.explain_end(setting)]

    def explain_end(self, setting: Callable[[str], str] = as_flag) -> str:
        """``ended by itself``, ``cut at 256 tokens: --max-new-tokens``."""
        if self.was_interrupted:
            return "stopped with Ctrl-C"
        match self.stop_reason:
            case "EOS_TOKEN":
                return "ended by itself"
            case "MAX_TOKENS":
                return f"cut at {format_count(self.generated_token_count, 'token')}: {setting('max_new_tokens')}"
            case "STOP_SEQUENCE":
                return f"stopped at {escape_controls(json.dumps(self.last.stop_sequence, ensure_ascii=False))}"
            case "TIME_LIMIT":
                return f"cut by the time limit: {setting('time_limit')}"
            case "TOKEN_LIMIT":
                return "cut because the context is full"
            case "NOT_FINISHED":
                return "not finished"
            case other if other.isdecimal():
                return f"ended for a reason that this version does not know ({other})"
            case other:
                return other.lower().replace("_", " ")


def format_rate(rate: float) -> str:
    """``0.4``, ``81``, ``1,969``."""
    return f"{rate:.1f}" if rate < 10 else f"{rate:,.0f}"


def format_latency(seconds: float) -> str:
    """``34 ms``, ``2.4 s``."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def token_as_dict(token: pb.TokenInfo) -> dict[str, Any]:
    """A token and what the server says about it.

    A log probability that JSON cannot express is ``None``: NaN, for the first token of an input, which nothing
    predicts, or infinity, for an impossible token.
    """
    facts: dict[str, Any] = {"text": token.text, "logprob": finite_or_none(token.logprob)}
    if token.rank:
        facts["rank"] = token.rank
    if token.top_tokens:
        facts["top_tokens"] = [{"text": top.text, "logprob": finite_or_none(top.logprob)} for top in token.top_tokens]
    return facts


def finite_or_none(number: float) -> float | None:
    return number if math.isfinite(number) else None


def to_json_line(facts: Mapping[str, Any]) -> str:
    """A JSON object on one line, with every control character escaped: JSON itself leaves some of them as they are.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return escape_controls(json.dumps(facts, ensure_ascii=False, allow_nan=False))


def collect_answer(frames: Iterable[pb.GenerationResponse]) -> Answer:
    """Read a stream to its end without showing anything."""
    answer = Answer()
    for frame in frames:
        answer.add(frame)
    return answer
