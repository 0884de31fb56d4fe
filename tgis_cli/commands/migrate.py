"""``tgis migrate``: what the original server's settings in manifests and scripts mean here, and what should change."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from tgis_cli.migrate import examine_all, read_containers, read_settings_file
from tgis_cli.model_files import find_cache_dir, find_model_dir
from tgis_cli.terminal.tables import open_console
from tgis_server.errors import TgisError, UsageError

app = typer.Typer(add_completion=False)


@app.command()
def migrate(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Files that start the original server; - is stdin.")
    ],
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what settings of the original server mean here, and what should change.

    Files are Kubernetes manifests (kustomize patches, ConfigMaps and KServe runtimes too), compose files, env files,
    and scripts with docker run or text-generation-launcher. Nothing is written. The exit code is 1 if a server would
    not start, else 0. Pipe in the output of kustomize or helm: kubectl kustomize DIR | tgis migrate -
    """
    containers = read_containers([read_settings_file(file) for file in files])
    reports = list(examine_all(containers, find_local_model))
    if not reports:
        raise UsageError(f"Nothing in {', '.join(files)} is an executable, image or setting of TGIS.")
    if json_:
        print(json.dumps([report.as_dict() for report in reports], indent=1, ensure_ascii=False))
    else:
        from tgis_cli.migrate.text import print_reports

        print_reports(reports, open_console())
    raise SystemExit(int(any(report.will_fail for report in reports)))


def find_local_model(name: str) -> Path | None:
    """The directory of a model in the cache of this machine; a path in a container means nothing here."""
    if name.startswith(("/", ".", "~")):
        return None
    try:
        return find_model_dir(name, None, find_cache_dir(os.environ)[0])
    except TgisError:
        return None
