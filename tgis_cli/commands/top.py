"""``tgis top``: watch a running server."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from tgis_cli.clients.address import HTTP
from tgis_cli.clients.connection import Connection
from tgis_cli.clients.connection_options import with_connection_options

app = typer.Typer(add_completion=False)

Interval = Annotated[float, typer.Option(min=0.2, max=3600, metavar="SECONDS", help="Time between two updates.")]
Once = Annotated[bool, typer.Option("--once", help="Print one page after one interval, which the rates need, and end.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON object per update, or a single one with --once.")]


@app.command()
@partial(with_connection_options, protocol=HTTP)
def top(connection: Connection, interval: Interval = 1.0, once: Once = False, json_: AsJson = False) -> None:
    """Watch a running server: requests, tokens, latencies, KV blocks, processes.

    q or Ctrl-C ends it. Where no page can be drawn, such as in a pipe, it prints a line per update.
    """
    from tgis_cli.top.show import show
    from tgis_cli.top.watcher import Watcher

    show(Watcher.connect(connection), interval, is_once=once, as_json=json_)
