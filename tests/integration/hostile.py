"""Runs a command as a strict container platform would: as any user, on a file system that is read-only except for /tmp.

::

    python hostile.py TMP UID COMMAND [ARGUMENT]...

TMP becomes the command's /tmp, which is mounted noexec. /dev/shm has 64 MiB. The user is in group 0, and has no entry
in any database and no capabilities. Needs permission to mount. Imports nothing from the repository.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

CLONE_NEWNS = 0x20000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000
RDONLY, NOEXEC = 1, 8  # attributes of a mount
PR_SET_NO_NEW_PRIVS = 38
TMP = Path("/tmp")

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def mount(source: str, target: Path, kind: str = "", flags: int = 0, data: str = "") -> None:
    check(libc.mount(source.encode(), os.fsencode(target), kind.encode(), flags, data.encode()))


def set_attributes(path: Path, add: int, remove: int = 0, *, recursive: bool = False) -> None:
    attributes = (ctypes.c_uint64 * 4)(add, remove, 0, 0)
    flags = AT_RECURSIVE * recursive
    check(libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, os.fsencode(path), flags, attributes, ctypes.sizeof(attributes)))


def confine(tmp: Path) -> None:
    """Give this process its own view of the file system, in which only ``tmp`` is writable, mounted at /tmp."""
    check(libc.unshare(CLONE_NEWNS))
    mount("", Path("/"), flags=MS_REC | MS_PRIVATE)
    imported = [Path(path).resolve() for path in (sys.base_prefix, Path(__file__).parents[2], *sys.path)]
    opened = {path: os.open(path, os.O_PATH) for path in dict.fromkeys(imported) if path.is_dir()}
    covered = {TMP} | {Path("/", *path.parts[1:2]) for path in opened if not all(map(is_open_to_all, path.parents))}
    for top in covered - {TMP}:
        mount("tmpfs", top, "tmpfs", data="mode=755")
    mount(str(tmp), TMP, flags=MS_BIND)
    for path, descriptor in opened.items():  # the directories that Python imports from stay in place
        if not covered.isdisjoint(path.parents):
            path.mkdir(parents=True, exist_ok=True)
            mount(f"/proc/self/fd/{descriptor}", path, flags=MS_BIND | MS_REC)
    set_attributes(Path("/"), add=RDONLY, recursive=True)
    set_attributes(TMP, add=NOEXEC, remove=RDONLY)
    mount("tmpfs", Path("/dev/shm"), "tmpfs", data="size=64m,mode=1777")


def is_open_to_all(directory: Path) -> bool:
    return bool(directory.stat().st_mode & 1)


def become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(uid, uid, uid)
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


if __name__ == "__main__":
    tmp, uid, command = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    tmp.chmod(0o1777)
    confine(tmp)
    become(uid)
    os.chdir("/")
    os.execvp(command[0], command)
