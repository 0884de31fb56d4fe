"""What the supervisor learns by asking: is the group ready, does the front-end answer, what does a drain wait for.

Imports gRPC: only after the children have been started.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time

from tgis_cli.supervisor.cause import FRONTEND, ProcessHangs
from tgis_cli.supervisor.health import HealthClient
from tgis_cli.supervisor.progress import ProcessProgress, Silence, render
from tgis_cli.supervisor.ready import Ready, make_lines, make_panel, write_ready_file
from tgis_cli.supervisor.terminal import Terminal, make_json_line
from tgis_server import failures
from tgis_server.run import Run
from tgis_server.wire import shard_pb2 as pb

logger = logging.getLogger(__name__)

STARTING_POLL_S = 0.05
STARTING_CALL_S = 0.5  # one that does not answer holds up the polling of the others
STILL_STARTING_S = 10.0  # a line about a slow start, where no live status is shown
WATCH_POLL_S = 1.0
WATCH_CALL_S = 1.0
MAX_UNANSWERED = 5
DRAIN_POLL_S = 0.2


class Watcher:
    """Asks the processes of one run."""

    def __init__(self, run: Run, terminal: Terminal, started_at: float) -> None:
        self._run = run
        self._terminal = terminal
        self._started_at = started_at
        self._health = HealthClient(run)
        names = [*(f"shard-{rank}" for rank in range(run.num_shard)), FRONTEND]
        self._processes = [ProcessProgress(name, started_at) for name in names]

    async def wait_until_ready(self) -> None:
        """Until every shard and the front-end say SERVING.

        Raises:
            ProcessHangs: nothing has moved for ``--startup-timeout`` seconds.
        """
        silence = Silence(self._run.config.startup_timeout)
        next_line_at = self._started_at + STILL_STARTING_S
        while True:
            await asyncio.gather(*(self._ask(process) for process in self._processes if not process.is_ready))
            if all(process.is_ready for process in self._processes):
                return
            now = time.monotonic()
            silence.check(self._processes, now)
            if self._terminal.is_interactive:
                self._terminal.show_status(render(self._processes, now - self._started_at, "Starting"))
            elif now >= next_line_at:
                next_line_at += STILL_STARTING_S
                logger.info("starting for %.0f s: %s", now - self._started_at, ", ".join(map(str, self._processes)))
            await asyncio.sleep(STARTING_POLL_S)

    async def announce(self, pids: dict[str, int]) -> None:
        """Say where the server is: in ``ready.json``, and to the terminal or as a JSON event."""
        frontend = self._processes[-1].reply
        assert isinstance(frontend, pb.FrontendHealth), "the front-end has said that it is ready"
        ready = Ready(
            run=self._run,
            info=await self._get_info(),
            grpc_port=frontend.grpc_port,
            http_port=frontend.http_port,
            pids=pids,
            elapsed_s=time.monotonic() - self._started_at,
        )
        write_ready_file(ready, os.getpid())
        self._terminal.show_status(None)
        if self._terminal.as_json:
            self._terminal.print(make_json_line("launcher", "ready", "info", event="ready", **ready.facts()))
        elif self._terminal.is_interactive:
            self._terminal.print_panel(make_panel(ready))
        else:
            self._terminal.print("\n".join(make_lines(ready)))

    async def _get_info(self) -> pb.InfoReply:
        for _ in range(MAX_UNANSWERED):
            if (info := await self._health.info(0, WATCH_CALL_S)) is not None:
                return info
        raise ProcessHangs("shard-0", failures.NO_INFO.format(process="shard-0"))

    async def watch_frontend(self) -> None:
        """Ask the front-end for ever whether it is well.

        Raises:
            ProcessHangs: it does not answer any more.
        """
        num_unanswered = 0
        while num_unanswered < MAX_UNANSWERED:
            await asyncio.sleep(WATCH_POLL_S)
            reply = await self._health.check(FRONTEND, WATCH_CALL_S)
            num_unanswered = 0 if reply is not None else num_unanswered + 1
        raise ProcessHangs(FRONTEND, failures.FRONTEND_HANGS.format(process=FRONTEND, count=MAX_UNANSWERED))

    async def report_drain(self) -> None:
        """Say how many calls a drain waits for, for ever, whenever the number changes."""
        last = -1
        while True:
            await asyncio.sleep(DRAIN_POLL_S)
            reply = await self._health.check(FRONTEND, WATCH_CALL_S)
            if isinstance(reply, pb.FrontendHealth) and reply.in_flight != last:
                last = reply.in_flight
                logger.info("draining: %d calls in flight", last)

    async def close(self) -> None:
        await self._health.close()

    async def _ask(self, process: ProcessProgress) -> None:
        process.note(await self._health.check(process.name, STARTING_CALL_S), time.monotonic())
