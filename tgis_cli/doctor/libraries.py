"""Versions of Python and of the packages that TGIS needs, from their metadata: nothing is imported."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata

from tgis_cli.doctor.verdict import Context, Verdict, fail, ok
from tgis_server import __version__

REQUIREMENT = re.compile(r"([\w.-]+)(?:\[[^]]*\])?\s*\(?([^;)]*)\)?\s*(?:;\s*(.*))?")
SHOWN = ("torch", "grpcio", "tokenizers", "safetensors", "numpy")
MIN_PYTHON = (3, 11)


@dataclass(frozen=True, slots=True)
class Requirement:
    """A package and what its version must be: a subset of PEP 508, as our own metadata has it."""

    name: str
    bounds: tuple[tuple[str, tuple[int, ...]], ...]  # (">=", (1, 76))

    @classmethod
    def parse(cls, text: str) -> Requirement:
        match = REQUIREMENT.match(text)
        assert match is not None, f"metadata has {text!r}"
        bounds = re.findall(r"(>=|<=|==|!=|>|<)\s*([\d.]+)", match[2])
        return cls(match[1], tuple((operator, numbers(version)) for operator, version in bounds))

    def is_met_by(self, version: str) -> bool:
        found = numbers(version)
        return all(compare(operator, found, bound) for operator, bound in self.bounds)

    def __str__(self) -> str:
        return ",".join(f"{operator}{'.'.join(map(str, bound))}" for operator, bound in self.bounds)


def numbers(version: str) -> tuple[int, ...]:
    """``2.11.0+cpu`` is (2, 11): zeros at the end mean nothing."""
    match = re.match(r"\d+(\.\d+)*", version)
    found = [int(part) for part in match[0].split(".")] if match else []
    while found and found[-1] == 0:
        found.pop()
    return tuple(found)


def compare(operator: str, found: tuple[int, ...], bound: tuple[int, ...]) -> bool:
    return {
        ">=": found >= bound,
        "<=": found <= bound,
        ">": found > bound,
        "<": found < bound,
        "==": found == bound,
        "!=": found != bound,
    }[operator]


def check_libraries(context: Context) -> Iterator[Verdict]:
    """Each against what TGIS asks for."""
    if sys.version_info < MIN_PYTHON:
        yield fail(f"This is Python {platform.python_version()}, but 3.11 or newer is needed.", "Install a newer one.")
    for requirement in read_requirements():
        try:
            version = context.host.get_version(requirement.name)
        except metadata.PackageNotFoundError:
            yield fail(
                f"The package {requirement.name} is not installed.", f"pip install '{requirement.name}{requirement}'."
            )
            continue
        if not requirement.is_met_by(version):
            yield fail(
                f"{requirement.name} {version} is installed, but TGIS needs {requirement}.",
                f"pip install '{requirement.name}{requirement}'.",
                package=requirement.name,
                version=version,
            )
    versions = {name: version for name in SHOWN if (version := find_version(context, name))}
    shown = ", ".join(f"{name} {version}" for name, version in versions.items())
    yield ok(f"TGIS {__version__}, Python {platform.python_version()}, {shown}.", versions=versions)


def find_version(context: Context, name: str) -> str:
    try:
        return context.host.get_version(name)
    except metadata.PackageNotFoundError:
        return ""


def read_requirements() -> Sequence[Requirement]:
    """Of TGIS itself, without those of extras; none where it runs without having been installed."""
    try:
        texts = metadata.requires("tgis") or []
    except metadata.PackageNotFoundError:
        return []
    return [Requirement.parse(text) for text in texts if "extra ==" not in text]
