"""Work that storage or a driver may block forever, run in a forked process that is watched and can be abandoned.

A thread would not do: stuck in an uninterruptible system call, it would keep the whole process from exiting. A fork
takes a millisecond. The process prints nothing; it logs and answers through a pipe::

    forked process                                       this process
    main thread: the work  ── log records, result ──►    Forked: logs them, returns the result or raises the error
    watch thread           ── Place, if it moved  ──►    Forked.place, Forked.moved_at

If the process dies without an answer, a group failure says how it ended.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Generic, NoReturn, Self, TypeVar

from tgis_cli.supervisor.signals import signals_held
from tgis_cli.terminal.stop_signals import STOP_SIGNALS
from tgis_server import failures
from tgis_server.child import kill_with_parent
from tgis_server.words.signals import signal_name

T = TypeVar("T")

LOOK_S = 0.25  # between checks of where the work is
READ_BYTES = 1 << 16
END_PAUSES_S = (0.001, 0.01, 0.1, 0.2)  # for a killed process to end: at once, or only when storage answers

ADVICE_KILLED = (
    "if this was not done by hand, the kernel's out-of-memory killer is the usual cause: see `dmesg` and the memory "
    "limits"
)
ADVICE = "start again and, if it happens again, report it with the output of `tgis version`"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the work is. Two equal places in a row mean that it has not moved."""

    path: str  # that the work opens, reads or looks for; empty if unknown
    doing: str  # what the work says it is doing, as in "it is DOING"
    code: str  # FILE:LINE in FUNCTION
    num_read: int  # bytes read so far, from all files

    @classmethod
    def of(cls, frame: FrameType, work: Callable[..., Any], doing: str) -> Place:
        """The place of a thread: its innermost frame, and the path in the innermost local variable that holds one.

        Args:
            work: this function's own locals are ignored, as they hold paths that are not being accessed.
        """
        code = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} in {frame.f_code.co_name}"
        path = ""
        for inner in frames_within(frame, work):
            if path := find_path(inner):
                break
        return cls(path, doing, code, count_read_bytes())

    def __str__(self) -> str:
        return self.path or self.doing or self.code


@dataclass(slots=True)
class Activity:
    """What the work says it is doing; written by the work, read by the watch thread."""

    what: str = ""


def frames_within(frame: FrameType, work: Callable[..., Any]) -> Iterator[FrameType]:
    """Frames from the innermost outwards, up to the function that the work called."""
    code = getattr(work.func if isinstance(work, partial) else work, "__code__", None)
    outer: FrameType | None = frame
    while outer is not None and outer.f_code is not code:
        yield outer
        outer = outer.f_back


def find_path(frame: FrameType) -> str:
    for value in frame.f_locals.values():
        if isinstance(value, Path) or (isinstance(value, str) and value.startswith("/") and "\n" not in value):
            return str(value)
    return ""


def count_read_bytes() -> int:
    with suppress(OSError, ValueError):
        # rchar of the main thread, whose id is the process's; a sandbox may hide it.
        return int(Path(f"/proc/self/task/{os.getpid()}/io").read_text().split()[1])
    return 0


