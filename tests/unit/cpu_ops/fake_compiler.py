"""A compiler that takes no time: a shell script that writes a line into what it should make."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

AVX512_FLAGS = "fma avx2 avx512f avx512bw avx512vl avx512dq"

SCRIPT = """#!/bin/sh
echo "$*" >> "{log}"
[ "$1" = --version ] && echo "fake 1.0" && exit 0
{then}
while [ "$1" != -o ]; do shift; done
echo made > "$2"
"""


def write_compiler(folder: Path, then: str = "") -> dict[str, str]:
    """
    Args:
        then: shell commands that run before it makes anything, with the compiler's arguments in ``$*``.

    Returns:
        The environment that names it.
    """
    folder.mkdir(exist_ok=True)
    file = folder / "fake-c++"
    file.write_text(SCRIPT.format(log=folder / "log", then=then))
    file.chmod(0o755)
    return {"CXX": str(file), "PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(folder / "cache")}


def read_calls(folder: Path) -> list[list[str]]:
    """The arguments of each call that makes something."""
    lines = (folder / "log").read_text().splitlines()
    return [line.split() for line in lines if line != "--version"]


def write_cpuinfo(folder: Path, flags: str = AVX512_FLAGS) -> Path:
    file = folder / "cpuinfo"
    file.write_text(f"model name : Fake CPU\nflags : {flags}\n")
    return file


def note(said: list[str]) -> object:
    """A callback for progress."""
    return lambda phase, done, total: said.append(phase) if phase not in said else None


def list_names(folder: Path) -> Sequence[str]:
    return sorted(path.name for path in folder.iterdir())
