"""``tgis generate``: complete text with a running server and show the answer as it is generated."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated

import typer

from tgis_cli.clients.answer import collect_answer
from tgis_cli.clients.connection import Connection
from tgis_cli.clients.connection_options import with_connection_options
from tgis_cli.clients.grpc_client import Client
from tgis_cli.clients.parameter_flags import with_parameters
from tgis_cli.clients.parameters import Parameters
from tgis_cli.clients.presenter import Presenter
from tgis_server.errors import UsageError

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command()
@with_connection_options
@with_parameters
def generate(
    connection: Connection,
    parameters: Parameters,
    text: Annotated[list[str] | None, typer.Argument(help="What to complete; read from stdin if left out.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the whole answer as one JSON object.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print statistics on stderr.")] = False,
) -> None:
    """Complete text with a running server.

    Greedy unless a sampling option is given. Exit codes: 0 done, 1 the server refused or failed, 2 usage.
    """
    prompt = " ".join(text) if text else read_prompt()
    presenter = Presenter.open(os.environ, verbose=verbose)
    with Client.connect(connection) as client:
        frames = client.generate_stream(parameters.to_request(prompt))
        answer = collect_answer(frames) if json_ else presenter.show(prompt, frames)
    if json_:
        print(json.dumps(answer.as_dict(), ensure_ascii=False))
    if answer.was_interrupted:
        raise typer.Exit(130)


def read_prompt() -> str:
    """All of stdin, without the line end that ``echo`` adds."""
    if sys.stdin.isatty():
        raise UsageError('No text is given: `tgis generate "Once upon a time"`, or pipe one in.')
    return sys.stdin.read().removesuffix("\n")
