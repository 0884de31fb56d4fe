"""What the last words of a failed process mean: text in, a row of the catalogue out.

Knows the texts of Python, torch, CUDA, NCCL and gloo; knows nothing of processes. Called by ``cause.py``.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tgis_server import failures
from tgis_server.failures import Failure
from tgis_server.sizes import GIB, format_bytes

# What faulthandler prints has no comma after the number. The path is cut to what begins with our package.
OWN_FRAME = re.compile(
    r'File "(?:[^"]*/)?((?:tgis_server|tgis_cli)/(?![^"]*site-packages)[^"]*)", line (\d+),? in (\S+)'
)
ANY_FRAME = re.compile(r'File "([^"]+)", line (\d+),? in (\S+)')

TRACEBACK = "Traceback (most recent call last):"
CRASH = "(most recent call first):"
CRASHED_THREAD = "Current thread "

UNKNOWN_SIZE = "more than was left"
MAX_ERROR_CHARS = 300

# How libraries say that the process at the other end is gone, or does not come.
PEER_LOST = re.compile(
    r"connection closed by peer|connection reset by peer|connection refused|broken pipe|socket closed"
    r"|remote process exited|eoferror|watchdog caught collective operation timeout|timed out waiting",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class SharedMemory:
    """What /dev/shm has."""

    total_bytes: int
    free_bytes: int

    @classmethod
    def measure(cls, directory: str = "/dev/shm") -> SharedMemory:  # noqa: S108  not a temporary file
        try:
            status = os.statvfs(directory)
        except OSError:  # a container may have none
            return cls(0, 0)
        return cls(status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize)

    @property
    def is_short(self) -> bool:
        return self.total_bytes < GIB or self.free_bytes < self.total_bytes // 20


@dataclass(frozen=True, slots=True)
class Context:
    """What every sentence may need."""

    process: str
    place: str
    log: str
    shared_memory: SharedMemory


def find_place(text: str) -> str:
    """``FILE:LINE in FUNCTION``: the innermost frame of our own code in a traceback, or in the stacks of a crash."""
    if CRASH in text:
        stack = text.rpartition(CRASHED_THREAD)[2].partition(CRASH)[2].partition("\n\n")[0]
        frame = OWN_FRAME.search(stack) or ANY_FRAME.search(stack)
    else:
        stack = text.rpartition(TRACEBACK)[2]
        frame = next(iter([*OWN_FRAME.finditer(stack)][-1:] or [*ANY_FRAME.finditer(stack)][-1:]), None)
    return f"{frame[1]}:{frame[2]} in {frame[3]}" if frame else "an unknown place"


def find_error(tail: Sequence[str]) -> str:
    """``TYPE: TEXT`` at the end of the last traceback; empty without one."""
    lines = "\n".join(tail).rpartition(TRACEBACK)
    if not lines[1]:
        return ""
    after = lines[2].splitlines()[1:]
    start = next((i for i, line in enumerate(after) if line and not line.startswith(" ")), len(after))
    return "\n".join(after[start:])


def is_lost_peer(error: str) -> bool:
    """Whether an error only says that another process is gone."""
    return PEER_LOST.search(error) is not None


def explain_error(error: str, context: Context) -> tuple[Failure, str]:
    """The row for an error that nobody had expected, and its sentence.

    Args:
        error: ``TYPE: TEXT``, of any number of lines.
    """
    for pattern, rule in RULES:
        if (match := re.search(pattern, error)) and (found := rule(match, context)):
            return found
    first_line = error.partition("\n")[0][:MAX_ERROR_CHARS].rstrip(".")
    return tell(failures.UNEXPECTED_ERROR, context, error=first_line, place=context.place, log=context.log)


def tell(failure: Failure, context: Context, **values: object) -> tuple[Failure, str]:
    return failure, failure.format(process=context.process, **values)


def explain_lack_of_gpu_memory(match: re.Match[str], context: Context) -> tuple[Failure, str]:
    size = r"([\d.]+ \w+)"
    sizes = re.search(
        rf"Tried to allocate {size}.*total capacity of {size} of which {size} is free", match.string, re.DOTALL
    )
    asked = f"{sizes[1]} while {sizes[3]} of {sizes[2]} were free" if sizes else UNKNOWN_SIZE
    return tell(failures.GPU_OUT_OF_MEMORY, context, place=context.place, asked=asked)


def explain_lack_of_memory(match: re.Match[str], context: Context) -> tuple[Failure, str]:
    asked = re.search(r"tried to allocate (\d+) bytes", match.string)
    size = format_bytes(int(asked[1])) if asked else UNKNOWN_SIZE
    return tell(failures.HOST_OUT_OF_MEMORY, context, place=context.place, asked=size)


def explain_lack_of_shared_memory(match: re.Match[str], context: Context) -> tuple[Failure, str]:
    return tell_shared_memory("could not create a shared memory segment", context)


def tell_shared_memory(what: str, context: Context) -> tuple[Failure, str]:
    memory = context.shared_memory
    sizes = {"total_bytes": memory.total_bytes, "free_bytes": memory.free_bytes}
    return tell(failures.SHARED_MEMORY_FULL, context, what=what, **sizes)


def explain_os_error(match: re.Match[str], context: Context) -> tuple[Failure, str] | None:
    code, path, place = int(match["errno"] or match["rust"]), match["path"], context.place
    reason = os.strerror(code)
    match code:
        case errno.ENOENT if path:
            return tell(failures.MISSING_FILE, context, path=path, place=place)
        case errno.EACCES | errno.EPERM | errno.EROFS if path:
            return tell(failures.FILE_FORBIDDEN, context, path=path, place=place, uid=os.getuid(), reason=reason)
        case errno.ENOSPC | errno.EDQUOT:
            return tell(failures.DISK_FULL, context, path=path or "a file", place=place)
        case errno.EMFILE | errno.ENFILE:
            return tell(failures.TOO_MANY_FILES, context, place=place)
        case errno.EAGAIN:
            return tell(failures.TOO_MANY_PROCESSES, context)
        case errno.ENOMEM:
            return tell(failures.HOST_OUT_OF_MEMORY, context, place=place, asked=UNKNOWN_SIZE)
    return None


def explain_lack_of_threads(match: re.Match[str], context: Context) -> tuple[Failure, str]:
    return tell(failures.TOO_MANY_PROCESSES, context)


def explain_import(match: re.Match[str], context: Context) -> tuple[Failure, str]:
    return tell(failures.BROKEN_LIBRARY, context, reason=first_group(match))


def explain_missing_package(match: re.Match[str], context: Context) -> tuple[Failure, str]:
    return tell(failures.MISSING_PACKAGE, context, package=match[1], python=sys.executable)


def explain_old_driver(match: re.Match[str], context: Context) -> tuple[Failure, str]:
    version = re.search(r"found version (\d+)", match.string)
    found = f"for CUDA {int(version[1]) // 1000}.{int(version[1]) % 1000 // 10}" if version else "of this machine"
    return tell(failures.DRIVER_TOO_OLD, context, found=found)


def explain_unsupported_gpu(match: re.Match[str], context: Context) -> tuple[Failure, str]:
    return tell(failures.GPU_NOT_SUPPORTED, context)


def explain_unusable_gpu(match: re.Match[str], context: Context) -> tuple[Failure, str]:
    return tell(failures.GPU_UNUSABLE, context, reason=match[0])


def explain_gpu_error(match: re.Match[str], context: Context) -> tuple[Failure, str]:
    return tell(failures.GPU_ERROR, context, reason=match[1].rstrip("."), place=context.place, log=context.log)


def first_group(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group).rstrip(".")


Rule = Callable[[re.Match[str], Context], tuple[Failure, str] | None]
# The first that matches explains the error: special ones come before general ones.
RULES: tuple[tuple[str, Rule], ...] = (
    (r"creating shared memory segment|No space left.*/dev/shm|/dev/shm.*No space left", explain_lack_of_shared_memory),
    (
        r"(CUDA|HIP|GPU) out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED",
        explain_lack_of_gpu_memory,
    ),
    (
        r"^MemoryError|can't allocate memory|could not create a (primitive|memory)|std::bad_alloc"
        r"|failed to map segment",
        explain_lack_of_memory,
    ),
    (r"can't start new thread|Thread creation failed|pthread_create failed", explain_lack_of_threads),
    (r"driver on your system is too old|driver version is insufficient", explain_old_driver),
    (r"no kernel image is available", explain_unsupported_gpu),
    (
        r"No CUDA GPUs are available|no CUDA-capable device is detected|CUDA unknown error|system not yet initialized"
        r"|CUDA driver initialization failed|Found no NVIDIA driver",
        explain_unusable_gpu,
    ),
    (r"CUDA error: (.+)", explain_gpu_error),
    (r"No module named '([^']+)'", explain_missing_package),
    (r"ImportError: (.+)|(\S+: cannot open shared object file.*)|(\S+: undefined symbol.*)", explain_import),
    (r"\[Errno (?P<errno>\d+)\] [^:\n]+(?:: '(?P<path>[^'\n]+)')?|\(os error (?P<rust>\d+)\)", explain_os_error),
)
