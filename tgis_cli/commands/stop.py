"""``tgis stop``: end running servers of this user."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated

import typer

from tgis_cli.terminal.exits import as_told
from tgis_cli.terminal.sentences import print_sentence
from tgis_server.errors import Unavailable
from tgis_server.words.control_characters import is_plain_line

app = typer.Typer(add_completion=False)


def complete_names(incomplete: str) -> list[str]:
    """Models and gRPC ports."""
    from tgis_cli.runs.servers import find_running

    names = {name for server in find_running() for name in (server.model, str(server.grpc_port or server.pid))}
    return sorted(name for name in names if name.startswith(incomplete) and is_plain_line(name))


@app.command()
def stop(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="Model, last part of its name, gRPC port, or pid; may be left out if only one server is running.",
            autocompletion=complete_names,
            show_default=False,
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Stop all running servers of this user.")] = False,
    now: Annotated[bool, typer.Option("--now", help="Do not wait for calls in flight.")] = False,
    timeout: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="How long to wait for each server; by default its --drain-timeout and a little more.",
        ),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Stop running servers: they finish their calls in flight, and refuse new ones.

    Exit code 0: all have ended; 1: one is still running, or none was running; 2: it is not clear which is meant.
    """
    from tgis_cli.clients.stopping import describe_survivors, pick_servers, stop_servers
    from tgis_cli.runs.servers import find_running
    from tgis_cli.terminal.status_line import StatusLine

    servers = pick_servers(names or [], find_running(), everything=everything)
    line = StatusLine(sys.stderr, os.environ)
    try:
        stopped = stop_servers(servers, timeout, lambda text: line.show(lambda: text), is_hurried=now)
    finally:
        line.clear()
    if json_:
        print(json.dumps({"servers": [each.as_dict() for each in stopped]}, indent=1))
    elif not servers:
        print("No server of this user is running.")
    else:
        for each in stopped:
            if each.seconds is not None:
                print_sentence(f"Stopped {each.name} after {each.seconds:.1f} s.", sys.stdout)
    if sentence := describe_survivors(stopped):
        sys.stdout.flush()
        raise as_told(Unavailable(sentence))
