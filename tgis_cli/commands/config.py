"""``tgis config``: show every option with its origin, and what is inferred; or write a config file with comments."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tgis_cli.decide.config_file import write_config_file
from tgis_cli.decide.legacy_settings import warn_of_settings
from tgis_cli.decide.resolve import resolve
from tgis_cli.decide.tables import describe_options
from tgis_cli.machine import probe_machine
from tgis_cli.model_files.completion import complete_model
from tgis_cli.terminal.capabilities import find_width, has_color
from tgis_cli.terminal.exits import as_told
from tgis_cli.terminal.options import with_serve_options
from tgis_server.errors import TgisError
from tgis_server.options import load_config
from tgis_server.words.layout import wrap

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def config() -> None:
    """Show the options of `tgis launch`, or write a config file."""


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
        report: dict[str, Any] = {"options": loaded.as_dict(), "inferred": inferred, "warnings": warnings}
        report["error"] = str(problem) if problem else None
        print(json.dumps(report, indent=1, default=str))
    else:
        width = find_width(sys.stdout)
        lines = describe_options(loaded, resolved, width, is_colored=has_color(sys.stdout, environ))
        print("\n".join(lines).rstrip())
        for warning in warnings:
            print("\n".join(wrap(f"warning: {warning}", width, rest="    ")))
    if problem:
        raise as_told(problem)


MODEL = "Directory, or hub id in the local cache; without one, the demo model."

app.command()(with_serve_options(show, positional_model=MODEL, complete_model=complete_model))


def init(
    flags: Mapping[str, Any],
    config_file: Path | None,
    file: Annotated[str, typer.Argument(metavar="[FILE]", help="Where to write; - is stdout.")] = "tgis.toml",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write a config file with all options, explained and commented out, except for those that are given here."""
    write_config_file(file, load_config(flags, {}, config_file), replace=force)


app.command()(with_serve_options(init, positional_model=None))
