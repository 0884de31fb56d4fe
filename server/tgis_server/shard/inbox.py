"""Messages for the leader's main thread."""

from __future__ import annotations

import queue
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from tgis_server.wire.control import Acknowledgement
from tgis_server.wire.messages import Cancel, Submit


@dataclass(frozen=True, slots=True)
class Requests:
    """Messages of one Session, in order."""

    session: int  # Sessions are numbered in the order in which they are opened
    items: list[Submit | Cancel]


@dataclass(frozen=True, slots=True)
class Tick:
    """A health check of the main thread."""


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """The front-end is gone: all requests of its Session end."""

    session: int


@dataclass(frozen=True, slots=True)
class Stop:
    """SIGTERM arrived."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """A request's grammar has been compiled, or has failed to compile."""

    submit: Submit
    guide: Future[Any]  # a ``Guide``


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A rank has read an adapter, or has failed to."""

    answer: Acknowledgement


@dataclass(frozen=True, slots=True)
class SideFailure:
    """A side thread failed: the main thread raises its error."""

    error: Exception


Message = Requests | Tick | SessionEnded | Stop | Compiled | Acknowledged | SideFailure


class Inbox:
    """Many writers (gRPC and side threads, a signal handler), one reader (the main thread)."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def put(self, message: Message) -> None:
        self._queue.put(message)

    def drain(self, *, wait: bool) -> list[Message]:
        """Take all messages; with ``wait``, block until there is one."""
        messages = [self._queue.get()] if wait else []
        try:
            while True:
                messages.append(self._queue.get_nowait())
        except queue.Empty:
            return messages
