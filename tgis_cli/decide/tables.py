"""Options and what is inferred from them, as the tables of ``tgis config show``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tgis_cli.decide.resolve import Resolved, format_value
from tgis_cli.terminal.tables import make_table
from tgis_server.options import GROUPS, LoadedConfig, options

if TYPE_CHECKING:
    from rich.table import Table


def make_tables(loaded: LoadedConfig, resolved: Resolved | None) -> Iterator[Table]:
    """A table per group of options, and one of inferred values if there are any."""
    from rich.text import Text

    described = loaded.as_dict()
    for group in GROUPS:
        table = make_table(group)
        for column in ("option", "value", "origin"):
            table.add_column(column, header_style="dim", no_wrap=column == "option")
        for option in options():
            if option.opt.group == group:
                value, origin = described[option.name]["value"], described[option.name]["origin"]
                style = "dim" if origin == "default" else ""
                if value is None and option.opt.unset:
                    origin = f"default: {option.opt.unset}"
                table.add_row(Text(option.flag, style), Text(format_option(value), style), Text(origin, style))
        yield table
    if resolved is not None:
        table = make_table("Inferred")
        for column in ("what", "value", "why"):
            table.add_column(column, header_style="dim", overflow="fold")
        for name, entry in resolved.inferred().items():
            table.add_row(name, Text(format_value(entry["value"])), Text(entry["reason"]))
        yield table


def format_option(value: Any) -> str:
    if value is None:
        return "-"
    return str(value).lower() if isinstance(value, bool) else str(value)