class Forked(Generic[T]):
    """Work in one forked process. For use inside a running event loop, in the main thread."""

    def __init__(self, pid: int, pipe: int) -> None:
        self.place: Place | None = None
        self.moved_at = time.monotonic()
        self._pid = pid
        self._pipe = pipe
        self._received = bytearray()
        self._answer: tuple[bool, Any, str] | None = None  # whether it succeeded, its result or error, the traceback
        self._ended = asyncio.Event()

    @classmethod
    def start(
        cls, work: Callable[[], T], activity: Activity | None = None, *, release: Callable[[], None] = lambda: None
    ) -> Self:
        """Fork, and start the work.

        Args:
            work: returns something that can be pickled.
            activity: where the work says what it is doing.
            release: closes, first of all, this process's copies of what the forked process must not hold.
        """
        pipe, only_writer = os.pipe()
        parent = os.getpid()
        with signals_held():
            if (pid := os.fork()) == 0:
                _be_child(work, activity or Activity(), release, only_writer, parent)
        os.close(only_writer)
        os.set_blocking(pipe, False)
        return cls(pid, pipe)

    async def __aenter__(self) -> Self:
        asyncio.get_running_loop().add_reader(self._pipe, self._receive)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        """Kill the process if it is still running, without waiting long if it cannot end."""
        asyncio.get_running_loop().remove_reader(self._pipe)
        os.close(self._pipe)
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(self._pid, signal.SIGKILL)
            for pause_s in END_PAUSES_S:
                if os.waitpid(self._pid, os.WNOHANG)[0]:  # noqa: ASYNC222  does not block
                    break
                await asyncio.sleep(pause_s)

    async def wait(self, timeout_s: float) -> bool:
        """Wait up to ``timeout_s`` for the work to end; returns whether it has."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), timeout_s)
        return self._ended.is_set()

    def result(self) -> T:
        """The result of work that has ended.

        Raises:
            Exception: what the work raised.
            GroupFailed: the process ended without an answer.
        """
        if self._answer is None:
            _, status = os.waitpid(self._pid, 0)
            code = os.waitstatus_to_exitcode(status)
            how = f"was ended by {signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
            where = f" (at {self.place})" if self.place else ""
            advice = ADVICE_KILLED if code == -signal.SIGKILL else ADVICE
            raise failures.LOOK_ENDED.error(how=how, where=where, advice=advice)
        is_result, value, stack = self._answer
        if not is_result:
            value.add_note(stack)  # where it was raised, which the traceback from here does not show
            raise value
        result: T = value
        return result

    def _receive(self) -> None:
        data = os.read(self._pipe, READ_BYTES)
        self._received += data
        while len(self._received) >= 8 and len(self._received) >= (
            end := 8 + int.from_bytes(self._received[:8], "little")
        ):
            message = pickle.loads(self._received[8:end])  # noqa: S301  from our own process
            del self._received[:end]
            self._take(message)
        if not data:
            asyncio.get_running_loop().remove_reader(self._pipe)
            self._ended.set()

    def _take(self, message: Any) -> None:
        match message:
            case Place():
                self.place, self.moved_at = message, time.monotonic()
            case logging.LogRecord():
                logging.getLogger(message.name).handle(message)
            case _:
                self._answer = message
                self._ended.set()


class _Sender(logging.Handler):
    """The forked process's end of the pipe; any thread may send."""

    def __init__(self, pipe: int) -> None:
        super().__init__()
        self._pipe = pipe
        self._sending = threading.Lock()  # a message may take several writes

    def send(self, message: Any) -> None:
        data = pickle.dumps(message)
        data = len(data).to_bytes(8, "little") + data
        with self._sending:
            while data:
                data = data[os.write(self._pipe, data) :]

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args, record.exc_info = record.getMessage(), None, None
        self.send(record)


def _be_child(
    work: Callable[[], Any], activity: Activity, release: Callable[[], None], pipe: int, parent: int
) -> NoReturn:
    """Do the work in the forked process and exit, without running any of the parent's clean-up."""
    sender, code = _Sender(pipe), 1
    try:
        release()
        signal.set_wakeup_fd(-1)  # the inherited one wakes the parent's loop
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # the parent handles them, and kills this process
        kill_with_parent(parent)
        for stream in range(3):  # an abandoned process must not hold the outputs open
            os.dup2(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), stream)
        logging.root.handlers = [sender]
        _watch(sender, work, activity)
        sender.send((True, work(), ""))
        code = 0
    except BaseException as error:  # noqa: BLE001  the parent raises it
        sender.send((False, _make_portable(error), traceback.format_exc()))
    finally:
        os._exit(code)


def _make_portable(error: BaseException) -> Exception:
    """The error itself if it can be pickled, else a ``RuntimeError`` with its text; never a ``SystemExit``."""
    if isinstance(error, Exception):
        with suppress(Exception):  # a library's own class may not be picklable
            pickle.loads(pickle.dumps(error))  # noqa: S301  pickled on this line
            return error
    return RuntimeError(f"{type(error).__name__}: {error}")


def _watch(sender: _Sender, work: Callable[[], Any], activity: Activity) -> None:
    """Send the place of the main thread whenever it has moved."""
    main = threading.get_ident()

    def look() -> None:
        last = None
        while True:
            time.sleep(LOOK_S)
            frame = sys._current_frames().get(main)
            if frame is not None and (place := Place.of(frame, work, activity.what)) != last:
                last = place
                sender.send(place)

    with suppress(RuntimeError):  # no thread can be started: the place stays unknown
        threading.Thread(target=look, daemon=True).start()
