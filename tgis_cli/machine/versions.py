"""Versions of TGIS and of the packages that it runs on, from metadata: importing torch would take seconds."""

from __future__ import annotations

import platform
from importlib import metadata

from tgis_server import __version__

PACKAGES = ("torch", "grpcio", "tokenizers", "safetensors", "numpy")
MISSING = "not installed"


def read_versions() -> dict[str, str]:
    """By name, with ``tgis`` and ``python`` first."""
    return {"tgis": __version__, "python": platform.python_version()} | {name: read_version(name) for name in PACKAGES}


def read_version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return MISSING
