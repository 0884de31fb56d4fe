"""Become the first process of a container as strict platforms start it: any user of group 0, a read-only root.

::

    unshare --mount --net --pid --ipc --uts --fork python confine.py --own-network ROOT UID COMMAND...

ROOT is an image's file system. Only /tmp, /dev/shm, /dev/termination-log (which needs a volume) and volumes are
writable. There is no network but the loopback interface, and there are no capabilities. Imports only the standard
library, and mounts only in the namespaces that `unshare` made.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

SIOCSIFFLAGS, IFF_UP_RUNNING = 0x8914, 0x41
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38
DEVICES = ("null", "zero", "full", "random", "urandom")
HOSTS = "127.0.0.1 localhost\n::1 localhost\n"  # as every container engine writes it


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("uid", type=int)
    parser.add_argument("--volume", action="append", default=[])
    parser.add_argument("--own-network", action="store_true", help="there is a network namespace to set up")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if options.own_network:
        start_loopback()
    libc = ctypes.CDLL(None, use_errno=True)  # before chroot: the image has it in another place
    mount_all(options.root, options.volume)
    os.chroot(options.root)
    os.chdir(os.environ.pop("WORKDIR", "/"))
    drop_rights(libc, options.uid)
    program = shutil.which(options.command[0])
    if program is None:
        sys.exit(f"The image has no {options.command[0]}.")
    os.execv(program, options.command)  # noqa: S606 - the command line says what to run


def start_loopback() -> None:
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP_RUNNING))


def mount_all(root: Path, volumes: list[str]) -> None:
    mount("--bind", root, root)
    mount("-t", "proc", "proc", root / "proc")
    mount("-t", "tmpfs", "-o", "mode=1777,nosuid,nodev,noexec", "tmpfs", root / "tmp")
    mount("-t", "tmpfs", "-o", "mode=755,nosuid", "tmpfs", root / "dev")
    for name in DEVICES:
        bind(Path("/dev", name), root / "dev" / name)
    (root / "dev/shm").mkdir()
    mount("-t", "tmpfs", "-o", "mode=1777,size=64m", "tmpfs", root / "dev/shm")
    (root / "etc/hosts").write_text(HOSTS)
    for volume in volumes:
        source, _, target = volume.partition(":")
        bind(Path(source), root / target.lstrip("/"))
    mount("-o", "remount,bind,ro", root)
    mount("-o", "remount,bind,ro", root / "dev")


def bind(source: Path, target: Path) -> None:
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.touch()
    mount("--bind", source, target)


def mount(*arguments: str | Path) -> None:
    subprocess.run(["/bin/mount", *map(str, arguments)], check=True)


def drop_rights(libc: ctypes.CDLL, uid: int) -> None:
    capability = 0
    while libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        capability += 1
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(uid, uid, uid)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


if __name__ == "__main__":
    main()
