"""Checks of memory, process limits, the kernel, and the clock."""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Iterator
from pathlib import Path

import tgis_server
from tgis_cli.causes.last_words import SharedMemory
from tgis_cli.decide.preflight import check_address_space, check_processes, describe_limit
from tgis_cli.doctor.verdict import Subject, Verdict, failed, ok, warn
from tgis_cli.machine.process_limits import read_process_limits
from tgis_server.errors import TgisError
from tgis_server.host import cgroup
from tgis_server.threads import Threads
from tgis_server.words.clock import format_time
from tgis_server.words.sizes import GIB, format_bytes

PLACE = "/dev/shm"  # noqa: S108  not a temporary file
MIN_FREE_BYTES = GIB  # torch, the processes' own memory, and a small model
OWN_FILES = 256  # of a process, in addition to a connection per call
MIN_STACK_BYTES = 1 << 20
PR_GET_PDEATHSIG = 2
BUILD_SLACK_S = 86_400.0  # tolerated lag behind the clock of the machine that built the package


def check_memory(subject: Subject) -> Iterator[Verdict]:
    """Free memory, the limit, and throttling below the limit."""
    machine = subject.machine
    facts = {"free_bytes": machine.free_bytes, "limit_bytes": machine.limit_bytes}
    sentence = f"{format_bytes(machine.free_bytes)} of memory is free; {describe_limit(machine)}."
    if machine.free_bytes < MIN_FREE_BYTES:
        yield warn(sentence, "Free memory, or raise the limit: even a small model needs about 1 GiB.", **facts)
    else:
        yield ok(sentence[0].upper() + sentence[1:], **facts)
    highs = [high for group in subject.host.group_dirs("memory") if (high := cgroup.read_int(group / "memory.high"))]
    if highs and (machine.limit_bytes is None or min(highs) < machine.limit_bytes):
        yield warn(
            f"The control group throttles processes above {format_bytes(min(highs))} (memory.high).",
            "Remove that limit, and limit this service with memory.max only.",
            high_bytes=min(highs),
        )


def check_shared_memory(subject: Subject) -> Iterator[Verdict]:
    """NCCL's transport between the GPUs of a machine."""
    shared = SharedMemory.measure(subject.host.statvfs)
    facts = {"total_bytes": shared.total_bytes, "free_bytes": shared.free_bytes}
    has = f"{PLACE} has {format_bytes(shared.total_bytes)}, {format_bytes(shared.free_bytes)} free"
    if shared.is_short and subject.uses_gpus and subject.num_shard > 1:
        yield warn(
            f"{has}, but several shards on GPUs need at least 1 GiB.",
            "Mount an emptyDir with medium: Memory there (Kubernetes), or use --shm-size 1g (Docker).",
            **facts,
        )
    else:
        few = ": enough for anything but several shards on GPUs" if shared.is_short else ""
        yield ok(f"{has}{few}.", **facts)


def check_limits(subject: Subject) -> Iterator[Verdict]:
    """Limits set by `ulimit` and by the control group's pids controller."""
    try:
        check_address_space()
    except TgisError as error:
        yield failed(error)
    files = subject.host.get_limit(resource.RLIMIT_NOFILE)[1]  # the launcher raises it to the hard limit
    processes, stack = (subject.host.get_limit(kind)[0] for kind in (resource.RLIMIT_NPROC, resource.RLIMIT_STACK))
    need_files = OWN_FILES + subject.config.max_concurrent_requests
    if is_below(files, need_files):
        yield warn(
            f"A process may open {files} files, but {subject.config.max_concurrent_requests} calls from as many "
            f"clients need about {need_files}.",
            "Raise the limit (`ulimit -Hn`, LimitNOFILE in systemd), or lower --max-concurrent-requests.",
            limit=files,
        )
    limits = read_process_limits(subject.host.root, subject.host.get_limit, subject.host.uid())
    try:
        check_processes(limits, threads_of(subject))
    except TgisError as error:
        yield failed(error)
    if is_below(stack, MIN_STACK_BYTES):
        yield warn(
            f"A thread gets a stack of {format_bytes(stack)}.", "Raise `ulimit -s` to its usual 8192 KiB.", limit=stack
        )
    core = subject.host.get_limit(resource.RLIMIT_CORE)[0]
    yield ok(
        f"{describe_number(files)} open files, {describe_number(processes)} processes, "
        f"{'no core dumps' if core == 0 else 'core dumps'}.",
        files=files,
        processes=processes,
        pids_max=min((limit.limit for limit in limits if limit.is_of_group), default=None),
        stack=stack,
        core=core,
        locked_memory=subject.host.get_limit(resource.RLIMIT_MEMLOCK)[0],
    )


def threads_of(subject: Subject) -> Threads:
    """The threads of a run; an estimate if no model is given."""
    if subject.resolved is not None:
        return Threads.of(subject.resolved.run)
    num_threads = None if subject.config.rehearse else max(1, subject.machine.num_cpus // subject.num_shard)
    return Threads(subject.num_shard, num_threads)


def is_below(limit: int, needed: int) -> bool:
    return limit != resource.RLIM_INFINITY and limit < needed


def describe_number(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else f"{limit:,}"


def check_clock(subject: Subject) -> Iterator[Verdict]:
    """A clock that is slow makes certificates look invalid and puts log lines in the wrong order."""
    now, installed = subject.host.now(), Path(tgis_server.__file__).stat().st_mtime
    if now + BUILD_SLACK_S < installed:
        yield warn(
            f"The clock says {format_time(now)}, but TGIS was installed on {format_time(installed)}.",
            "Set it (`timedatectl`): TLS and logs depend on it.",
            now=now,
        )
    else:
        yield ok(f"The clock says {format_time(now)}.", now=now)


def check_kernel(subject: Subject) -> Iterator[Verdict]:
    """Kernel features that supervision relies on."""
    if not subject.host.read("proc/self/stat"):
        yield warn("/proc is not mounted: limits and the causes of failures cannot be read.", "Mount it.")
    if ctypes.CDLL(None).prctl(PR_GET_PDEATHSIG, ctypes.byref(ctypes.c_int()), 0, 0, 0) != 0:
        yield warn(
            "This kernel does not kill a process when its parent dies: children of a killed launcher end later.",
            "No action is needed: they also watch a pipe.",
        )
    yield ok(f"Linux {subject.host.read('proc/sys/kernel/osrelease').strip() or 'of an unknown version'}.")
