"""``tgis version``: versions of TGIS and the packages that it runs on, for bug reports."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from typing import Annotated

import typer

from tgis_server import __version__

app = typer.Typer(add_completion=False)

PACKAGES = ("torch", "grpcio", "tokenizers", "safetensors", "numpy")


@app.command()
def version(json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Print the versions of TGIS and of the packages that it runs on."""
    versions = {"tgis": __version__, "python": platform.python_version()}
    versions |= {package: installed_version(package) for package in PACKAGES}
    if json_:
        print(json.dumps(versions, indent=1))
    else:
        print("\n".join(f"{name:<12} {value}" for name, value in versions.items()))


def installed_version(package: str) -> str:
    """Read the version from the package's metadata: importing torch would take seconds."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
