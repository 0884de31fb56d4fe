"""Maps the last words of a failed process to a row of the failure catalogue.

Recognises the error texts of Python, torch, CUDA, NCCL and gloo.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tgis_cli.machine.process_limits import describe_process_limits
from tgis_server import failures
from tgis_server.failures import Failure
from tgis_server.host.allocation import ALLOCATION_FAILED
from tgis_server.words.sizes import GIB, format_bytes

# A line of faulthandler has no comma after the number. The path is shortened to start at our package.
OWN_FRAME = re.compile(
    r'File "(?:[^"]*/)?((?:tgis_server|tgis_cli)/(?![^"]*site-packages)[^"]*)", line (\d+),? in (\S+)'
)
ANY_FRAME = re.compile(r'File "([^"]+)", line (\d+),? in (\S+)')

TRACEBACK = "Traceback (most recent call last):"
CRASH = "(most recent call first):"
CRASHED_THREAD = "Current thread "

UNKNOWN_SIZE = "more than was left"
MAX_ERROR_CHARS = 300

# How libraries report that the process at the other end has ended, or does not respond.
PEER_LOST = re.compile(
    r"connection closed by peer|connection reset by peer|connection refused|broken pipe|socket closed"
    r"|remote process exited|eoferror|watchdog caught collective operation timeout|timed out waiting",
    re.IGNORECASE,
)

# How Python, OpenMP, gRPC and C++ report that they cannot start a thread. Afterwards, the last two crash or hang.
NO_THREAD = (
    r"can't start new thread|Thread creation failed|pthread_create failed"
    r"|system_error.*Resource temporarily unavailable"
)


@dataclass(frozen=True, slots=True)
class SharedMemory:
    """The size of /dev/shm; zeros if there is none."""

    total_bytes: int
    free_bytes: int

    @classmethod
    def measure(cls, statvfs: Callable[[Path], os.statvfs_result] | None = None) -> SharedMemory:
        try:
            status = (statvfs or os.statvfs)(Path("/dev/shm"))  # noqa: S108  not a temporary file
        except OSError:  # a container may have none
            return cls(0, 0)
        return cls(status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize)

    @property
    def is_short(self) -> bool:
        return self.total_bytes < GIB or self.free_bytes < self.total_bytes // 20


@dataclass(frozen=True, slots=True)
class FailureSite:
    """Where a process failed: values that any sentence may contain."""

    process: str
    place: str  # from find_place
    log: str  # the file with its traceback or last lines
    shared_memory: SharedMemory


def find_place(text: str) -> str:
    """``FILE:LINE in FUNCTION``: the innermost frame of our code in a traceback or in the stacks of a crash."""
    is_crash = CRASH in text
    if is_crash:
        stack = text.rpartition(CRASHED_THREAD)[2].partition(CRASH)[2].partition("\n\n")[0]
    else:
        stack = text.rpartition(TRACEBACK)[2]
    frames = OWN_FRAME.findall(stack) or ANY_FRAME.findall(stack)
    if not frames:
        return "an unknown place"
    file, line, function = frames[0 if is_crash else -1]
    return f"{file}:{line} in {function}"


def find_error(tail: Sequence[str]) -> str:
    """``TYPE: TEXT`` at the end of the last traceback; empty if there is none."""
    lines = "\n".join(tail).rpartition(TRACEBACK)
    if not lines[1]:
        return ""
    after = lines[2].splitlines()[1:]
    start = next((i for i, line in enumerate(after) if line and not line.startswith(" ")), len(after))
    return "\n".join(after[start:])


def lacks_threads(text: str) -> bool:
    """Whether the text reports that a thread could not be started."""
    return re.search(NO_THREAD, text, re.DOTALL) is not None


def is_lost_peer(error: str) -> bool:
    """Whether an error only reports that another process is gone."""
    return PEER_LOST.search(error) is not None


def explain_error(error: str, site: FailureSite) -> tuple[Failure, str]:
    """The row for an unexpected error, and its sentence.

    Args:
        error: ``TYPE: TEXT``, possibly of several lines.
    """
    for pattern, failure in RULES:
        if match := re.search(pattern, error):
            reason = next(filter(None, match.groups()), match[0]).rstrip(".")
            return phrase(failure, site, reason=reason, asked=find_asked_size(error))
    if match := OS_ERROR.search(error):
        number, path = int(match["errno"] or match["rust"]), match["path"]
        known = OS_FAILURES.get(number)
        if known and (path or known not in NEEDS_PATH):
            return phrase(known, site, path=path or "a file", reason=os.strerror(number), asked=UNKNOWN_SIZE)
    first_line = error.partition("\n")[0][:MAX_ERROR_CHARS].rstrip(".")
    return phrase(failures.UNEXPECTED_ERROR, site, error=first_line)


def phrase(failure: Failure, site: FailureSite, **values: object) -> tuple[Failure, str]:
    """The row, and its sentence with all values filled in."""
    machine: dict[str, object] = {"python": sys.executable, "uid": os.getuid()}
    if failure is failures.TOO_MANY_PROCESSES:
        machine["limits"] = describe_process_limits()
    return failure, failure.format(**asdict(site), **asdict(site.shared_memory), **machine, **values)


def find_asked_size(error: str) -> str:
    """The size of a failed allocation, as far as torch reports it."""
    size = r"([\d.]+ \w+)"
    if sizes := re.search(rf"allocate {size}.*total capacity of {size} of which {size} is free", error, re.DOTALL):
        return f"{sizes[1]} while {sizes[3]} of {sizes[2]} was free"
    num_bytes = re.search(r"tried to allocate (\d+) bytes", error)
    return format_bytes(int(num_bytes[1])) if num_bytes else UNKNOWN_SIZE


# The first match counts: specific rules come before general ones. A group, if any, is the reason in the sentence.
RULES: tuple[tuple[str, Failure], ...] = (
    (r"creating shared memory segment|No space left.*/dev/shm|/dev/shm.*No space left", failures.SHARED_MEMORY_FULL),
    (
        r"(?:CUDA|HIP|GPU) out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED",
        failures.GPU_OUT_OF_MEMORY,
    ),
    (rf"^MemoryError|failed to map segment|{ALLOCATION_FAILED}", failures.HOST_OUT_OF_MEMORY),
    (NO_THREAD, failures.TOO_MANY_PROCESSES),
    (r"driver on your system is too old(?: \((.+?)\))?|driver version is insufficient", failures.DRIVER_TOO_OLD),
    (r"no kernel image is available", failures.GPU_NOT_SUPPORTED),
    (r"No CUDA GPUs are available|no CUDA-capable device is detected|CUDA unknown error", failures.GPU_UNUSABLE),
    (r"system not yet initialized|CUDA driver initialization failed|Found no NVIDIA driver", failures.GPU_UNUSABLE),
    (r"CUDA error: (.+)", failures.GPU_ERROR),
    (r"No module named '([^']+)'", failures.MISSING_PACKAGE),
    (r"ImportError: (.+)|(\S+: cannot open shared object file.*)|(\S+: undefined symbol.*)", failures.BROKEN_LIBRARY),
)
OS_ERROR = re.compile(r"\[Errno (?P<errno>\d+)\] [^:\n]+(?:: '(?P<path>[^'\n]+)')?|\(os error (?P<rust>\d+)\)")
OS_FAILURES = {
    errno.ENOENT: failures.MISSING_FILE,
    errno.EACCES: failures.FILE_FORBIDDEN,
    errno.EPERM: failures.FILE_FORBIDDEN,
    errno.EROFS: failures.FILE_FORBIDDEN,
    errno.ENOSPC: failures.DISK_FULL,
    errno.EDQUOT: failures.DISK_FULL,
    errno.EMFILE: failures.TOO_MANY_FILES,
    errno.ENFILE: failures.TOO_MANY_FILES,
    errno.EAGAIN: failures.TOO_MANY_PROCESSES,
    errno.ENOMEM: failures.HOST_OUT_OF_MEMORY,
}
NEEDS_PATH = (failures.MISSING_FILE, failures.FILE_FORBIDDEN)
