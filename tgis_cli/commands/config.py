"""``tgis config``: show every option with its origin and what is inferred, or write a commented file of them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tgis_cli.decide.config_file import make_config_text, write_config_file
from tgis_cli.decide.legacy_settings import warn_of_settings
from tgis_cli.decide.resolve import resolve
from tgis_cli.decide.tables import make_tables
from tgis_cli.machine import probe_machine
from tgis_cli.terminal.option_help import GroupedHelpCommand
from tgis_cli.terminal.options import with_serve_options
from tgis_cli.terminal.tables import print_tables
from tgis_server.errors import TgisError
from tgis_server.options import load_config

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode="rich")


@app.callback()
def config() -> None:
    """Show the options of `tgis launch`, or write a file of them."""


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
        report = {"options": loaded.as_dict(), "inferred": inferred, "warnings": warnings}
        print(json.dumps(report, indent=1, default=str))
    else:
        print_tables(make_tables(loaded, resolved))
        for warning in warnings:
            print(f"warning: {warning}")
    if problem:
        raise problem


app.command(cls=GroupedHelpCommand)(with_serve_options(show))


def init(
    flags: Mapping[str, Any],
    config_file: Path | None,
    file: Annotated[str, typer.Argument(metavar="[FILE]", help="Where to write; - is stdout.")] = "tgis.toml",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write a commented config file with every option of `tgis launch`.

    Options that are given here are set in it, all others are commented out.
    """
    loaded = load_config(flags, {}, config_file)
    write_config_file(file, make_config_text(loaded, "tgis.toml" if file == "-" else file), replace=force)


app.command()(with_serve_options(init, positional_model=None))
