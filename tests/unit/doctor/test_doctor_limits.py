"""The doctor's checks of memory, limits, the kernel and the clock."""

from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path

import pytest

from doctor_subject import GIB, GPUS, complaints, judge, make_subject, with_disk, with_files, with_limits
from tgis_cli.doctor.limits import (
    check_clock,
    check_kernel,
    check_limits,
    check_memory,
    check_shared_memory,
)
from tgis_cli.doctor.verdict import Host

MIB = 1 << 20
PLENTY = {"NOFILE": 4096, "NPROC": 4096, "STACK": 8 * MIB, "CORE": 0}


def test_free_memory_and_the_limit_are_reported(tmp_path: Path):
    subject = make_subject(free_bytes=3 * GIB, limit_bytes=4 * GIB, host=with_files(tmp_path, {}))

    assert judge(check_memory, subject) == [
        ("ok", "3.0 GiB of memory is free; the container's limit is 4.0 GiB."),
    ]


def test_little_memory_is_a_warning(tmp_path: Path):
    assert judge(check_memory, make_subject(free_bytes=GIB // 2, host=with_files(tmp_path, {}))) == [
        (
            "warn",
            "512 MiB of memory is free; there is no limit. Free memory, or raise the limit: even a small model needs "
            "about 1 GiB.",
        )
    ]


def test_memory_throttling_below_the_limit_is_a_warning(tmp_path: Path):
    files = {"proc/self/cgroup": "0::/pod", "sys/fs/cgroup/pod/memory.high": 2 * GIB}

    (warning,) = complaints(check_memory, make_subject(limit_bytes=4 * GIB, host=with_files(tmp_path, files)))

    assert warning.startswith("The control group throttles processes above 2.0 GiB (memory.high).")


# -- shared memory


def test_dockers_default_shared_memory_is_too_small_for_several_shards_on_gpus():
    host = with_disk(64 * MIB)

    assert judge(check_shared_memory, make_subject(gpus=GPUS, num_shard="2", host=host)) == [
        (
            "warn",
            "/dev/shm has 64 MiB, 64 MiB free, but several shards on GPUs need at least 1 GiB. Mount an "
            "emptyDir with medium: Memory there (Kubernetes), or use --shm-size 1g (Docker).",
        )
    ]


@pytest.mark.parametrize("options", [{"gpus": GPUS}, {"num_shard": "2"}])
def test_dockers_default_is_enough_for_one_shard_and_for_cpus(options: dict[str, object]):
    ((level, sentence),) = judge(check_shared_memory, make_subject(host=with_disk(64 * MIB), **options))

    assert level == "ok"
    assert sentence.endswith("free: enough for anything but several shards on GPUs.")


def test_missing_shared_memory_is_reported_as_empty():
    def fail(path: Path) -> None:
        raise FileNotFoundError

    subject = make_subject(gpus=GPUS, num_shard="2", host=Host(statvfs=fail))  # type: ignore[arg-type]

    assert complaints(check_shared_memory, subject)[0].startswith("/dev/shm has 0 B, 0 B free, but several")


# -- limits


def test_usual_limits_are_reported_in_one_line(tmp_path: Path):
    host = with_files(tmp_path, {}, with_limits(**PLENTY))

    assert judge(check_limits, make_subject(host=host)) == [("ok", "4,096 open files, 4,096 processes, no core dumps.")]


@pytest.mark.parametrize(
    ("limits", "options", "warning"),
    [
        (
            {"NOFILE": 700},
            {},
            "A process may open 700 files, but 512 calls from as many clients need about 768. Raise the limit "
            "(`ulimit -Hn`, LimitNOFILE in systemd), or lower --max-concurrent-requests.",
        ),
        ({"STACK": 64 << 10}, {}, "A thread gets a stack of 64 KiB. Raise `ulimit -s` to its usual 8192 KiB."),
    ],
)
def test_a_tight_limit_is_a_warning(tmp_path: Path, limits: dict[str, int], options: dict[str, str], warning: str):
    host = with_files(tmp_path, {}, with_limits(**PLENTY | limits))

    assert complaints(check_limits, make_subject(host=host, **options)) == [warning]


def test_fewer_calls_need_fewer_files(tmp_path: Path):
    host = with_files(tmp_path, {}, with_limits(NOFILE=700))

    assert complaints(check_limits, make_subject(host=host, max_concurrent_requests="100")) == []


def test_a_low_process_limit_of_the_control_group_is_a_failure(tmp_path: Path):
    files = {"proc/self/cgroup": "0::/pod", "sys/fs/cgroup/pod/pids.max": 20, "sys/fs/cgroup/pids.max": "max"}

    (failure,) = complaints(check_limits, make_subject(host=with_files(tmp_path, files, with_limits(**PLENTY))))

    assert failure.startswith(
        "The control group allows 20 processes and threads, of which other programs use 0, but 1 shard"
    )


def test_a_low_process_limit_of_the_user_is_a_failure(tmp_path: Path):
    host = with_files(tmp_path, {}, with_limits(**PLENTY | {"NPROC": 20}))

    (failure,) = complaints(check_limits, make_subject(host=host, num_shard="2"))

    assert failure.startswith(
        "`ulimit -u` allows 20 processes and threads, of which other programs use 0, but 2 shard(s)"
    )


def test_a_low_address_space_limit_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (200 * MIB, 200 * MIB))
    host = with_files(tmp_path, {}, with_limits())

    (failure,) = complaints(check_limits, make_subject(host=host))

    assert failure.startswith("A process may use only 200 MiB of address space")


# -- clock and kernel


def test_a_clock_before_the_installation_is_a_warning():
    (warning,) = complaints(check_clock, make_subject(host=Host(now=lambda: 1e9)))

    assert warning.startswith("The clock says 2001-09-09 01:46 UTC, but TGIS was installed on ")
    assert warning.endswith("Set it (`timedatectl`): TLS and logs depend on it.")


def test_a_later_clock_is_fine():
    assert judge(check_clock, make_subject(host=Host(now=lambda: 4e9))) == [
        ("ok", "The clock says 2096-10-02 07:06 UTC.")
    ]


def test_the_kernel_is_named(tmp_path: Path):
    host = with_files(tmp_path, {"proc/self/stat": "1", "proc/sys/kernel/osrelease": "6.1.0\n"})

    assert judge(check_kernel, make_subject(host=host)) == [("ok", "Linux 6.1.0.")]


def test_a_missing_proc_is_a_warning(tmp_path: Path):
    host = replace(Host(), root=tmp_path)

    assert complaints(check_kernel, make_subject(host=host)) == [
        "/proc is not mounted: limits and the causes of failures cannot be read. Mount it."
    ]
