"""``tgis version``: versions of TGIS and the packages that it runs on, for bug reports."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from tgis_cli.machine.versions import read_versions

app = typer.Typer(add_completion=False)


@app.command()
def version(json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Print the versions of TGIS and of the packages that it runs on."""
    versions = read_versions()
    if json_:
        print(json.dumps(versions, indent=1))
    else:
        print("\n".join(f"{name:<12} {value}" for name, value in versions.items()))
