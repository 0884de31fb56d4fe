"""Limits on processes and threads (`ulimit -u` per user, `pids.max` per control group), and how many are running."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tgis_server.host import cgroup

CAPABILITIES = (21, 24)  # SYS_ADMIN and SYS_RESOURCE: either one lifts `ulimit -u`
IDENTITY = ["0", "0", str(2**32 - 1)]  # the content of /proc/self/uid_map outside of user namespaces
UNLIKELY = 100_000  # a limit this high will not be reached, so counting would only waste time

GetLimit = Callable[[int], tuple[int, int]]


@dataclass(frozen=True, slots=True)
class ProcessLimit:
    """A limit on this process and its children."""

    limit: int
    used: int  # by other programs
    is_of_group: bool

    @property
    def where(self) -> str:
        return "the control group" if self.is_of_group else "`ulimit -u`"

    @property
    def free(self) -> int:
        return self.limit - self.used


def read_process_limits(
    root: Path = Path("/"), get_limit: GetLimit = resource.getrlimit, uid: int | None = None
) -> list[ProcessLimit]:
    """The limits that are set, tightest first.

    Args:
        root: the directory that holds proc and sys.
    """
    proc = root / "proc"
    limits = [*read_user_limit(proc, get_limit(resource.RLIMIT_NPROC)[0], os.getuid() if uid is None else uid)]
    for group in cgroup.group_dirs("pids", root / "sys/fs/cgroup", proc / "self/cgroup"):
        limit, used = cgroup.read_int(group / "pids.max"), cgroup.read_int(group / "pids.current")
        if limit is not None and limit < UNLIKELY:
            limits.append(ProcessLimit(limit, max(0, (used or 0) - count_own(proc)), is_of_group=True))
    return sorted(limits, key=lambda limit: limit.free)


def read_user_limit(proc: Path, limit: int, uid: int) -> Iterator[ProcessLimit]:
    if 0 <= limit < UNLIKELY and not is_exempt(proc, uid):
        used = sum(count_threads(path) for path in proc.glob("[0-9]*") if get_real_uid(path) == uid)
        yield ProcessLimit(limit, max(0, used - count_own(proc)), is_of_group=False)


def describe_process_limits() -> str:
    """The limits, as the second half of a sentence about one that was reached."""
    limits = [f"{limit.where} allows {limit.limit}" for limit in read_process_limits()]
    return " and ".join(limits) or "no limit is set here, so perhaps the machine's (kernel.threads-max) was reached"


def is_exempt(proc: Path, uid: int) -> bool:
    """Whether `ulimit -u` does not apply to this process."""
    uid_map = cgroup.read_text(proc / "self/uid_map").split()
    if uid_map and uid_map != IDENTITY:
        return False  # in a user namespace: only capabilities outside of it would count
    capabilities = int(read_status(proc / "self").get("CapEff", "0"), 16)
    return (uid == 0 and uid_map == IDENTITY) or any(capabilities >> bit & 1 for bit in CAPABILITIES)


def count_own(proc: Path) -> int:
    """The threads of this process, and of the launcher if it was forked from one."""
    parent = proc / str(os.getppid())
    is_forked = cgroup.read_text(parent / "cmdline") == cgroup.read_text(proc / "self/cmdline")
    return count_threads(proc / "self") + (count_threads(parent) if is_forked else 0)


def count_threads(process: Path) -> int:
    return int(read_status(process).get("Threads", "0"))


def get_real_uid(process: Path) -> int | None:
    uids = read_status(process).get("Uid", "").split()
    return int(uids[0]) if uids else None


def read_status(process: Path) -> dict[str, str]:
    lines = (line.partition(":") for line in cgroup.read_text(process / "status").splitlines())
    return {name: value.strip() for name, _, value in lines}
