"""The life of a group of processes: spawn, wait until ready, watch, drain, stop, and report why it ended.

::

    spawn ──► wait until ready ──► watch ──► drain ──► stop shards ──► exit 0
                 │      │            │          │
    stop signal  │      └────────────┴──────────┴──► a child ended, hangs or is stopped ──► find the cause
                 └──► kill ──► exit 0                      ──► tell the front-end's clients ──► kill ──► exit N

A shard cannot be replaced alone, so the first failure ends the group. The launcher watches for processes that end or
are stopped, and polls the front-end. The front-end polls the shards, and notices when the launcher stops polling.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import shutil
import signal
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tgis_cli.causes.cause import (
    Cause,
    Exit,
    ProcessHangs,
    explain_lack_of_threads,
    find_cause,
    has_primary,
    only_peers_are_blamed,
    read_records,
)
from tgis_cli.causes.last_words import lacks_threads
from tgis_cli.causes.oom import OomWatch
from tgis_cli.machine.process_limits import read_process_limits
from tgis_cli.relay.terminal import Terminal
from tgis_cli.runs.servers import CAUSE_FILE
from tgis_cli.supervisor.child import Child, wait_all
from tgis_cli.supervisor.environment import child_environment
from tgis_cli.supervisor.signals import StopSignals
from tgis_cli.terminal.stop_signals import STOP_SIGNALS
from tgis_server import failures
from tgis_server.errors import GroupFailed
from tgis_server.host.interpreter import make_command
from tgis_server.host.races import wait_for_first
from tgis_server.run import Run
from tgis_server.threads import OWN, POLLER, ReservedThreads, Threads
from tgis_server.words.processes import FRONTEND, child_names, rank_of

if TYPE_CHECKING:
    from tgis_cli.supervisor.watching import Watcher

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

CHILD_COMMAND = make_command("-m", "tgis_server.child")

CAUSE_WAIT_S = 0.4  # for the process that failed first to report why, after another one has ended
CAUSE_POLL_S = 0.05
MAX_SCANNED_CHARS = 1000  # of a line: library errors are shorter
DYING_S = 5.0  # for a killed process to free its resources
KILLED_S = 10.0  # for SIGKILL to end a process
LAST_WORDS_S = 0.5  # for the front-end to end calls in flight with a status, and to tell probes the cause
STACKS_WAIT_S = 1.0  # for a hung process to print its stacks
SIGNAL_TO_ALL_S = 0.1  # for a service manager to signal all processes of a group
ROOM_GIVEN_BACK_S = 0.05  # for the kernel to stop counting ended threads
STOP_GRACE_S = 2.0  # between SIGTERM and SIGKILL for shards
STOPPED_S = 3.0  # for a stopped child to be continued
DRAIN_SLACK_S = 5.0  # beyond the time that the front-end has to drain
LAST_LINES_S = 1.0  # for reading the output of ended children


class StopRequested(Exception):
    """A stop signal arrived."""


class ChildEnded(Exception):
    """A child ended unexpectedly."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the run ended."""

    exit_code: int
    sentence: str = ""  # the cause; empty after an orderly stop
    served_s: float = 0.0  # how long the group was ready
    details: str = field(default="", compare=False)  # the last lines of the process that failed


