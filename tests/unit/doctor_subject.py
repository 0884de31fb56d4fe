"""Subjects for the checks of ``tgis doctor``: a machine, an environment and an operating system as data."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from test_preflight import machine as make_machine
from tgis_cli.doctor.verdict import Host, Subject, Verdict
from tgis_cli.machine import Gpu
from tgis_server.options import load_config

GIB = 1 << 30
GPUS = (Gpu("GPU-aa11", "NVIDIA H100", 80 * GIB, 79 * GIB), Gpu("GPU-ab22", "NVIDIA H100", 80 * GIB, 79 * GIB))


def make_subject(
    environ: Mapping[str, str] | None = None, *, host: Host | None = None, gpus: tuple[Gpu, ...] = (), **values: Any
) -> Subject:
    """A healthy machine with two CPUs, apart from the given options and facts of ``Machine``."""
    facts = {name: values.pop(name) for name in list(values) if name in FACTS}
    machine = make_machine(**{"free_bytes": 8 * GIB, "torch_has_cuda": bool(gpus), "gpus": gpus} | facts)
    environ = environ or {}
    return Subject(environ, load_config(values, environ), machine, host or Host())


FACTS = ("has_bf16", "free_bytes", "limit_bytes", "cpu_quota", "torch_has_cuda", "driver", "gpu_problem", "cpus")


def with_files(root: Path, files: Mapping[str, object], host: Host | None = None) -> Host:
    """A host with these files in its /proc, /sys and /dev."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(str(text))
    return replace(host or Host(), root=root)


def with_disk(free_bytes: int, *, total_bytes: int = 0, free_inodes: int = 1000, flag: int = 0) -> Host:
    """A host whose file systems all have this much space."""
    status = SimpleNamespace(
        f_frsize=1,
        f_blocks=total_bytes or free_bytes,
        f_bavail=free_bytes,
        f_files=1000,
        f_favail=free_inodes,
        f_flag=flag,
    )
    return Host(statvfs=lambda path: status)  # type: ignore[arg-type, return-value]


def with_limits(**limits: int) -> Host:
    """A host with these limits by name, such as ``NOFILE``; all others are unlimited."""
    by_kind = {getattr(resource, f"RLIMIT_{name}"): limit for name, limit in limits.items()}
    return Host(get_limit=lambda kind: (by_kind.get(kind, resource.RLIM_INFINITY),) * 2)


def with_versions(**versions: str) -> Host:
    """A host with these installed packages; in their names, ``_`` stands for ``-``."""

    def get_version(name: str) -> str:
        try:
            return versions[name.replace("-", "_")]
        except KeyError:
            raise PackageNotFoundError(name) from None

    return Host(get_version=get_version)


def judge(check: Callable[[Subject], Iterable[Verdict]], subject: Subject) -> list[tuple[str, str]]:
    """The level and text of each verdict."""
    return [(str(verdict.level), str(verdict)) for verdict in check(subject)]


def complaints(check: Callable[[Subject], Iterable[Verdict]], subject: Subject) -> list[str]:
    """The texts of all verdicts that are not ok."""
    return [str(verdict) for verdict in check(subject) if verdict.level != "ok"]
