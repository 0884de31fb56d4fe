"""The input and output of checks.

A check is a function of a :class:`Subject` that yields verdicts. It accesses the operating system only through
:class:`Host`, which tests replace.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Any

from tgis_cli.decide.resolve import Resolved
from tgis_cli.machine import Machine
from tgis_server.errors import TgisError
from tgis_server.host import cgroup
from tgis_server.options import LoadedConfig, ServeConfig


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"  # a server would start, but might run slowly or fail later
    FAIL = "fail"  # a server would not start, or could not serve


@dataclass(frozen=True, slots=True)
class Verdict:
    """One finding."""

    level: Level
    sentence: str  # the finding, with values
    fix: str = ""  # what to do, in one sentence; empty if there is nothing to do, or if ``sentence`` says it
    facts: Mapping[str, Any] = field(default_factory=dict)  # for programs
    error: TgisError | None = None  # what the launcher would raise
    check: str = ""  # name of the check, filled in by run_checks

    def __str__(self) -> str:
        return f"{self.sentence} {self.fix}".strip()

    def as_dict(self) -> dict[str, Any]:
        return {
            "check": self.check,
            "level": self.level,
            "sentence": self.sentence,
            "fix": self.fix,
            "facts": dict(self.facts),
        }


def ok(sentence: str, **facts: Any) -> Verdict:
    return Verdict(Level.OK, sentence, facts=facts)


def warn(sentence: str, fix: str = "", **facts: Any) -> Verdict:
    return Verdict(Level.WARN, sentence, fix, facts)


def fail(sentence: str, fix: str = "", **facts: Any) -> Verdict:
    return Verdict(Level.FAIL, sentence, fix, facts)


def failed(error: TgisError) -> Verdict:
    """A failure that would end startup; its sentence says what to do."""
    return Verdict(Level.FAIL, str(error), facts={"exit_code": error.exit_code}, error=error)


@dataclass(frozen=True, slots=True)
class Host:
    """The parts of the operating system that checks use."""

    root: Path = Path("/")  # of /proc, /sys and /dev
    now: Callable[[], float] = time.time
    uid: Callable[[], int] = os.getuid
    statvfs: Callable[[Path], os.statvfs_result] = os.statvfs
    get_limit: Callable[[int], tuple[int, int]] = resource.getrlimit
    get_version: Callable[[str], str] = metadata.version  # of an installed package
    nvml: Any = None  # the module pynvml, or a substitute

    def read(self, path: str) -> str:
        """A file below the root; empty if it cannot be read."""
        return cgroup.read_text(self.root / path)

    def group_dirs(self, controller: str) -> Iterator[Path]:
        """See :func:`cgroup.group_dirs`."""
        return cgroup.group_dirs(controller, self.root / "sys/fs/cgroup", self.root / "proc/self/cgroup")


@dataclass(frozen=True, slots=True)
class Subject:
    """What is checked: a machine, and the server that would start on it."""

    environ: Mapping[str, str]
    loaded: LoadedConfig
    machine: Machine
    host: Host = field(default_factory=Host)
    resolved: Resolved | None = None  # None: no model is given, or it cannot be served
    problem: Exception | None = None  # why it cannot be served
    refused: tuple[str, ...] = ()  # why the launcher would refuse options

    @property
    def config(self) -> ServeConfig:
        return self.loaded.config

    @property
    def num_shard(self) -> int:
        if self.resolved is not None:
            return self.resolved.run.num_shard
        return self.config.num_shard or self.config.num_gpus or 1

    @property
    def uses_gpus(self) -> bool:
        if self.resolved is not None:
            return self.resolved.run.device == "cuda"
        is_possible = bool(self.machine.gpus) and self.machine.torch_has_cuda is not False
        return is_possible and self.config.device != "cpu" and not self.config.rehearse
