"""What the front-end can do now, and why not: one object that probes, handlers and the launcher's socket read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum

from tgis_server.errors import Unavailable
from tgis_server.phases import SERVING, Phases


class Phase(Enum):
    """The values are those of ``FrontendHealth.State``."""

    STARTING = 0
    SERVING = 1
    DRAINING = 2
    FAILED = 3


class ServerState:
    """The life of this server. It only goes forward: STARTING, SERVING, DRAINING; FAILED from any of them."""

    def __init__(self, phases: Phases) -> None:
        self.phase = Phase.STARTING
        self.phases = phases  # of the start, for those who want to know what took how long
        self.text = "The model is still loading; try again when the health service says SERVING."
        self.is_accepting = False
        self.num_calls = 0  # in flight
        self.grpc_port = 0
        self.http_port = 0
        self._changed = asyncio.Event()  # set and replaced when the phase changes
        self._idle = asyncio.Event()
        self._idle.set()

    def start_serving(self) -> None:
        self._enter(Phase.SERVING, "")
        self.phases.enter(SERVING)
        self.is_accepting = True

    def start_draining(self) -> None:
        """Not ready any more, but calls are still accepted: load balancers need time to notice."""
        self._enter(Phase.DRAINING, "The server is shutting down; use another one.")

    def stop_accepting(self) -> None:
        self.is_accepting = False

    def fail(self, text: str) -> None:
        self._enter(Phase.FAILED, text)
        self.is_accepting = False

    @property
    def is_serving(self) -> bool:
        return self.phase is Phase.SERVING

    @property
    def is_draining(self) -> bool:
        return self.phase is Phase.DRAINING

    async def wait_for_change(self, phase: Phase) -> None:
        """Until the server is not, or no longer, in this phase."""
        while self.phase is phase:
            await self._changed.wait()

    def require_accepting(self) -> None:
        """
        Raises:
            Unavailable: no calls are accepted now; the text says why.
        """
        if not self.is_accepting:
            raise Unavailable(self.text)

    @contextmanager
    def call(self) -> Iterator[None]:
        """Count a call in flight, from its arrival until its handler has answered, also with an error."""
        self.num_calls += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.num_calls -= 1
            if not self.num_calls:
                self._idle.set()

    async def wait_until_idle(self, timeout_s: float) -> None:
        """Until no call is in flight, but at most so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()

    def _enter(self, phase: Phase, text: str) -> None:
        self.phase, self.text = phase, text
        self._changed.set()
        self._changed = asyncio.Event()
