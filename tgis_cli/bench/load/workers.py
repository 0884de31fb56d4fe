"""The load generator's side of its workers: start them, give each its share of a level, merge their measurements."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, NoReturn

from tgis_cli.bench.http2.channel import CONNECT_S, Endpoint
from tgis_cli.bench.load.calls import Arrivals, Feed
from tgis_cli.bench.load.columns import floats
from tgis_cli.bench.load.orders import TICK_S, Cut, Done, Failed, GaveUp, Go, NotConnected, Ready, Setup, Totals, split
from tgis_cli.clients.address import Address, mask
from tgis_cli.clients.no_connection import explain_no_connection
from tgis_cli.clients.tls_files import TlsFiles
from tgis_server.errors import GroupFailed, Unavailable
from tgis_server.host.interpreter import make_command, make_environment
from tgis_server.host.proxies import find_proxy
from tgis_server.words.signals import signal_name

if TYPE_CHECKING:
    from tgis_cli.bench.load.records import GeneratorHealth, Records

START_S = 60.0  # for a worker to import and to connect, on a busy machine
PREPARE_S = 20.0  # for a worker to prepare a level, which takes two seconds at most on a quiet machine
SILENCE_S = 10.0  # during a level, a worker sends totals four times a second: after so long it is stopped or hangs
END_S = 2.0  # for a worker to end by itself
LEAD_S = 0.02  # from the order to start until the start: all workers hear it before


class WorkerLost(GroupFailed):
    """A worker has ended or does not respond; what it has measured is lost."""


class WorkerProcess:
    """A worker, as the load generator sees it."""

    def __init__(self, process: subprocess.Popen[bytes], control: Connection) -> None:
        self._process = process
        self.control = control

    @classmethod
    def start(cls, environ: Mapping[str, str] = os.environ) -> WorkerProcess:
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(START_S), 0))
        with theirs:
            process = subprocess.Popen(
                make_command("-m", "tgis_cli.bench.load.worker", str(theirs.fileno()), str(os.getpid())),
                env=make_environment(environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C is for the load generator, which then cuts the level
            )
        return cls(process, Connection(ours.detach()))

    def send(self, order: Any) -> None:
        """
        Raises:
            WorkerLost: the worker is gone, or does not read.
        """
        try:
            self.control.send(order)
        except BlockingIOError:
            raise WorkerLost(explain_silence(START_S)) from None
        except OSError:
            self.explain_end()

    def receive(self) -> Any:
        """
        Raises:
            WorkerLost: the worker is gone.
            TgisError: the worker has failed and says why.
        """
        try:
            message = self.control.recv()
        except (EOFError, OSError):
            self.explain_end()
        if isinstance(message, Failed):
            raise message.error
        return message

    def explain_end(self) -> NoReturn:
        """It has closed its socket: say how it ended."""
        self.end()
        code = self._process.returncode
        end = f"was killed by {signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        raise WorkerLost(f"A worker of the load generator {end}.")

    def end(self) -> None:
        """Let it end by closing the socket; kill it if it does not."""
        self.control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
        self._process.kill()
        self._process.wait()


class Workers:
    """Processes that send calls to one server. They run one level at a time."""

    def __init__(self, processes: list[WorkerProcess], target: str) -> None:
        self._processes = processes  # those that are not lost
        self._target = target
        self._is_stopped = False  # for good
        self._is_cut = False  # this level
        self._reason = ""

    @classmethod
    @contextlib.contextmanager
    def open(
        cls,
        address: Address,
        tls_files: TlsFiles | None,
        feed: Feed,
        num_workers: int,
        *,
        has_stamps: bool = False,
    ) -> Iterator[Workers]:
        """Start workers and connect them; they end with the block.

        They also end with the thread that calls this, so it must not be one that ends sooner.

        Args:
            feed: an object of a class that workers can import.
            has_stamps: the server is the null server: compare its stamps with the arrivals.

        Raises:
            UsageError: a TLS file cannot be used.
            Unavailable: there is no connection; the sentence says why.
            GroupFailed: a worker has ended or does not respond.
        """
        if tls_files is not None:
            tls_files.for_grpc()  # reads all files, which may be pipes, before they go to several processes
        setup = Setup(Endpoint(address.host, address.port, tls_files), feed, has_stamps)
        with contextlib.ExitStack() as stack:
            processes = []
            for _ in range(num_workers):
                processes.append(process := WorkerProcess.start())
                stack.callback(process.end)
                process.send(setup)
            workers = cls(processes, address.target)
            for answer in workers._gather((Ready, NotConnected), START_S):
                if isinstance(answer, NotConnected):
                    raise Unavailable(explain_no_direct_connection(address, tls_files, answer.reason))
            stack.callback(workers._close)
            yield workers

    def run_level(
        self, arrivals: Arrivals, on_tick: Callable[[Totals], None] = lambda _: None
    ) -> tuple[Records, GeneratorHealth]:
        """Send the calls of a level, and wait until the last one has ended.

        Args:
            on_tick: gets the totals about four times a second, with the latencies since the last time. It may call
                ``stop``.

        Returns:
            What was measured, without the part of workers that were lost during the level: ``cut_reason`` says so.

        Raises:
            TgisError: a request cannot be made, or no worker is left.
        """
        from tgis_cli.bench.load.merge import merge_columns, merge_health  # imports numpy

        self._is_cut, self._reason = self._is_stopped, ""
        for process, share in zip(self._processes, split(arrivals, len(self._processes)), strict=True):
            process.send(share)
        self._gather(Ready, PREPARE_S)
        start_s = time.monotonic() + LEAD_S
        for process in self._processes:
            process.send(Go(start_s))
        done = self._watch(on_tick)
        columns = [each.columns for each in done]
        return merge_columns(columns, start_s), merge_health([each.health for each in done], columns, self._reason)

    def stop(self) -> None:
        """End this level, cancelling what is in flight, and any later one. For signal handlers and other threads."""
        self._is_stopped = self._is_cut = True

    def _watch(self, on_tick: Callable[[Totals], None]) -> list[Done]:
        """Wait for the end of the level."""
        done: dict[WorkerProcess, Done] = {}
        latest: dict[WorkerProcess, Totals] = {}
        heard_at = dict.fromkeys(self._processes, time.monotonic())
        next_tick, is_told = time.monotonic() + TICK_S, False
        while any(process not in done for process in self._processes):
            if self._is_cut and not is_told:
                is_told = True
                for process in list(self._processes):
                    with self._losing(process):
                        process.send(Cut())
            for process in self._wait(next_tick - time.monotonic()):
                heard_at[process] = time.monotonic()
                with self._losing(process):
                    match process.receive():
                        case Totals() as totals:
                            before = latest.get(process)
                            latest[process] = add_samples(totals, before) if before else totals
                        case Done() as result:
                            done[process] = result
                        case GaveUp(reason):
                            self._cut(f"The server at {self._target} went away: {reason}.")
            for process in [each for each in self._processes if each not in done and not each.control.poll()]:
                if time.monotonic() - heard_at[process] > SILENCE_S:
                    with self._losing(process):
                        raise WorkerLost(explain_silence(SILENCE_S))
            if time.monotonic() >= next_tick:
                next_tick = time.monotonic() + TICK_S
                on_tick(add_up(list(latest.values())))
                latest = {process: without_samples(totals) for process, totals in latest.items()}
        return list(done.values())

    @contextlib.contextmanager
    def _losing(self, process: WorkerProcess) -> Iterator[None]:
        """If the worker is lost within the block, end the level with what the others have measured.

        Raises:
            WorkerLost: there are no others.
        """
        try:
            yield
        except WorkerLost as lost:
            self._processes.remove(process)
            if not self._processes:
                raise
            self._cut(f"{str(lost).removesuffix('.')}: what it measured in this level is missing.")

    def _cut(self, reason: str) -> None:
        self._reason = self._reason or reason
        self._is_cut = True

    def _gather(self, kinds: type | tuple[type, ...], timeout_s: float) -> list[Any]:
        """An answer of one of these kinds from every worker."""
        deadline = time.monotonic() + timeout_s
        answers: dict[WorkerProcess, Any] = {}
        while len(answers) < len(self._processes):
            if not (ready := self._wait(deadline - time.monotonic())) and time.monotonic() >= deadline:
                raise WorkerLost(explain_silence(timeout_s))
            for process in ready:
                answer = process.receive()
                if isinstance(answer, kinds):  # otherwise it is late news of the level before
                    answers[process] = answer
        return [answers[process] for process in self._processes]

    def _wait(self, timeout_s: float) -> list[WorkerProcess]:
        """Those that have sent something."""
        ready = wait([process.control for process in self._processes], max(0.0, timeout_s))
        return [process for process in self._processes if process.control in ready]

    def _close(self) -> None:
        for process in self._processes:  # all before waiting for any
            process.control.close()


def explain_no_direct_connection(address: Address, tls_files: TlsFiles | None, reason: str) -> str:
    """Other commands may have reached the server through a proxy, which is not part of what a load measures."""
    variable, proxy = find_proxy(address.target, os.environ)
    if not variable:
        return explain_no_connection(address, tls_files, CONNECT_S)
    return (
        f"There is no direct connection to {address.target} ({reason}), and the load generator does not use the proxy "
        f"{mask(proxy)} ({variable}): run it where the server can be reached directly."
    )


def explain_silence(seconds: float) -> str:
    return f"A worker of the load generator did not respond for {seconds:g} s."


def add_up(parts: list[Totals]) -> Totals:
    return Totals(
        sent=sum(part.sent for part in parts),
        in_flight=sum(part.in_flight for part in parts),
        streaming=sum(part.streaming for part in parts),
        oldest_s=max((part.oldest_s for part in parts), default=0.0),
        completed=sum(part.completed for part in parts),
        failed=sum(part.failed for part in parts),
        output_tokens=sum(part.output_tokens for part in parts),
        ttft_s=sum((part.ttft_s for part in parts), floats()),
        itl_s=sum((part.itl_s for part in parts), floats()),
    )


def add_samples(totals: Totals, before: Totals) -> Totals:
    """The later totals, with the samples of both."""
    return replace(totals, ttft_s=before.ttft_s + totals.ttft_s, itl_s=before.itl_s + totals.itl_s)


def without_samples(totals: Totals) -> Totals:
    return replace(totals, ttft_s=floats(), itl_s=floats())
