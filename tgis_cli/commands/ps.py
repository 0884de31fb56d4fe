"""``tgis ps``: list the running servers of this user."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from tgis_cli.terminal.capabilities import find_width

app = typer.Typer(add_completion=False)


@app.command()
def ps(json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the running servers of this user: model, ports, age, main memory of all processes, pid, and state.

    Servers of other users and in other containers stay hidden.
    """
    from tgis_cli.clients.server_table import describe_rows, survey_servers

    rows = survey_servers()
    if json_:
        print(json.dumps({"servers": [row.as_dict() for row in rows]}, indent=1))
    elif rows:
        print("\n".join(describe_rows(rows, find_width(sys.stdout))))
    else:
        print("No server of this user is running; `tgis launch` starts one.")
