"""One writer at a time for a model's files: an advisory lock on a directory or file, which needs no file of its own.

The kernel gives a lock back when its holder ends, however that happens, so that none is ever stale. Some file systems
(NFS, object stores) know no such locks: there writers have to keep apart by names of their own.
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
MAX_RACES = 100  # for what is removed between being made and opened
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS, errno.EBADF, errno.EACCES})


@contextlib.contextmanager
def lock(path: Path, tell_waiting: Callable[[], None], make: Callable[[], object] = lambda: None) -> Iterator[bool]:
    """Hold the lock of what has this name.

    Args:
        tell_waiting: called once if another process holds it; the wait has no end but that process's.
        make: makes it if it is not there; called again if it was removed or renamed before the lock was had.

    Yields:
        Whether other writers are kept out; ``False`` where the file system knows no locks.

    Raises:
        FileNotFoundError: it is not there.
    """
    for attempt in itertools.count(1):
        try:
            make()
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # the last holder has just removed it
            if attempt == MAX_RACES:
                raise
            continue
        try:
            is_exclusive = take(descriptor, tell_waiting)
            if has_name(descriptor, path):
                yield is_exclusive
                return
        finally:
            os.close(descriptor)  # which gives the lock back


def has_name(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def take(descriptor: int, tell_waiting: Callable[[], None]) -> bool:
    is_told = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not is_told:
                is_told = True
                tell_waiting()
            time.sleep(POLL_S)  # not a blocking call: Ctrl-C must end the wait at once, also in a thread
        except OSError as error:
            if error.errno in NO_LOCKS:
                return False
            raise
        else:
            return True
