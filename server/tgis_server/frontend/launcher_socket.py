"""The launcher's socket: the launcher polls the front-end's health and announces the end of the group.

Commands of the same user, such as `tgis ps`, may ask too.

A separate thread answers, because a busy event loop does not mean that the process is hung. The answer includes how
long the loop has been stuck. A launcher that stops polling is considered frozen.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from tgis_server.frontend.state import ServerState
from tgis_server.wire import shard_pb2 as pb
from tgis_server.wire.shard_pb2_grpc import FrontendServicer, add_FrontendServicer_to_server

logger = logging.getLogger(__name__)

STOP_GRACE_S = 0.5  # time for a call in flight
CHECK_S = 1.0
MAX_SILENCE_S = 6.0  # the launcher polls every second


class LauncherServer(FrontendServicer):
    """Serves the launcher on a socket that only this user can open."""

    def __init__(self, path: Path, state: ServerState, end: Callable[[str], None]) -> None:
        """``end`` is called with the cause, on the event loop, when the launcher ends the group."""
        self._path = path
        self._state = state
        self._end = end
        self._called_at = 0.0
        self._loop_turned_at = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._checking: asyncio.Task[None] | None = None
        self._server = grpc.server(ThreadPoolExecutor(1, thread_name_prefix="launcher"))
        add_FrontendServicer_to_server(self, self._server)

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._server.add_insecure_port(f"unix:{self._path}")
        self._path.chmod(0o600)
        self._called_at = self._loop_turned_at = time.monotonic()  # the silence is measured from here
        self._checking = asyncio.create_task(self._check_launcher(), name="check-launcher")
        self._server.start()

    async def stop(self) -> None:
        if self._checking:
            self._checking.cancel()
        await asyncio.to_thread(self._server.stop(STOP_GRACE_S).wait)

    def Health(self, request: pb.HealthRequest, context: object) -> pb.FrontendHealth:  # noqa: N802  the RPC's name
        now = time.monotonic()
        if not request.is_onlooker:
            self._on_loop(self._note_call)
            self._called_at = now
        state = self._state
        return pb.FrontendHealth(
            state=pb.FrontendHealth.State.Name(state.serving_state.value),
            text=state.text,
            grpc_port=state.grpc_port,
            http_port=state.http_port,
            in_flight=state.num_calls,
            phases=state.start_phases.encode(),
            loop_age_s=now - self._loop_turned_at,
        )

    def End(self, request: pb.EndRequest, context: object) -> pb.EndReply:  # noqa: N802  the RPC's name
        self._on_loop(self._end, request.cause)
        return pb.EndReply()

    def _on_loop(self, do: Callable[..., None], *arguments: object) -> None:
        assert self._loop is not None, "answering before startup"
        self._loop.call_soon_threadsafe(do, *arguments)

    def _note_call(self) -> None:
        if self._state.launcher_silence:
            logger.warning("the launcher has resumed")
            self._state.set_launcher_silence("")

    async def _check_launcher(self) -> None:
        """Notice a frozen launcher. A dead one takes this process down with it."""
        while True:
            slept_at = time.monotonic()
            await asyncio.sleep(CHECK_S)
            self._loop_turned_at = now = time.monotonic()
            if self._state.launcher_silence:
                continue
            if now - slept_at > 2 * CHECK_S:  # this process was stuck, with calls waiting to be read
                self._called_at = now
            if now - self._called_at > MAX_SILENCE_S:
                pid = os.getppid()
                silent_s = now - self._called_at
                silence = (
                    f"The launcher (pid {pid}) is frozen: it has not polled this process for {silent_s:.0f} s and "
                    f"would not notice a failure; resume it with `kill -CONT {pid}`."
                )
                logger.error("%s", silence)
                self._state.set_launcher_silence(silence)
