"""``tgis stop``: which servers to stop, and how.

A signal goes only to a launcher of this user: immediately before, the process must still hold the lock of its run
directory.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tgis_cli.clients.server_status import State, Status, ask_all
from tgis_cli.runs.servers import RunningServer, find_server
from tgis_cli.terminal.stop_signals import ECHO_S
from tgis_server.errors import Unavailable, UsageError
from tgis_server.words.close_words import find_close, or_list
from tgis_server.words.sizes import format_count

POLL_S = 0.05
QUIET_S = 1.0  # before the first message about a drain
REPORT_S = 0.5
SLACK_S = 10.0  # beyond the longest drain, for ending the processes

Show = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Stopped:
    """One server that was told to stop."""

    server: RunningServer
    seconds: float | None  # until it ended; ``None``: it is still running
    num_calls: int = 0  # in flight, as last known

    @property
    def name(self) -> str:
        return f"{self.server.model} (pid {self.server.pid})"

    def as_dict(self) -> dict[str, object]:
        facts = {"model": self.server.model, "pid": self.server.pid, "grpc": self.server.grpc}
        return facts | {"seconds": None if self.seconds is None else round(self.seconds, 2)}


def pick_servers(names: Sequence[str], running: Sequence[RunningServer], *, everything: bool) -> list[RunningServer]:
    """The servers to stop: the only one if no name is given.

    Raises:
        UsageError: a name matches no server or several, or several are running and none is named.
        Unavailable: none is running.
    """
    if everything and names:
        raise UsageError(f"Both --all and {names[0]} are given: leave one out.")
    if not all(name.strip() for name in names):
        raise UsageError("The name of a server is empty: give its model, gRPC port or pid.")
    if everything:
        return list(running)
    if not running:
        raise Unavailable("No server of this user is running.")
    if not names and len(running) > 1:
        raise UsageError(f"Several servers are running: {list_names(running)}. Name one, or give --all.")
    if not names:
        return list(running)
    picked = [pick_server(name, running) for name in names]
    return [server for index, server in enumerate(picked) if server not in picked[:index]]


def pick_server(name: str, running: Sequence[RunningServer]) -> RunningServer:
    matches = [server for server in running if {name, name.rstrip("/")} & server.names]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UsageError(f"Several servers are called {name}: {list_names(matches)}. Give the port or the pid of one.")
    # Not for numbers, which resemble each other by chance.
    close = find_close(name, (each for server in running for each in server.names if not each.isdecimal()))
    hint = f"did you mean {or_list(close)}?" if close else f"there {'are' if len(running) > 1 else 'is'} "
    raise UsageError(f"No server is called {name}; {hint if close else hint + list_names(running) + '.'}")


def list_names(servers: Iterable[RunningServer]) -> str:
    return ", ".join(f"{server.title} at {server.grpc or 'no port yet'} (pid {server.pid})" for server in servers)


def stop_servers(
    servers: Sequence[RunningServer], timeout_s: float | None, show: Show, *, is_hurried: bool
) -> list[Stopped]:
    """Tell all servers to stop, and wait.

    Args:
        timeout_s: for each; ``None``: as long as its drain may take, and a little more.
        show: called with what is being waited for, whenever that changes.
        is_hurried: do not let the servers finish their calls.

    Raises:
        Unavailable: a launcher is frozen, so it cannot act on a signal. No server has been signalled then.
    """
    statuses = dict(zip(servers, ask_all(servers), strict=True))
    for server, status in statuses.items():
        if status.state is State.FROZEN:
            raise Unavailable(
                f"The launcher of {server.model} (pid {server.pid}) is frozen (SIGSTOP) and cannot act on a signal: "
                f"resume it with `kill -CONT {server.pid}`."
            )
    started_at = time.monotonic()
    # A signal to a server that is draining already would be its second, which cuts the drain short.
    for server, status in statuses.items():
        if status.state is not State.DRAINING:
            terminate(server)
    if is_hurried:
        time.sleep(2 * ECHO_S)  # the launcher would take an earlier signal for an echo of the first
        for server in servers:
            terminate(server)
    return wait_for_ends(servers, timeout_s, started_at, show)


def terminate(server: RunningServer) -> None:
    """Send SIGTERM to this launcher, if it has not ended."""
    current = find_server(server.pid)
    if current is not None and current.start_ticks == server.start_ticks:
        os.kill(server.pid, signal.SIGTERM)


def wait_for_ends(
    servers: Sequence[RunningServer], timeout_s: float | None, started_at: float, show: Show
) -> list[Stopped]:
    """Wait until each server has ended or its time is up, and show drains that take long."""
    ended: dict[int, Stopped] = {}
    calls: dict[int, int] = {}
    next_report_at = started_at + QUIET_S
    while len(ended) < len(servers):
        now = time.monotonic()
        for server in servers:
            limit_s = server.drain_s + SLACK_S if timeout_s is None else timeout_s
            if server.pid not in ended and not server.is_alive:
                ended[server.pid] = Stopped(server, now - started_at)
            elif server.pid not in ended and now - started_at >= limit_s:
                ended[server.pid] = Stopped(server, None, calls.get(server.pid, 0))
        left = [server for server in servers if server.pid not in ended]
        if left and now >= next_report_at:
            next_report_at = now + REPORT_S
            statuses = ask_all(left)
            calls |= {server.pid: status.num_calls for server, status in zip(left, statuses, strict=True)}
            show(", ".join(map(describe_wait, left, statuses)))
        time.sleep(POLL_S if left else 0.0)
    return [ended[server.pid] for server in servers]


def describe_wait(server: RunningServer, status: Status) -> str:
    doing = f"{format_count(status.num_calls, 'call')} in flight" if status.state is State.DRAINING else "ending"
    return f"{server.model} (pid {server.pid}): {doing}"


def describe_survivors(stopped: Sequence[Stopped]) -> str:
    """A sentence about servers that are still running; empty if there are none."""
    left = [each for each in stopped if each.seconds is None]
    if not left:
        return ""
    calls = sum(each.num_calls for each in left)
    verb = "is" if len(left) == 1 else "are"
    why = f", with {format_count(calls, 'call')} in flight" if calls else ""
    return (
        f"{', '.join(each.name for each in left)} {verb} still running{why}: wait, or end the calls with "
        "`tgis stop --now`."
    )
