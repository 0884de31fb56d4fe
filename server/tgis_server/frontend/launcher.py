"""The launcher's socket: it asks how the front-end is, and tells why the group ends.

A launcher that stops asking is frozen.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import grpc

from tgis_server.frontend.state import ServerState
from tgis_server.wire import shard_pb2 as pb
from tgis_server.wire.shard_pb2_grpc import FrontendServicer, add_FrontendServicer_to_server

logger = logging.getLogger(__name__)

STOP_GRACE_S = 0.5  # a question in flight is answered
CHECK_S = 1.0
MAX_SILENCE_S = 6.0  # the launcher asks every second


class LauncherServer(FrontendServicer):
    """Only this user can open its socket."""

    def __init__(self, path: Path, state: ServerState, end: Callable[[str], None]) -> None:
        """``end`` is called with the cause when the launcher ends the group."""
        self._path = path
        self._state = state
        self._end = end
        self._called_at = 0.0
        self._checking: asyncio.Task[None] | None = None
        self._server = grpc.aio.server()
        add_FrontendServicer_to_server(self, self._server)

    async def start(self) -> None:
        self._server.add_insecure_port(f"unix:{self._path}")
        self._path.chmod(0o600)
        await self._server.start()
        self._called_at = time.monotonic()  # it asks from the start on
        self._checking = asyncio.create_task(self._check_launcher(), name="check-launcher")

    async def stop(self) -> None:
        if self._checking:
            self._checking.cancel()
        await self._server.stop(STOP_GRACE_S)

    async def Health(self, request: pb.HealthRequest, context: object) -> pb.FrontendHealth:  # noqa: N802  the RPC's
        self._note_call()
        state = self._state
        return pb.FrontendHealth(
            state=pb.FrontendHealth.State.Name(state.phase.value),
            text=state.text,
            grpc_port=state.grpc_port,
            http_port=state.http_port,
            in_flight=state.num_calls,
            phases=state.start_phases.encode(),
        )

    async def End(self, request: pb.EndRequest, context: object) -> pb.EndReply:  # noqa: N802  the RPC's name
        self._end(request.cause)
        return pb.EndReply()

    def _note_call(self) -> None:
        if self._state.launcher_silence:
            logger.warning("the launcher goes on")
            self._state.note_launcher("")
        self._called_at = time.monotonic()

    async def _check_launcher(self) -> None:
        """It must not fall silent. A launcher that is dead takes this process with it."""
        while True:
            slept_at = time.monotonic()
            await asyncio.sleep(CHECK_S)
            now = time.monotonic()
            if self._state.launcher_silence:
                continue
            if now - slept_at > 2 * CHECK_S:  # it was this process that stood still: calls wait to be read
                self._called_at = now
            if now - self._called_at > MAX_SILENCE_S:
                pid = os.getppid()
                silence = (
                    f"The launcher (pid {pid}) is frozen: it has not asked how this process is for "
                    f"{now - self._called_at:.0f} s, and would notice no failure; let it go on with `kill -CONT {pid}`."
                )
                logger.error("%s", silence)
                self._state.note_launcher(silence)
