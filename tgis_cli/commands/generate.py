"""``tgis generate``: complete text with a running server and show the answer as it is generated."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from tgis_cli.clients.answer import collect_answer
from tgis_cli.clients.connection import Connection
from tgis_cli.clients.connection_options import with_connection_options
from tgis_cli.clients.grpc_client import Client, Sampling, build_request
from tgis_server.errors import UsageError

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


def generate(
    connection: Connection,
    text: Annotated[str | None, typer.Argument(help="What to complete; read from stdin if left out.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Maximum number of generated tokens.", show_default="20")
    ] = None,
    temperature: Annotated[float | None, typer.Option(metavar="X", help="Sample; above 1 is more random.")] = None,
    top_p: Annotated[float | None, typer.Option(metavar="X", help="Sample from this share of probability.")] = None,
    top_k: Annotated[int | None, typer.Option(min=0, metavar="N", help="Sample from the N likeliest tokens.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, metavar="N", help="Make sampling reproducible.")] = None,
    stop: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="Stop at this text; may be repeated.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the whole answer as one JSON object.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print statistics on stderr.")] = False,
) -> None:
    """Complete text with a running server.

    Greedy unless a sampling option is given. Exit codes: 0 done, 1 the server refused or failed, 2 usage.
    """
    prompt = text if text is not None else read_prompt()
    sampling = Sampling(temperature, top_p, top_k, seed)
    with Client.connect(connection) as client:
        request = build_request(prompt, max_new_tokens or 0, sampling, stop or [])
        answer = collect_answer(client.generate_stream(request), show=not json_)
    if json_:
        print(json.dumps(answer.as_dict(), ensure_ascii=False))
    if verbose:
        print(answer.describe(), file=sys.stderr)


def read_prompt() -> str:
    """All of stdin, without the line end that ``echo`` adds."""
    if sys.stdin.isatty():
        raise UsageError('No text is given: `tgis generate "Once upon a time"`, or pipe one in.')
    return sys.stdin.read().removesuffix("\n")


app.command()(with_connection_options(generate))
