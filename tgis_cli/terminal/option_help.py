"""The ``--help`` of commands with many long options: a panel per group, and no truncated names.

Typer's own table has five columns for names and types, which truncates both at 80 columns.
"""

from __future__ import annotations

import textwrap
from typing import Any

from typer.core import TyperCommand


class GroupedHelpCommand(TyperCommand):
    """Shows options in panels of two columns: names, and what they do."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from rich.console import Console
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

        panels: dict[str, Table] = {}
        for param in self.get_params(ctx):
            if getattr(param, "hidden", False):
                continue
            title = getattr(param, "rich_help_panel", None) or ("Options" if param.opts[0][0] == "-" else "Arguments")
            if title not in panels:
                panels[title] = Table.grid(padding=(0, 2))
                panels[title].add_column(no_wrap=True)
                panels[title].add_column()
            panels[title].add_row(
                Text(describe_names(param), style="bold cyan"), Text.from_markup(getattr(param, "help", "") or "")
            )
        console = Console()
        console.print(Text(self.get_usage(ctx), style="bold"))
        for paragraph in (self.help or "").split("\n\n"):
            console.print("", textwrap.fill(paragraph, console.width), sep="\n", highlight=False, markup=False)
        console.print()
        for title, table in panels.items():
            console.print(Panel(table, title=title, title_align="left", border_style="dim"))


def describe_names(param: Any) -> str:
    """``-p, --port INT``, ``--[no-]rehearse`` or ``[MODEL]``."""
    if param.opts[0][0] != "-":
        return str(param.metavar or param.opts[0].upper())
    names = list(param.opts)
    if param.secondary_opts:
        names[-1] = "--[no-]" + names[-1].removeprefix("--")
    shown = ", ".join(sorted(names, key=len))
    return shown if param.is_flag or not param.metavar else f"{shown} {param.metavar}"
