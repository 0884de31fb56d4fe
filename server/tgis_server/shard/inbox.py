"""What waits for the leader's main thread."""

from __future__ import annotations

import queue
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from tgis_server.wire.control import Acknowledgement
from tgis_server.wire.messages import Cancel, Submit


@dataclass(frozen=True, slots=True)
class Requests:
    """What came over one Session, in its order."""

    session: int  # Sessions are numbered in the order in which they open
    items: list[Submit | Cancel]


@dataclass(frozen=True, slots=True)
class Tick:
    """Somebody asks whether the main thread lives."""


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """The front-end is gone, and with it every request of its Session."""

    session: int


@dataclass(frozen=True, slots=True)
class Stop:
    """SIGTERM arrived."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """A request's grammar has become its guide, or the error of this future."""

    submit: Submit
    guide: Future[Any]  # a ``Guide``


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A rank has read an adapter, or cannot."""

    answer: Acknowledgement


@dataclass(frozen=True, slots=True)
class SideFailure:
    """What ended a side thread ends the main thread."""

    error: Exception


Message = Requests | Tick | SessionEnded | Stop | Compiled | Acknowledged | SideFailure


class Inbox:
    """Many writers (gRPC and side threads, a signal handler), one reader (the main thread)."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def put(self, message: Message) -> None:
        self._queue.put(message)

    def drain(self, *, wait: bool) -> list[Message]:
        """Everything that is there; with ``wait``, block until there is something."""
        messages = [self._queue.get()] if wait else []
        try:
            while True:
                messages.append(self._queue.get_nowait())
        except queue.Empty:
            return messages
