"""Fetching missing files with worker processes, each watched for stalls.

Decides which file is next, when an attempt counts as stuck, how long to wait before a retry, and when to give up.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import deque
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from tgis_cli.model_files.cache.folder import CacheFolder
from tgis_cli.model_files.cache.listing import RemoteFile
from tgis_cli.model_files.download.fetch_worker import Job
from tgis_cli.model_files.download.hub_token import HubToken, export_token
from tgis_cli.model_files.download.selection import Selection
from tgis_cli.terminal.progress import Progress, format_seconds
from tgis_cli.terminal.stop_signals import Stop
from tgis_server.errors import HubError, ModelError, NotEnoughDevices, UsageError
from tgis_server.host.interpreter import make_command, make_environment
from tgis_server.words.signals import signal_name
from tgis_server.words.sizes import format_bytes

NUM_PARALLEL = 8
STALL_S = 30.0
MAX_HTTP_BYTES = 50 * 10**9  # the hub does not serve larger files by plain HTTP
LARGE_BYTES = 16 << 20  # smaller files finish before another worker could start
MAX_FUTILE_ATTEMPTS = 6  # in a row for one file, without receiving a single byte
MAX_DELAY_S = 30.0
MAX_DAMAGED = 2  # a higher number is not a network accident


@dataclass(frozen=True, slots=True)
class Missing:
    """The files still to be fetched."""

    files: tuple[RemoteFile, ...]
    kept_bytes: int  # already present from attempts that ended early

    @property
    def num_bytes(self) -> int:
        return sum(file.size for file in self.files) - self.kept_bytes


def find_missing(folder: CacheFolder, selection: Selection) -> Missing:
    lacking = [file for file in selection.files if folder.find_content(file, selection.listing.commit) is None]
    files = list({file.digest: file for file in lacking}.values())  # several files may have the same content
    kept_bytes = 0
    for file in files:
        with suppress(OSError):
            kept_bytes += min(file.size, folder.incomplete(file).stat().st_size)
    return Missing(tuple(files), kept_bytes)


@dataclass(frozen=True, slots=True)
class TransferOptions:
    """Settings of the transfers."""

    token: HubToken = None
    num_parallel: int = NUM_PARALLEL
    stall_s: float = STALL_S

    def make_environment(self) -> dict[str, str]:
        """The workers' environment."""
        quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_SHARED_BLOBS": "1", "PYTHONUNBUFFERED": "1"}
        return make_environment(os.environ) | quiet | export_token(self.token)


def fetch_all(
    folder: CacheFolder, selection: Selection, missing: Missing, options: TransferOptions, progress: Progress
) -> None:
    """Fetch the missing blobs.

    Raises:
        ModelError: the hub refuses a file, or its content does not match the stated checksum.
        HubError: repeated attempts have failed.
        NotEnoughDevices: the disk was full.
        Interrupted: a stop signal arrived. Partial content is kept for the next call.
    """
    asyncio.run(Fetching(folder, selection, options, progress).run(missing.files))


