"""Tables on stdout: as wide as the terminal; in a pipe, lines stay whole."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tgis_cli.terminal.capabilities import get_width, is_terminal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PIPE_COLUMNS = 10_000


def find_width() -> int | None:
    """Columns of stdout; ``None`` in a pipe, where lines stay whole."""
    return get_width(sys.stdout) if is_terminal(sys.stdout) else None


def open_console() -> Console:
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_COLUMNS)


def make_table(title: str | None = None) -> Table:
    from rich.table import Table

    return Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
