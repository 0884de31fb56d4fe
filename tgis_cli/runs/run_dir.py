"""The directory of one run: locked while its launcher lives, kept only if the run failed.

The kernel releases the lock when the launcher ends, whatever kills it. So the next launcher can tell the directory
of a killed launcher from one in use.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tgis_cli.runs.servers import PREFIX, RUN_FILE
from tgis_server import failures

MAX_FAILED_RUNS = 5  # of one model whose directories are kept, for their tracebacks
MAX_KEPT_RUNS = 30  # of all models; a directory takes about 100 KB
UNFINISHED_S = 3600.0  # a directory without serve.json may belong to a launcher that has not locked it yet


def make_run_dir(parent: Path | None) -> Path:
    """Make a new directory of mode 0700 for sockets and failure logs.

    Raises:
        UsageError: the parent is missing or not writable.
    """
    try:
        parent = parent or Path(tempfile.gettempdir())  # raises if no temporary directory is writable
        run_dir = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent)).resolve()
    except OSError as error:
        reason = error.strerror or str(error)
        raise failures.RUN_DIR_NOT_WRITABLE.error(parent=parent or "a temporary directory", reason=reason) from error
    (run_dir / "errors").mkdir()
    return run_dir


@dataclass(slots=True)
class RunDirLock:
    """A run directory, open and locked: no other launcher takes it for a leftover, and `tgis ps` finds its holder.

    A forked process gets a copy and has to release it, or it would count as a launcher too. The lock ends with the last
    copy.
    """

    run_dir: Path
    _directory: int  # file descriptor

    @classmethod
    def take(cls, run_dir: Path) -> Self:
        """
        Raises:
            OSError: the directory is missing, or its file system has no locks.
        """
        lock = cls(run_dir, os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY))
        try:
            fcntl.flock(lock._directory, fcntl.LOCK_EX)
        except OSError:
            lock.release()
            raise
        return lock

    def release(self) -> None:
        os.close(self._directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


def remove_leftovers(parent: Path) -> list[Path]:
    """Remove the directories of killed launchers, and of failed runs that need not be kept; returns those removed.

    Safe if another launcher does so at the same time.
    """
    found = find_leftovers(parent)
    kept = pick_kept(sort_failed(found))
    removed = [path for path in found if path not in kept]
    for path in removed:
        shutil.rmtree(path, ignore_errors=True)
    return removed


def pick_kept(failed: Iterable[Path]) -> list[Path]:
    """The latest failed runs of each model: one that fails again and again does not displace those of another.

    Args:
        failed: latest first.
    """
    kept: list[Path] = []
    num_kept = Counter[str]()
    for run_dir in failed:
        model = read_model(run_dir)
        if num_kept[model] < MAX_FAILED_RUNS and len(kept) < MAX_KEPT_RUNS:
            num_kept[model] += 1
            kept.append(run_dir)
    return kept


def read_model(run_dir: Path) -> str:
    """The directory of the model that a run served; empty if that is not known."""
    try:
        return str(json.loads((run_dir / RUN_FILE).read_text())["model_dir"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def find_leftovers(parent: Path) -> list[Path]:
    return [path for path in parent.glob(f"{PREFIX}*") if is_leftover(path)]


def sort_failed(run_dirs: Iterable[Path]) -> list[Path]:
    """The directories of failed runs, latest first."""
    failed_at = {path: when for path in run_dirs if (when := get_failure_time(path)) is not None}
    return sorted(failed_at, key=lambda path: failed_at[path], reverse=True)


def get_failure_time(run_dir: Path) -> float | None:
    """When the directory last changed; ``None`` if it holds no error of a process."""
    try:
        return run_dir.stat().st_mtime if any((run_dir / "errors").iterdir()) else None
    except OSError:
        return None


def is_leftover(path: Path) -> bool:
    """Whether the path is a run directory of this user whose launcher has ended."""
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        status = os.fstat(directory)
        is_complete = (path / RUN_FILE).exists() or time.time() - status.st_mtime > UNFINISHED_S
        if status.st_uid != os.getuid() or not (path / "errors").is_dir() or not is_complete:
            return False
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(directory)