class Fetching:
    """The transfers of one download."""

    def __init__(self, folder: CacheFolder, selection: Selection, options: TransferOptions, progress: Progress) -> None:
        self._folder = folder
        self._listing = selection.listing
        self._options = options
        self._progress = progress
        self._waiting: deque[RemoteFile] = deque()

    async def run(self, files: tuple[RemoteFile, ...]) -> None:
        """Fetch the files, largest first, until all are complete or one fails permanently."""
        self._waiting.extend(sorted(files, key=lambda file: -file.size))
        num_large = sum(file.size >= LARGE_BYTES for file in files)
        num_lanes = min(self._options.num_parallel, num_large + 1, len(files))
        death_fd, only_writer = os.pipe()  # closed by the kernel when this process ends
        work = asyncio.ensure_future(self._run_lanes(num_lanes, death_fd))
        stop, loop = Stop(), asyncio.get_running_loop()

        def cancel() -> None:
            loop.call_soon_threadsafe(work.cancel)

        try:
            with stop.calling(cancel):
                await work
        except asyncio.CancelledError:
            kept = format_bytes(self._progress.done_bytes)
            raise stop.as_error(f"{kept} is kept, and the same command resumes from there.") from None
        except BaseExceptionGroup as group:
            raise first_error(group) from group
        finally:
            os.close(death_fd)
            os.close(only_writer)

    async def _run_lanes(self, num_lanes: int, death_fd: int) -> None:
        async with asyncio.TaskGroup() as group:
            ticking = group.create_task(self._tick(), name="tick")
            lanes = [group.create_task(self._run_lane(death_fd), name=f"lane-{i}") for i in range(num_lanes)]
            for lane in lanes:
                await lane
            ticking.cancel()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            self._progress.tick()

    async def _run_lane(self, death_fd: int) -> None:
        """Fetch one file after another with one worker, restarted when necessary."""
        worker = Worker(self._options.make_environment(), death_fd)
        try:
            while self._waiting:
                await self._fetch(self._waiting.popleft(), worker)
        finally:
            await worker.kill()

    async def _fetch(self, file: RemoteFile, worker: Worker) -> None:
        """Retry until the file is complete; after an attempt without progress, switch between HTTP and Xet."""
        retries = RetryPolicy(file.name)
        by_xet = file.size > MAX_HTTP_BYTES
        while True:
            attempt = Attempt(self._progress)
            job = Job(
                model=self._listing.model,
                commit=self._listing.commit,
                name=file.name,
                size=file.size,
                digest=file.digest,
                blob=str(self._folder.blob(file)),
                incomplete=str(self._folder.incomplete(file)),
                timeout_s=self._options.stall_s,
                by_xet=by_xet,
            )
            problem = await self._attempt(job, worker, attempt)
            if problem is None:
                self._progress.tell(
                    f"{file.name}: {format_bytes(file.size)}", event="file", name=file.name, bytes=file.size
                )
                return
            attempt.reset_display()
            wait_s = retries.wait_after(problem, moved_bytes=attempt.moved_bytes)
            way = "from the beginning" if problem.is_damaged else "where it stopped"
            if attempt.transport == "xet":
                way = "over plain HTTP"
            by_xet = not by_xet and attempt.moved_bytes <= 0
            when = f" in {format_seconds(wait_s)}" if wait_s else ""
            self._progress.tell(
                f"{file.name}: {problem.text}; continuing{when} {way}", event="retry", name=file.name, why=problem.text
            )
            await asyncio.sleep(wait_s)

    async def _attempt(self, job: Job, worker: Worker, attempt: Attempt) -> Problem | None:
        """One attempt at one file; ``None`` on success."""
        await worker.start(job)
        while True:
            try:
                async with asyncio.timeout(self._options.stall_s):
                    event = await worker.read_event()
            except TimeoutError:
                await worker.kill()
                return Problem(f"no data for {format_seconds(self._options.stall_s)}")
            if event is None:
                return Problem(f"its worker ended ({await worker.describe_end()})")
            if event.get("done"):
                attempt.move_to(job.size)
                return None
            if "failed" in event:
                return Problem(event.pop("failed"), **event)
            attempt.update(event)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why an attempt failed."""

    text: str
    exit_code: int = 0  # with which the command ends; 0: another attempt may help
    is_damaged: bool = False
    wait_s: float = 0.0


class RetryPolicy:
    """How often one file is tried, and how long to wait in between."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._num_futile = 0
        self._num_damaged = 0

    def wait_after(self, problem: Problem, *, moved_bytes: int) -> float:
        """Seconds to wait before the next attempt.

        Raises:
            TgisError: another attempt would not help.
        """
        if problem.exit_code:
            kinds = {kind.exit_code: kind for kind in (UsageError, ModelError, NotEnoughDevices, HubError)}
            raise kinds.get(problem.exit_code, HubError)(problem.text)
        self._num_damaged += problem.is_damaged
        if self._num_damaged >= MAX_DAMAGED:
            raise ModelError(
                f"{self._name} arrived {self._num_damaged} times, never with the checksum that the hub states: a proxy "
                "or mirror changes it, or the hub's copy is damaged (check HTTPS_PROXY and HF_ENDPOINT)."
            )
        self._num_futile = 0 if moved_bytes > 0 and not problem.is_damaged else self._num_futile + 1
        if self._num_futile >= MAX_FUTILE_ATTEMPTS:
            raise HubError(
                f"{self._name} failed {self._num_futile} times without progress (last: {problem.text}): check the "
                "network, and run the command again to resume the download."
            )
        delay_s = 0.0 if self._num_futile == 0 else min(MAX_DELAY_S, 0.5 * 2.0**self._num_futile)
        return max(delay_s, problem.wait_s)


class Attempt:
    """The progress of one attempt, for the display and for retries."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._position = 0
        self.moved_bytes = 0
        self.transport = "http"

    def update(self, event: dict[str, Any]) -> None:
        if "kept" in event:
            self._progress.add_done(event["kept"] - self._position)
            self._position = event["kept"]
        elif "at" in event:
            self.move_to(event["at"])
        self.transport = event.get("by", self.transport)

    def move_to(self, position: int) -> None:
        self._progress.advance(position - self._position)
        self.moved_bytes += position - self._position
        self._position = position

    def reset_display(self) -> None:
        """Subtract this attempt from the display, as the next one counts the kept bytes again."""
        self._progress.add_done(-self._position)
        self._position = 0


class Worker:
    """A process that fetches files; started on demand, and again after it was killed."""

    def __init__(self, environ: dict[str, str], death_fd: int) -> None:
        self._environ = environ
        self._death_fd = death_fd
        self._process: asyncio.subprocess.Process | None = None
        self._last_words: deque[str] = deque(maxlen=3)

    async def start(self, job: Job) -> None:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                *make_command("-m", "tgis_cli.model_files.download.fetch_worker"),
                *("--death-fd", str(self._death_fd), "--parent", str(os.getpid())),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=(self._death_fd,),
                start_new_session=True,  # Ctrl-C is handled by this process
                env=self._environ,
            )
        assert self._process.stdin is not None, "requested above"
        with suppress(ConnectionError):  # the worker's end shows when events are read
            self._process.stdin.write(json.dumps(asdict(job)).encode() + b"\n")
            await self._process.stdin.drain()

    async def read_event(self) -> dict[str, Any] | None:
        """The next event; ``None`` when the process has ended. Any other output consists of libraries' warnings."""
        assert self._process is not None, "it has been started"
        assert self._process.stdout is not None, "requested at the start"
        while line := await self._process.stdout.readline():
            with suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict):
                    return event
            self._last_words.append(line.decode(errors="replace").strip())
        return None

    async def describe_end(self) -> str:
        assert self._process is not None, "it has been started"
        code = await self._process.wait()
        how = f"killed by {signal_name(-code)}" if code < 0 else f"exit code {code}"
        return f"{how}: {self._last_words[-1]}" if self._last_words else how

    async def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that came first and cancelled the other tasks."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
