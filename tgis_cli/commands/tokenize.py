"""``tgis tokenize``: split text into tokens, with a running server or with a model directory's tokenizer."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from tgis_cli.clients.grpc_client import DEFAULT_URL
from tgis_cli.clients.tokens import tokenize_locally, tokenize_remotely
from tgis_server.errors import UsageError

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command()
def tokenize(
    text: Annotated[str | None, typer.Argument(help="Text to split; stdin line by line if left out.")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Use the tokenizer of this directory or cached model.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Address of the server.", show_default=DEFAULT_URL)
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print a JSON object per text.")] = False,
    ca: Annotated[Path | None, typer.Option(metavar="FILE", help="Use TLS; CA certificate of the server.")] = None,
) -> None:
    """Show how text is split into tokens: pieces, their count, and with --model their ids."""
    if model and url:
        raise UsageError("Give either --model or --url, not both.")
    texts = [text] if text is not None else read_lines()
    results = tokenize_locally(texts, model) if model else tokenize_remotely(texts, url or DEFAULT_URL, ca)
    for tokens in results:
        if json_:
            print(json.dumps(tokens.as_dict(), ensure_ascii=False), flush=True)
        else:
            tokens.print()


def read_lines() -> Iterator[str]:
    if sys.stdin.isatty():
        raise UsageError('No text is given: `tgis tokenize "Once upon a time"`, or pipe lines in.')
    return (line.removesuffix("\n") for line in sys.stdin)
