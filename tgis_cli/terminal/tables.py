"""Sentences and tables on stdout: as wide as the terminal; in a pipe, lines stay whole.

Control characters in them, such as in a model's name, are made visible here, so that no caller can forget to. The
exception is text that is already styled (rich's ``Text``).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO

from tgis_cli.terminal.capabilities import find_width
from tgis_server.words.control_characters import escape_controls

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

PIPE_COLUMNS = 10_000


def open_console(stream: TextIO | None = None) -> Console:
    """
    Args:
        stream: instead of stdout.
    """
    from rich.console import Console

    class EscapingConsole(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(escape_controls(text), **options)

    stream = stream or sys.stdout
    width = find_width(stream) or PIPE_COLUMNS
    return EscapingConsole(file=stream, markup=False, emoji=False, highlight=False, width=width)


def make_table(title: str | None = None) -> Table:
    from rich.table import Table

    return Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)


def print_tables(tables: Iterable[Table], stream: TextIO | None = None) -> None:
    """Print tables one below the other, with a blank line between them and no spaces at the ends of lines."""
    console = open_console(stream)
    with console.capture() as capture:
        for table in tables:
            console.print(table, "")
    print("\n".join(line.rstrip() for line in capture.get().rstrip().splitlines()), file=stream)
