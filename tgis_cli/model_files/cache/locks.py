"""One writer at a time for a model's files: an advisory lock on a directory or file, without a separate lock file.

The kernel releases a lock when its holder ends, however that happens, so locks are never stale. Some file systems
(NFS, object stores) have no such locks: there, writers must use unique names.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

POLL_S = 0.2
MAX_RACES = 100  # how often a path may be removed between being made and opened
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS, errno.EBADF, errno.EACCES})


@contextlib.contextmanager
def lock(path: Path, tell_waiting: Callable[[], None], make: Callable[[], object] = lambda: None) -> Iterator[bool]:
    """Hold the lock of a path.

    Args:
        tell_waiting: called once if another process holds the lock; the wait lasts until that process releases it.
        make: creates the path if it does not exist; called again if it was removed before the lock was acquired.

    Yields:
        Whether other writers are kept out; ``False`` if the file system has no locks.

    Raises:
        FileNotFoundError: the path does not exist.
    """
    for attempt in itertools.count(1):
        try:
            make()
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # just removed by the last holder
            if attempt == MAX_RACES:
                raise
            continue
        try:
            is_exclusive = acquire(descriptor, tell_waiting)
            if has_name(descriptor, path):
                yield is_exclusive
                return
        finally:
            os.close(descriptor)  # releases the lock


def has_name(descriptor: int, path: Path) -> bool:
    """Whether an open file still has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def acquire(descriptor: int, tell_waiting: Callable[[], None]) -> bool:
    is_told = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not is_told:
                is_told = True
                tell_waiting()
            time.sleep(POLL_S)  # not a blocking flock: Ctrl-C must end the wait at once, even in a thread
        except OSError as error:
            if error.errno in NO_LOCKS:
                return False
            raise
        else:
            return True
