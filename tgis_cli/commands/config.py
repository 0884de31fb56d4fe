"""``tgis config show``: every option, its value, where the value comes from, and what is inferred from the machine."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tgis_cli.decide.legacy_settings import warn_of_settings
from tgis_cli.decide.resolve import resolve
from tgis_cli.decide.tables import describe_options
from tgis_cli.machine import probe_machine
from tgis_cli.model_files.completion import complete_model
from tgis_cli.terminal.capabilities import has_color
from tgis_cli.terminal.exits import as_told
from tgis_cli.terminal.options import with_serve_options
from tgis_cli.terminal.tables import find_width
from tgis_server.errors import TgisError
from tgis_server.options import load_config
from tgis_server.words.layout import wrap

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode="rich")


@app.callback()
def config() -> None:
    """Show the options of `tgis launch`."""


def show(
    flags: Mapping[str, Any],
    config_file: Path | None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what `tgis launch` would do with these options: each value, its origin, and what is inferred."""
    environ = dict(os.environ)
    loaded = load_config(flags, environ, config_file)
    resolved, problem = None, None
    try:
        resolved = resolve(loaded, environ, probe_machine(environ))
    except TgisError as error:
        problem = error  # shown last: the values may explain it
    warnings = resolved.warnings if resolved else tuple(warn_of_settings(loaded, environ))
    if json_:
        inferred = resolved.inferred() if resolved else {}  # nothing if the model or the devices are missing
        error = str(problem) if problem else None
        report = {"options": loaded.as_dict(), "inferred": inferred, "warnings": warnings, "error": error}
        print(json.dumps(report, indent=1, default=str))
    else:
        width = find_width()
        lines = describe_options(loaded, resolved, width, is_colored=has_color(sys.stdout, environ))
        print("\n".join(lines).rstrip())
        for warning in warnings:
            print("\n".join(wrap(f"warning: {warning}", width, rest="    ")))
    if problem:
        raise as_told(problem)


app.command()(with_serve_options(show, complete_model=complete_model))
