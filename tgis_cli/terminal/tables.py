"""Tables on stdout: as wide as the terminal; in a pipe, lines stay whole."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, TextIO

from tgis_cli.terminal.capabilities import get_width, is_terminal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PIPE_COLUMNS = 10_000


def find_width() -> int | None:
    """Columns of stdout; ``None`` in a pipe, where lines stay whole."""
    return get_width(sys.stdout) if is_terminal(sys.stdout) else None


def open_console(stream: TextIO | None = None) -> Console:
    """
    Args:
        stream: instead of stdout.
    """
    from rich.console import Console

    stream = stream or sys.stdout
    return Console(file=stream, highlight=False, width=get_width(stream) if is_terminal(stream) else PIPE_COLUMNS)


def make_table(title: str | None = None) -> Table:
    from rich.table import Table

    return Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)


def print_tables(tables: Iterable[Table], stream: TextIO | None = None) -> None:
    """One below the other, with a blank line between them and no spaces at the ends of lines."""
    console = open_console(stream)
    with console.capture() as capture:
        for table in tables:
            console.print(table, "")
    print("\n".join(line.rstrip() for line in capture.get().rstrip().splitlines()), file=stream)
