"""The serving state of the front-end: one object read by probes, call handlers and the launcher's socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from typing import Literal

from tgis_server.errors import Unavailable
from tgis_server.run.phases import SERVING, Phases
from tgis_server.words.loading import explain_loading

Probe = Literal["startup", "live", "ready"]


class ServingState(Enum):
    """The values are those of ``FrontendHealth.State``."""

    STARTING = 0
    SERVING = 1
    DRAINING = 2
    FAILED = 3


class ServerState:
    """The state of this server. It only moves forward: STARTING, SERVING, DRAINING; FAILED may follow any of them."""

    def __init__(self, start_phases: Phases, describe_loading: Callable[[], str]) -> None:
        self.serving_state = ServingState.STARTING
        self.start_phases = start_phases
        self.launcher_silence = ""  # a sentence if the launcher is frozen
        self.is_accepting = False
        self.num_calls = 0  # in flight
        self.grpc_port = 0
        self.http_port = 0
        self._describe_loading = describe_loading
        self._text = ""
        self._changed = asyncio.Event()  # set and replaced when the answers to probes change
        self._idle = asyncio.Event()
        self._idle.set()

    def start_serving(self) -> None:
        self._enter(ServingState.SERVING, "")
        self.start_phases.enter(SERVING)
        self.is_accepting = True

    def start_draining(self) -> None:
        """Stop being ready, but keep accepting calls: load balancers need time to notice."""
        self._enter(ServingState.DRAINING, "The server is shutting down; use another one.")

    def stop_accepting(self) -> None:
        self.is_accepting = False

    def fail(self, text: str) -> None:
        """The engine is lost, or the group is shutting down. A later, better-informed text replaces an earlier one."""
        self._enter(ServingState.FAILED, text)
        self.is_accepting = False

    def set_launcher_silence(self, silence: str) -> None:
        self.launcher_silence = silence
        self._notify()

    @property
    def text(self) -> str:
        """Why requests are not served, in a sentence; empty while they are."""
        if self.serving_state is ServingState.STARTING:
            return explain_loading(self._describe_loading())
        return self._text

    def probe_failure(self, probe: Probe) -> str:
        """Why a probe fails, in a sentence; empty if it succeeds."""
        if self.serving_state is ServingState.FAILED:
            return self._text
        match probe:
            case "startup":
                return self.text if self.serving_state is ServingState.STARTING else ""
            case "live":
                return self.launcher_silence
            case "ready":
                return self.text

    @property
    def is_serving(self) -> bool:
        return self.serving_state is ServingState.SERVING

    @property
    def is_draining(self) -> bool:
        return self.serving_state is ServingState.DRAINING

    def next_change(self) -> asyncio.Event:
        """An event that is set when the answers to probes may have changed."""
        return self._changed

    def require_accepting(self) -> None:
        """
        Raises:
            Unavailable: no calls are accepted now; the text explains why.
        """
        if not self.is_accepting:
            raise Unavailable(self.text)

    @contextmanager
    def call(self) -> Iterator[None]:
        """Count a call as in flight until its handler has answered, even with an error."""
        self.num_calls += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.num_calls -= 1
            if not self.num_calls:
                self._idle.set()

    async def wait_until_idle(self, timeout_s: float) -> None:
        """Wait until no call is in flight, at most ``timeout_s``."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()

    def _enter(self, serving_state: ServingState, text: str) -> None:
        self.serving_state, self._text = serving_state, text
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
