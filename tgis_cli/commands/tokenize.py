"""``tgis tokenize``: split text into tokens, with a running server or with a model directory's tokenizer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from tgis_cli.clients.answer import to_json_line
from tgis_cli.clients.connection import Connection
from tgis_cli.clients.connection_options import with_connection_options
from tgis_cli.clients.prompts import decode, read_lines
from tgis_cli.clients.tokens import tokenize_locally, tokenize_remotely
from tgis_cli.model_files.completion import complete_model
from tgis_cli.terminal.capabilities import is_terminal
from tgis_server.errors import UsageError

app = typer.Typer(add_completion=False)


def tokenize(
    connection: Connection,
    text: Annotated[str | None, typer.Argument(help="Text to split; stdin line by line if left out.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Use the tokenizer of this directory or cached model.",
            autocompletion=complete_model,
        ),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print a JSON object per text.")] = False,
) -> None:
    """Show how text is split into tokens: their count, their pieces, and with --model their ids.

    Pieces are written as in the vocabulary: in many, a leading Ġ or ▁ stands for a space, and other odd characters
    stand for bytes.
    """
    if model and connection != Connection():
        raise UsageError("Give either --model or the options of a server, such as --url, not both.")
    texts = [text] if text is not None else read_texts()
    results = tokenize_locally(texts, model) if model else tokenize_remotely(texts, connection)
    for tokens in results:
        if json_:
            print(to_json_line(tokens.as_dict()), flush=True)
        else:
            tokens.print()


def read_texts() -> Iterator[str]:
    if is_terminal(sys.stdin):
        raise UsageError('No text is given: `tgis tokenize "Once upon a time"`, or pipe lines in.')
    lines = read_lines(sys.stdin.buffer, "Standard input")
    return (decode(line, "Standard input").removesuffix("\n").removesuffix("\r") for line in lines)


app.command()(with_connection_options(tokenize))
