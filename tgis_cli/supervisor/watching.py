"""Polling of the processes: whether the group is ready, whether the front-end answers, what a drain is waiting for.

Imports gRPC, so import it only after the children have been started.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tgis_cli.causes.cause import ProcessHangs
from tgis_cli.relay.terminal import Terminal, make_json_line
from tgis_cli.supervisor.first_request import is_found_by_clients, read_names
from tgis_cli.supervisor.health import HealthClient
from tgis_cli.supervisor.progress import ProcessProgress, StallDetector, render
from tgis_cli.supervisor.ready import Ready, make_lines, make_panel, write_ready_file
from tgis_cli.supervisor.timeline import Timeline
from tgis_server import failures
from tgis_server.run import Run
from tgis_server.wire import shard_pb2 as pb
from tgis_server.words.processes import FRONTEND, LAUNCHER, LEADER, child_names
from tgis_server.words.sizes import format_count

logger = logging.getLogger(__name__)

STARTING_POLL_S = 0.05
STARTING_CALL_S = 0.5  # a process that does not answer delays the polling of the others
FIRST_LINE_S = 3.0  # before the first line about a slow startup, if no live status is shown
STILL_STARTING_S = 10.0  # between lines after that
STATUS_S = 0.25  # between updates of the live status
WATCH_POLL_S = 1.0
WATCH_CALL_S = 1.0
MAX_UNANSWERED = 4  # calls in a row, each of which takes up to two seconds with the pause before it
MAX_LOOP_AGE_S = 8.0  # of the front-end's event loop, which turns every second even when busy
LAST_CALL_S = 0.3  # for telling the front-end why the group ends
DRAIN_POLL_S = 0.2
DRAIN_LINE_S = 5.0  # longest time between log lines


class Watcher:
    """Polls the processes of one run."""

    def __init__(self, run: Run, terminal: Terminal, started_at: float) -> None:
        self._run = run
        self._terminal = terminal
        self._started_at = started_at
        self._health = HealthClient(run)
        self._processes = [ProcessProgress(name, started_at) for name in child_names(run.num_shard)]

    async def wait_until_ready(self) -> None:
        """Wait until every shard and the front-end report SERVING.

        Raises:
            ProcessHangs: nothing has moved for ``--startup-timeout`` seconds.
        """
        stall = StallDetector(self._run.config.startup_timeout)
        next_line_at, next_status_at = self._started_at + FIRST_LINE_S, 0.0
        while True:
            await asyncio.gather(*(self._probe(process) for process in self._processes if not process.is_ready))
            if all(process.is_ready for process in self._processes):
                return
            now = time.monotonic()
            stall.check(self._processes, now)
            if self._terminal.is_interactive and now >= next_status_at:
                next_status_at = now + STATUS_S
                self._terminal.show_status(render(self._processes, now - self._started_at))
            elif not self._terminal.is_interactive and now >= next_line_at:
                next_line_at = now + STILL_STARTING_S
                logger.info(
                    "still starting after %.0f s: %s", now - self._started_at, ", ".join(map(str, self._processes))
                )
            await asyncio.sleep(STARTING_POLL_S)

    async def announce(self, pids: dict[str, int], environ: Mapping[str, str]) -> None:
        """Announce the server's addresses: in ``ready.json``, and on the terminal or as a JSON event."""
        config = self._run.config
        replies = {process.name: process.reply for process in self._processes if process.reply}
        frontend = replies[FRONTEND]
        assert isinstance(frontend, pb.FrontendHealth), "the front-end has reported that it is ready"
        ready = Ready(
            run=self._run,
            info=await self._get_info(),
            grpc_port=frontend.grpc_port,
            http_port=frontend.http_port,
            pids=pids,
            timeline=Timeline.make(self._run.launcher_phases, replies),
            certificate_names=read_names(config.tls_cert_path, config.tls_key_path),
            is_found=is_found_by_clients(os.getpid(), frontend.grpc_port, environ),
        )
        self._terminal.show_status(None)
        if self._terminal.as_json:
            self._terminal.print(make_json_line(LAUNCHER, "ready", "info", event="ready", **ready.facts()))
        else:
            self._terminal.print("\n".join(make_lines(ready)), self._show_ready(ready))
        write_ready_file(ready, os.getpid())  # last: `tgis run` then writes to the same terminal

    def _show_ready(self, ready: Ready) -> Any:
        """The announcement for a person; ``None`` without one."""
        width, is_verbose = self._terminal.width, self._terminal.is_verbose
        if self._terminal.has_boxes:
            return make_panel(ready, width, is_verbose=is_verbose)
        return "\n".join(make_lines(ready, width, is_verbose=is_verbose)) if self._terminal.has_reader else None

    async def _get_info(self) -> pb.InfoReply:
        for _ in range(MAX_UNANSWERED):
            if (info := await self._health.info(0, WATCH_CALL_S)) is not None:
                return info
        raise ProcessHangs(LEADER, failures.NO_INFO.format(process=LEADER))

    async def watch_frontend(self) -> None:
        """Check the health of the front-end forever.

        Raises:
            ProcessHangs: it no longer answers, or its event loop is stuck.
        """
        num_unanswered = 0
        while num_unanswered < MAX_UNANSWERED:
            await asyncio.sleep(WATCH_POLL_S)
            reply = await self._health.check(FRONTEND, WATCH_CALL_S)
            num_unanswered = 0 if reply is not None else num_unanswered + 1
            if isinstance(reply, pb.FrontendHealth) and reply.loop_age_s > MAX_LOOP_AGE_S:
                raise ProcessHangs(FRONTEND, failures.EVENT_LOOP_HANGS.format(process=FRONTEND, age_s=reply.loop_age_s))
        raise ProcessHangs(FRONTEND, failures.FRONTEND_HANGS.format(process=FRONTEND, count=MAX_UNANSWERED))

    async def report_drain(self) -> None:
        """Report forever how many calls a drain is waiting for, and the time left."""
        config = self._run.config
        started_at = time.monotonic()
        reported, next_line_at = None, started_at
        while True:
            await asyncio.sleep(DRAIN_POLL_S)
            reply = await self._health.check(FRONTEND, WATCH_CALL_S)
            if not isinstance(reply, pb.FrontendHealth):
                continue
            now = time.monotonic()
            elapsed_s = now - started_at
            text = describe_drain(reply.in_flight, elapsed_s, config.drain_delay, config.drain_timeout)
            if self._terminal.is_interactive:
                self._terminal.show_status(f"{text}; Ctrl-C stops at once")
            state = reply.in_flight, elapsed_s < config.drain_delay
            if state != reported or now >= next_line_at:
                reported, next_line_at = state, now + DRAIN_LINE_S
                logger.info("%s", text)

    async def count_steps(self, shards: Sequence[str]) -> dict[str, int | None]:
        """The number of steps each shard has executed; ``None`` for one that does not answer."""
        replies = await asyncio.gather(*(self._health.check(name, LAST_CALL_S) for name in shards))
        counts = (reply.executed_steps if isinstance(reply, pb.HealthReply) else None for reply in replies)
        return dict(zip(shards, counts, strict=True))

    async def tell_cause(self, cause: str) -> None:
        """Tell the front-end why the group ends, for its clients and probes."""
        await self._health.end(cause, LAST_CALL_S)

    async def close(self) -> None:
        await self._health.close()

    async def _probe(self, process: ProcessProgress) -> None:
        phase_before = process.phase
        process.note(await self._health.check(process.name, STARTING_CALL_S), time.monotonic())
        if self._terminal.as_json and process.phase != phase_before:
            fields = {"event": "phase", "child": process.name, "phase": process.phase}
            self._terminal.print(make_json_line(LAUNCHER, str(process), "info", **fields))


def describe_drain(in_flight: int, elapsed_s: float, delay_s: float, timeout_s: float) -> str:
    """``draining: 3 calls in flight, 84 s left``."""
    calls = f"{format_count(in_flight, 'call')} in flight"
    if elapsed_s < delay_s:
        return f"draining: {calls}; new ones are accepted for {delay_s - elapsed_s:.0f} s more"
    return f"draining: {calls}, {max(0.0, delay_s + timeout_s - elapsed_s):.0f} s left"