class Supervisor:
    """One run. For use inside a running event loop, in the main thread."""

    def __init__(
        self,
        run: Run,
        terminal: Terminal,
        environ: Mapping[str, str],
        signals: StopSignals,
        *,
        command: Sequence[str] = CHILD_COMMAND,
    ) -> None:
        self._run = run
        self._terminal = terminal
        self._environ = environ
        self._command = command
        self._signals = signals
        self._children: dict[str, Child] = {}
        self._shards: list[Child] = []
        self._ended = asyncio.Event()  # some child has ended, or has been stopped for too long
        self._hung: list[Cause] = []
        self._steps: dict[str, int | None] = {}  # executed by each shard, once a shard has been given up as lost
        self._ready_at: float | None = None
        self._oom = OomWatch()

    async def supervise(self) -> Outcome:
        """Run the group until it stops or fails. No child is left when this returns."""
        started_at = time.monotonic()
        death_read, death_write = os.pipe()  # never written to: end of file tells the children that the launcher ended
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._poll_children)
        looking = None
        if are_threads_scarce(self._run):  # some process, not always the same one, would crash or hang
            ReservedThreads(Threads.of(self._run).at_start - (OWN - POLLER)).release()
            await asyncio.sleep(ROOM_GIVEN_BACK_S)
        try:
            await self._spawn(death_read)
            looking = asyncio.create_task(self._oom.run(self._pids()), name="look-for-kills")
            outcome = await self._live(started_at)
        finally:
            if looking:
                looking.cancel()
            await self._kill_all()
            loop.remove_signal_handler(signal.SIGCHLD)
            os.close(death_read)
            os.close(death_write)
        self._clean_up(outcome)
        return outcome

    async def _live(self, started_at: float) -> Outcome:
        # Importing gRPC takes a tenth of a second, so it happens while the children do their own imports. Its C part
        # must not write to stderr, which is for ``Terminal`` alone; the children's environment has already been made.
        os.environ["GRPC_VERBOSITY"] = "NONE"
        from tgis_cli.supervisor.watching import Watcher

        watcher = Watcher(self._run, self._terminal, started_at)
        try:
            return await self._watch_over(watcher)
        finally:
            self._terminal.show_status(None)
            await watcher.close()

    async def _watch_over(self, watcher: Watcher) -> Outcome:
        try:
            await self._unless_interrupted(watcher.wait_until_ready())
            self._ready_at = time.monotonic()
            await self._unless_interrupted(watcher.announce(self._pids(), self._environ))
            await self._unless_interrupted(watcher.watch_frontend())
        except StopRequested:
            name = self._signals.received[0].name
            if self._ready_at is None:
                logger.info("%s: stopping before startup is complete", name)
                return Outcome(0)
            return await self._stop(watcher, name)
        except ChildEnded:
            if await self._were_all_signalled():
                return Outcome(0)
        except ProcessHangs as error:
            self._hung.append(Cause(error.name, time.time(), str(error), GroupFailed.exit_code))
            logger.error("%s", error)
            await self._ask_for_stacks([self._children[error.name]])
        return await self._fail(watcher)

    # -- phases ---------------------------------------------------------------------------------------------------

    async def _spawn(self, death_fd: int) -> None:
        """Start all children at once, including the front-end, which answers that it is not ready."""
        for name in child_names(self._run.num_shard):
            tail = ["--run", str(self._run.file), "--death-fd", str(death_fd), "--parent", str(os.getpid())]
            environ = child_environment(self._run, rank_of(name), self._environ)
            self._children[name] = Child.spawn(name, [*self._command, name, *tail], environ, death_fd)
        self._shards = [child for name, child in self._children.items() if name != FRONTEND]
        for name, child in self._children.items():
            await child.read_lines(functools.partial(self._relay, name))
        self._poll_children()  # one may have ended before its SIGCHLD could be handled

    async def _stop(self, watcher: Watcher, name: str) -> Outcome:
        """End in order: drain the front-end, then stop the shards."""
        frontend = self._children[FRONTEND]
        logger.info("%s: finishing the calls in flight; a second signal stops them at once", name)
        frontend.send_signal(signal.SIGTERM)
        try:
            await self._drain(frontend, watcher)
        except ChildEnded:
            return Outcome(0) if await self._were_all_signalled() else await self._fail(watcher)
        if self._hung or (frontend.status != 0 and not frontend.was_ended_by_us):
            return await self._fail(watcher)
        for shard in self._shards:
            shard.send_signal(signal.SIGTERM)
        await wait_all(self._shards, STOP_GRACE_S)
        logger.info("stopped")
        return Outcome(0)

    async def _drain(self, frontend: Child, watcher: Watcher) -> None:
        """Wait until the front-end has ended; cut the drain short when time is up or a second signal arrives.

        Raises:
            ChildEnded: a shard died, so answers in flight are lost; or a child was stopped.
        """
        config = self._run.config
        patience_s = config.drain_delay + config.drain_timeout + DRAIN_SLACK_S
        works = {
            "drained": frontend.exited.wait(),
            "hurried": self._signals.wait_second(),
            "failed": self._wait_for_failure(),
            "reported": watcher.report_drain(),  # never ends
        }
        first = await wait_for_first(*works.values(), timeout_s=patience_s)
        end = None if first is None else list(works)[first]
        if end == "drained":
            return
        if end == "failed":
            raise ChildEnded
        if end is None:
            text = failures.DRAIN_HANGS.format(process=FRONTEND, patience_s=patience_s)
            self._hung.append(Cause(FRONTEND, time.time(), text, GroupFailed.exit_code))
            frontend.send_signal(signal.SIGABRT)
        else:
            logger.info("%s: stopping at once", self._signals.received[-1].name)
            frontend.send_signal(signal.SIGINT)
        await wait_all([frontend], LAST_WORDS_S)
        frontend.send_signal(signal.SIGKILL)
        await wait_all([frontend], KILLED_S)

    async def _fail(self, watcher: Watcher) -> Outcome:
        """End the group after its first failure, and find the cause."""
        # 1. The process that was seen to end first need not be the one that failed first.
        await self._wait_for_cause()
        # 2. If every process that ended blames a lost peer, a shard that is still alive must be hung.
        if not self._hung and only_peers_are_blamed(self._exits(), read_records(self._run.errors_dir)):
            left = [shard for shard in self._shards if shard.is_alive]
            self._steps = await watcher.count_steps([shard.name for shard in left])
            await self._ask_for_stacks(left)
        # 3. Kill the shards at once; give the front-end time to send calls in flight their status.
        for shard in self._shards:
            shard.send_signal(signal.SIGKILL)
        ended = [child.wait_for_last_lines() for child in self._children.values() if not child.is_alive]
        await wait_for_first(asyncio.gather(*ended), timeout_s=CAUSE_WAIT_S)
        cause = self._find_cause()
        frontend = self._children[FRONTEND]
        if self._ready_at is not None and frontend.is_alive and not frontend.is_stopped:
            await watcher.tell_cause(cause.sentence)
            await wait_all([frontend], LAST_WORDS_S)
        await self._kill_all()
        self._keep_last_lines()
        served_s = 0.0 if self._ready_at is None else time.monotonic() - self._ready_at
        return Outcome(cause.exit_code, cause.sentence, served_s, read_text(self._log_of(cause.name)))

    async def _wait_for_cause(self) -> None:
        """Wait briefly, or longer while a process is dying: freeing a device's memory takes time."""
        started_at = time.monotonic()
        while (alive := self._alive()) and not self._is_cause_known():
            patience_s = DYING_S if any(child.is_dying for child in alive) else CAUSE_WAIT_S
            if time.monotonic() - started_at > patience_s:
                return
            self._ended.clear()
            await wait_for_first(self._ended.wait(), timeout_s=CAUSE_POLL_S)

    def _find_cause(self) -> Cause:
        self._oom.sample({})
        memory = self._oom.evidence()
        records = read_records(self._run.errors_dir)
        num_shard = self._run.num_shard
        return find_cause(self._exits(), records, memory, num_shard=num_shard, others=self._hung, steps=self._steps)

    async def _ask_for_stacks(self, children: Sequence[Child]) -> None:
        """Send SIGABRT, which makes a Python process print the stack of every thread before it dies."""
        for child in children:
            logger.error("aborting %s to get its stacks", child.name)
            child.send_signal(signal.SIGABRT)
        await wait_all(children, STACKS_WAIT_S)

    async def _kill_all(self) -> None:
        """Kill all children and wait until none is left, except for those that the kernel cannot end."""
        for child in self._children.values():
            child.send_signal(signal.SIGKILL)
        await wait_all(list(self._children.values()), KILLED_S)
        for child in self._alive():
            logger.error("%s (pid %d) has not ended: it is stuck in a driver or a file system", child.name, child.pid)
        lines = asyncio.gather(*(child.wait_for_last_lines() for child in self._children.values()))
        await wait_for_first(lines, timeout_s=LAST_LINES_S)
        for child in self._children.values():
            child.close()

    def _clean_up(self, outcome: Outcome) -> None:
        run = self._run
        for path in run.sockets:
            path.unlink(missing_ok=True)
        if outcome.sentence:
            with contextlib.suppress(OSError):  # the cause is also reported elsewhere
                (run.run_dir / CAUSE_FILE).write_text(outcome.sentence + "\n", encoding="utf-8")
            logger.warning("the run directory is kept: %s (cause, tracebacks and last lines in errors/)", run.run_dir)
        else:
            shutil.rmtree(run.run_dir, ignore_errors=True)

    # -- facts about children -------------------------------------------------------------------------------------

    def _relay(self, name: str, line: str, is_stderr: bool) -> None:
        self._terminal.relay(name, line, to_stderr=is_stderr)
        is_scanned = self._ready_at is None and len(line) < MAX_SCANNED_CHARS and not self._hung
        if is_scanned and lacks_threads(line):
            # The process may run forever without answering: gRPC keeps repeating the line.
            self._hung.append(explain_lack_of_threads(name))
            self._ended.set()

    def _poll_children(self) -> None:
        """Find out what happened to the children; called on SIGCHLD."""
        for child in self._children.values():
            stopped_at = child.stopped_at
            if child.poll():
                self._oom.sample({})
                self._ended.set()
            elif child.stopped_at is not None and child.stopped_at != stopped_at:
                logger.warning("%s was stopped by a signal; `kill -CONT %d` continues it", child.name, child.pid)
                asyncio.get_running_loop().call_later(STOPPED_S, self._give_up_stopped, child, child.stopped_at)
        if os.getpid() == 1:
            self._reap_orphans()

    def _reap_orphans(self) -> None:
        """As process 1 of a container, reap inherited orphans, but not our own children."""
        ours = {child.pid for child in self._alive()}
        with contextlib.suppress(ChildProcessError):
            while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if ended.si_pid in ours:
                    return
                os.waitpid(ended.si_pid, 0)

    def _give_up_stopped(self, child: Child, stopped_at: float) -> None:
        if child.is_alive and child.stopped_at == stopped_at:
            text = failures.PROCESS_STOPPED.format(process=child.name, seconds=STOPPED_S)
            self._hung.append(Cause(child.name, time.time() - STOPPED_S, text, GroupFailed.exit_code))
            self._ended.set()

    async def _wait_for_failure(self) -> None:
        """Wait until a shard has ended, or a child has been stopped for too long."""
        while not self._hung and all(shard.is_alive for shard in self._shards):
            self._ended.clear()
            await self._ended.wait()

    def _pids(self) -> dict[str, int]:
        return {name: child.pid for name, child in self._children.items()}

    def _alive(self) -> list[Child]:
        return [child for child in self._children.values() if child.is_alive]

    def _exits(self) -> list[Exit]:
        """The children that ended on their own."""
        return [
            Exit(child.name, child.status, child.ended_at, tuple(child.tail), str(self._log_of(child.name)))
            for child in self._children.values()
            if child.status is not None and not child.was_ended_by_us
        ]

    def _log_of(self, name: str) -> Path:
        """The file for the traceback or the last lines of a child."""
        return self._run.errors_dir / f"{name}.log"

    def _is_cause_known(self) -> bool:
        return bool(self._hung) or has_primary(self._exits(), read_records(self._run.errors_dir))

    async def _were_all_signalled(self) -> bool:
        """Whether a service manager has signalled every process rather than the launcher alone."""
        if self._hung:
            return False
        orderly = (0, *(-number for number in STOP_SIGNALS))
        blaming = {record.name for record in read_records(self._run.errors_dir) if record.is_secondary}
        if any(exit_.status not in orderly and exit_.name not in blaming for exit_ in self._exits()):
            return False
        return await wait_for_first(self._signals.wait_first(), timeout_s=SIGNAL_TO_ALL_S) == 0

    def _keep_last_lines(self) -> None:
        """Save the last lines of a child that could not write its error, or the stacks of a hung one."""
        for child in self._children.values():
            log = self._log_of(child.name)
            has_failed = not child.was_ended_by_us or signal.SIGABRT in child.sent_signals
            if has_failed and child.tail and not log.exists():
                with contextlib.suppress(OSError):  # the cause is known, which matters more
                    log.write_text("\n".join(child.tail) + "\n", encoding="utf-8", errors="backslashreplace")

    async def _unless_interrupted(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Wait for the result of ``work``.

        Raises:
            StopRequested: a stop signal arrived first.
            ChildEnded: a child ended first.
        """
        task = asyncio.ensure_future(work)
        first = await wait_for_first(task, self._signals.wait_first(), self._ended.wait())
        if first == 0:
            return task.result()
        raise StopRequested if self._signals.received else ChildEnded


def are_threads_scarce(run: Run) -> bool:
    """Whether a limit on threads is near, because the checks were skipped or other processes use up the rest."""
    return any(limit.free < 2 * Threads.of(run).total for limit in read_process_limits())


def read_text(file: Path) -> str:
    """The file's text; empty if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""
