"""``tgis config show``: every option, its value, where the value comes from, and what is inferred from the machine."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tgis_cli.decide.legacy_settings import warn_of_settings
from tgis_cli.decide.resolve import Resolved, describe_options, format_value, resolve
from tgis_cli.machine import probe_machine
from tgis_cli.terminal.option_help import GroupedHelpCommand
from tgis_cli.terminal.options import with_serve_options
from tgis_server.errors import TgisError
from tgis_server.options import GROUPS, LoadedConfig, load_config, options

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode="rich")


@app.callback()
def config() -> None:
    """Show options of `tgis launch`."""


def show(
    flags: Mapping[str, Any],
    config_file: Path | None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what `tgis launch` with these options would do: each value, its origin, and what is inferred."""
    environ = dict(os.environ)
    loaded = load_config(flags, environ, config_file)
    resolved, problem = None, None
    try:
        resolved = resolve(loaded, environ, probe_machine(environ))
    except TgisError as error:
        problem = error  # shown last: the values may be what explains it
    warnings = resolved.warnings if resolved else tuple(warn_of_settings(loaded, environ))
    if json_:
        inferred = resolved.inferred() if resolved else {}  # nothing where the model or the devices are missing
        report = {"options": describe_options(loaded), "inferred": inferred, "warnings": warnings}
        print(json.dumps(report, indent=1, default=str))
    else:
        print_tables(loaded, resolved)
        for warning in warnings:
            print(f"warning: {warning}")
    if problem:
        raise problem


app.command(cls=GroupedHelpCommand)(with_serve_options(show))


def print_tables(loaded: LoadedConfig, resolved: Resolved | None) -> None:
    from rich.console import Console

    width = None if sys.stdout.isatty() else 10_000  # whoever reads a pipe wants lines to stay whole
    console = Console(highlight=False, width=width)
    with console.capture() as capture:
        for table in make_tables(loaded, resolved):
            console.print(table, "")
    print("\n".join(line.rstrip() for line in capture.get().rstrip().splitlines()))


def make_tables(loaded: LoadedConfig, resolved: Resolved | None) -> Iterator[Table]:
    from rich.table import Table
    from rich.text import Text

    described = describe_options(loaded)
    for group in GROUPS:
        table = Table(title=group, title_justify="left", title_style="bold", box=None, pad_edge=False)
        for column in ("option", "value", "origin"):
            table.add_column(column, header_style="dim", no_wrap=column == "option")
        for option in options():
            if option.opt.group == group:
                value, origin = described[option.name]["value"], described[option.name]["origin"]
                shown = "-" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
                style = "dim" if origin == "default" else ""
                if value is None and option.opt.unset:
                    origin = f"default: {option.opt.unset}"
                table.add_row(Text(option.flag, style), Text(shown, style), Text(origin, style))
        yield table
    if resolved is not None:
        table = Table(title="Inferred", title_justify="left", title_style="bold", box=None, pad_edge=False)
        for column in ("what", "value", "why"):
            table.add_column(column, header_style="dim", overflow="fold")
        for name, entry in resolved.inferred().items():
            table.add_row(name, Text(format_value(entry["value"])), Text(entry["reason"]))
        yield table
