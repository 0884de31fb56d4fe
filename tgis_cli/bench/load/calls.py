"""The calls that a load sends, each made when it is needed, so that a long run does not hold them all in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

SERVICE = "/fmaas.GenerationService/"  # before the name of a method, in a path of HTTP/2


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the API, ready to be sent."""

    body: bytes  # a serialized SingleGenerationRequest (streamed) or BatchedGenerationRequest
    is_streamed: bool
    input_tokens: int  # asked for, over all inputs; 0 if not known
    output_tokens: int  # asked for, over all inputs; 0 if the model decides


class Feed(Protocol):
    """The calls of a load by index. It can be pickled, and gives the same call for an index in every process."""

    def make_call(self, index: int) -> Call: ...


@dataclass(frozen=True, slots=True)
class Arrivals:
    """When calls are sent.

    Closed loop: ``concurrency`` calls are in flight at any time, and ``due_s`` is ``None``. Open loop: call ``i`` is
    due at ``due_s[i]``, whatever is in flight.
    """

    concurrency: int | None = None
    due_s: tuple[float, ...] | None = None  # seconds after the start of the level, ascending; one for each call
    max_calls: int | None = None  # stop sending after this many calls
    max_s: float | None = None  # stop sending after this many seconds
    limit_s: float | None = None  # after this many, cancel what is in flight; None: wait for it
    first_index: int = 0  # of the feed, so that levels and warm-up send different prompts
