"""One writer at a time for a model's files: an advisory lock on a directory, which needs no file of its own.

The kernel gives a lock back when its holder ends, however that happens, so that none is ever stale. Some file systems
(NFS, object stores) know no such locks: there several writers are kept apart by their temporary names only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

POLL_S = 0.2
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS, errno.EBADF, errno.EACCES})


@contextlib.contextmanager
def lock_directory(directory: Path, say_waiting: Callable[[], None]) -> Iterator[bool]:
    """Hold the lock of an existing directory.

    Args:
        say_waiting: called once if another process holds it; the wait has no end but that process's.

    Yields:
        Whether other writers are kept out; ``False`` where the file system knows no locks.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield _lock(descriptor, say_waiting)
    finally:
        os.close(descriptor)  # which gives the lock back


def _lock(descriptor: int, say_waiting: Callable[[], None]) -> bool:
    is_told = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not is_told:
                is_told = True
                say_waiting()
            time.sleep(POLL_S)  # not a blocking call: Ctrl-C must end the wait at once, also in a thread
        except OSError as error:
            if error.errno in NO_LOCKS:
                return False
            raise
        else:
            return True
