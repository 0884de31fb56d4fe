"""Checks of the versions of Python and of the packages that TGIS needs, from metadata: nothing is imported."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import TYPE_CHECKING

from tgis_cli.doctor.verdict import Subject, Verdict, fail, ok
from tgis_cli.machine.versions import PACKAGES
from tgis_server import __version__

if TYPE_CHECKING:
    from packaging.requirements import Requirement

MIN_PYTHON = (3, 11)


def check_libraries(subject: Subject) -> Iterator[Verdict]:
    """Compare each package with TGIS's requirements."""
    if sys.version_info < MIN_PYTHON:
        yield fail(f"This is Python {platform.python_version()}, but 3.11 or newer is needed.", "Install a newer one.")
    for requirement in read_requirements():
        fix = f"pip install '{requirement.name}{requirement.specifier}'."
        try:
            version = subject.host.get_version(requirement.name)
        except metadata.PackageNotFoundError:
            yield fail(f"The package {requirement.name} is not installed.", fix)
            continue
        if not is_met(requirement, version):
            yield fail(
                f"{requirement.name} {version} is installed, but TGIS needs {requirement.specifier}.",
                fix,
                package=requirement.name,
                version=version,
            )
    versions = {name: version for name in PACKAGES if (version := find_version(subject, name))}
    shown = ", ".join(f"{name} {version}" for name, version in versions.items())
    yield ok(f"TGIS {__version__}, Python {platform.python_version()}, {shown}.", versions=versions)


def is_met(requirement: Requirement, version: str) -> bool:
    """Compare the release alone: vendors' builds have versions such as 2.11.0a0+x."""
    from packaging.version import InvalidVersion, Version

    try:
        return requirement.specifier.contains(Version(version).base_version)
    except InvalidVersion:  # cannot be compared
        return True


def find_version(subject: Subject, name: str) -> str:
    try:
        return subject.host.get_version(name)
    except metadata.PackageNotFoundError:
        return ""


def read_requirements() -> list[Requirement]:
    """TGIS's own requirements, without those of extras; empty if TGIS is not installed."""
    from packaging.requirements import Requirement

    try:
        found = map(Requirement, metadata.requires("tgis") or [])
    except metadata.PackageNotFoundError:
        return []
    return [
        requirement for requirement in found if not requirement.marker or requirement.marker.evaluate({"extra": ""})
    ]
