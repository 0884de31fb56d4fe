"""Entry point of every child of a run: ``python -m tgis_server.child NAME --run FILE --death-fd N --parent PID``.

NAME is ``frontend`` or ``shard-R``. Before importing anything heavy, the child makes sure that it cannot outlive the
launcher: the kernel kills it when its parent dies, and a thread waits for the end of a pipe that only the launcher can
write to. An error that ends the child is written to the run directory for the launcher to report.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from tgis_server.run import Run

PR_SET_PDEATHSIG = 1
EXIT_ORPHANED = 70  # nobody reads it: the parent is gone


def die_with_parent(death_fd: int, parent_pid: int) -> None:
    """Tie this process's life to its parent's.

    Args:
        death_fd: read end of a pipe that only the parent could write to, although it never does.
        parent_pid: the launcher. If the current parent differs, the launcher died before the kernel began to watch it.
    """
    kill_with_parent(parent_pid)

    def wait_for_end() -> None:
        os.read(death_fd, 1)
        os._exit(EXIT_ORPHANED)

    threading.Thread(target=wait_for_end, name="parent-watch", daemon=True).start()


def kill_with_parent(parent_pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel signal this process when its parent, or the parent's thread that started it, dies."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(EXIT_ORPHANED)


def leave_hangups_to_parent() -> None:
    """Ignore SIGHUP, which may be sent to every process of a service: the parent alone handles it.

    The launcher starts its children with the signal blocked, so that SIGHUP cannot end them before this call.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # also discards a pending SIGHUP
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


def pin_to_cpus(cpus: tuple[int, ...]) -> None:
    """Run this thread, and all threads that it starts from now on, only on these CPUs."""
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:  # a sandbox forbids it, or the group's CPUs have changed: the process just runs slower
        import logging

        logging.getLogger(__name__).warning("not pinned to CPUs %s: %s", cpus, error.strerror)


def write_error(errors_dir: Path, name: str, error: BaseException) -> int:
    """Write ``NAME.json`` for the launcher and the traceback as ``NAME.log``. Returns the exit code."""
    import traceback

    from tgis_server.errors import GroupFailed, RequestError, TgisError

    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]  # the text of a task group only says how many errors there are
    kind: type[TgisError] = GroupFailed
    if is_expected := isinstance(error, TgisError) and not isinstance(error, RequestError):
        kind = type(error)
    record = {
        "process": name,
        "time": time.time(),
        "sentence": str(error) if is_expected else f"{type(error).__name__}: {error}".strip().rstrip(":"),
        "is_secondary": kind.is_secondary,
        "is_expected": is_expected,
        "exit_code": kind.exit_code,
    }
    log = errors_dir / f"{name}.log"
    log.write_text("".join(traceback.format_exception(error)), encoding="utf-8", errors="backslashreplace")
    temporary = errors_dir / f"{name}.json.tmp"
    temporary.write_text(json.dumps(record))
    temporary.rename(errors_dir / f"{name}.json")
    return kind.exit_code


def main(argv: list[str]) -> int:
    return live(argv[0], dict(zip(argv[1::2], argv[2::2], strict=True)), serve)


def live(name: str, options: Mapping[str, str], work: Callable[[Run, str], None]) -> int:
    """Run a child whose task is ``work``; returns its exit code.

    Args:
        options: ``--run``, ``--death-fd`` and ``--parent``, as in the module's docstring.
    """
    leave_hangups_to_parent()
    die_with_parent(int(options["--death-fd"]), int(options["--parent"]))

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until a handler is installed, SIGINT simply ends the process
    os.umask(0o077)  # a run's sockets and files are private to the user

    import faulthandler

    faulthandler.enable()  # SIGABRT prints every thread's stack, which shows where a child is hung

    from tgis_server.logs import setup_logging
    from tgis_server.run import Run
    from tgis_server.words.processes import rank_of

    run = Run.read(Path(options["--run"]), os.environ)
    setup_logging(name, level=run.config.log_level)
    try:
        if run.shard_cpus and (rank := rank_of(name)) is not None:
            pin_to_cpus(run.shard_cpus[rank])
        work(run, name)
    except Exception as error:  # noqa: BLE001  the parent reports whatever ends a child
        return write_error(run.errors_dir, name, error)
    return 0


def serve(run: Run, name: str) -> None:
    from tgis_server.words.processes import rank_of

    if (rank := rank_of(name)) is None:
        from tgis_server.frontend.entry import serve as serve_frontend

        serve_frontend(run)
    else:
        from tgis_server.shard.entry import serve_shard

        serve_shard(run, rank)


def leave(code: int) -> NoReturn:
    """End this process at once: no thread of grpc or torch can delay the exit."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
