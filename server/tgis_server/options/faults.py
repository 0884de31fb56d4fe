"""Failures on demand: ``--fault PROCESS:KIND@MOMENT`` makes a process fail the way machines and libraries do.

Code calls ``reach`` at each moment, and the fault strikes at the one it names. For tests and rehearsals only: a
real engine also needs ``--allow-faults``.
"""

from __future__ import annotations

import errno
import os
import re
import signal
from dataclasses import dataclass

from tgis_server.errors import OutOfMemory, UsageError
from tgis_server.words.processes import FRONTEND, shard_name

EXIT_CODES = {"exit": 1, "end": 0}
SIGNALS = {
    "kill": signal.SIGKILL,
    "term": signal.SIGTERM,
    "stop": signal.SIGSTOP,
    "bus": signal.SIGBUS,
    "segv": signal.SIGSEGV,
    "ill": signal.SIGILL,
    "abort": signal.SIGABRT,
}
ERRNOS = {
    "missing-file": errno.ENOENT,
    "file-forbidden": errno.EACCES,
    "disk-full": errno.ENOSPC,
    "too-many-files": errno.EMFILE,
}
# Errors as Python, torch, CUDA and NCCL word them.
ERRORS: dict[str, tuple[type[Exception], str]] = {
    "error": (RuntimeError, "provoked by --fault"),
    "oom": (OutOfMemory, "GPU out of memory"),
    "host-oom": (MemoryError, ""),
    "gpu-oom": (
        RuntimeError,
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB of which 1.25 GiB is "
        "free.",
    ),
    "gpu-error": (RuntimeError, "CUDA error: uncorrectable ECC error encountered"),
    "gpu-unusable": (RuntimeError, "No CUDA GPUs are available"),
    "gpu-not-supported": (RuntimeError, "CUDA error: no kernel image is available for execution on the device"),
    "driver-too-old": (
        RuntimeError,
        "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver.",
    ),
    "shared-memory": (RuntimeError, "Error while creating shared memory segment /dev/shm/nccl-aB3 (size 9637888)"),
    "timeout": (RuntimeError, "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(OpType=ALLREDUCE)"),
    "too-many-processes": (RuntimeError, "can't start new thread"),
    "import-error": (ImportError, "libcudart.so.12: cannot open shared object file: No such file or directory"),
    "missing-package": (ModuleNotFoundError, "No module named 'no_such_package'"),
}
KINDS = ("hang", *EXIT_CODES, *SIGNALS, *ERRNOS, *ERRORS)


@dataclass(frozen=True, slots=True)
class Fault:
    """How one process fails, and when."""

    process: str
    kind: str
    moment: str  # shards: load, stage, stepN (0: warm-up), finishN; front-end: start, call (the first)

    @classmethod
    def parse(cls, text: str) -> Fault:
        """
        Raises:
            UsageError: the text is not ``PROCESS:KIND@MOMENT``.
        """
        match = re.fullmatch(
            r"(?:shard(\d+):([a-z-]+)@(load|stage|(?:step|finish)\d+)|frontend:([a-z-]+)@(start|call))", text
        )
        kind = match and (match[2] or match[4])
        if not match or kind not in KINDS:
            raise UsageError(
                f"--fault is {text!r}, but must be shardR:KIND@MOMENT, where MOMENT is load, stage, stepN or finishN, "
                f"or frontend:KIND@MOMENT, where MOMENT is start or call. KIND is one of {', '.join(KINDS)}."
            )
        process = shard_name(int(match[1])) if match[1] else FRONTEND
        return cls(process, str(kind), match[3] or match[5])

    @classmethod
    def of(cls, text: str | None, process: str) -> Fault | None:
        """The fault that the option names, if it is for this process."""
        fault = cls.parse(text) if text else None
        return fault if fault and fault.process == process else None

    def reach(self, moment: str) -> None:
        if moment == self.moment:
            self.strike()

    def strike(self) -> None:
        if self.kind in EXIT_CODES:
            os._exit(EXIT_CODES[self.kind])
        if self.kind in SIGNALS:
            os.kill(os.getpid(), SIGNALS[self.kind])
        if self.kind in ERRNOS:
            number = ERRNOS[self.kind]
            raise OSError(number, os.strerror(number), "/no/such/file")
        if self.kind in ERRORS:
            error, text = ERRORS[self.kind]
            raise error(text)
        while self.kind == "hang":
            signal.pause()
