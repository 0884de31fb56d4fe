"""``tgis tokenize``: how text is cut into tokens, by a running server or by a model directory's tokenizer."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from tgis_cli.clients.grpc_client import DEFAULT_URL, Client
from tgis_cli.model_files import find_cache_dir, find_model_dir
from tgis_server.errors import UsageError

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@dataclass(frozen=True, slots=True)
class Tokens:
    """One text, cut."""

    text: str
    pieces: list[str]
    ids: list[int] | None  # a server does not tell them

    def as_dict(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"text": self.text, "count": len(self.pieces), "pieces": self.pieces}
        return facts | ({"ids": self.ids} if self.ids is not None else {})


@app.command()
def tokenize(
    text: Annotated[str | None, typer.Argument(help="What to cut; stdin line by line when left out.")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Use the tokenizer of this directory or cached model.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Ask this server.", show_default=DEFAULT_URL)
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print a JSON object per text.")] = False,
    ca: Annotated[Path | None, typer.Option(metavar="FILE", help="Use TLS; CA certificate of the server.")] = None,
) -> None:
    """Show how text is cut into tokens: pieces, their count, and with --model their ids."""
    if model and url:
        raise UsageError("Give either --model or --url: both can cut a text.")
    texts = [text] if text is not None else read_lines()
    results = cut_locally(texts, model) if model else cut_remotely(texts, url or DEFAULT_URL, ca)
    for tokens in results:
        if json_:
            print(json.dumps(tokens.as_dict(), ensure_ascii=False), flush=True)
        else:
            print_tokens(tokens)


def read_lines() -> Iterator[str]:
    if sys.stdin.isatty():
        raise UsageError('No text is given: `tgis tokenize "Once upon a time"`, or pipe lines in.')
    return (line.removesuffix("\n") for line in sys.stdin)


def cut_locally(texts: Iterable[str], model: str) -> Iterator[Tokens]:
    from tgis_server.frontend.text import read_tokenizer

    cache_dir, _ = find_cache_dir(os.environ)
    tokenizer = read_tokenizer(find_model_dir(model, None, cache_dir), warn)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for text in texts:
        encoding = tokenizer.encode(text)
        yield Tokens(text, list(encoding.tokens), list(encoding.ids))


def warn(sentence: str) -> None:
    print(f"warning: {sentence}", file=sys.stderr)


def cut_remotely(texts: Iterable[str], url: str, ca: Path | None) -> Iterator[Tokens]:
    with Client.connect(url, ca) as client:
        for text in texts:
            (response,) = client.tokenize([text])
            yield Tokens(text, list(response.tokens), None)


def print_tokens(tokens: Tokens) -> None:
    """A table on a terminal; elsewhere one line per text: the count, then the pieces."""
    if not sys.stdout.isatty():
        print(f"{len(tokens.pieces)}\t{' '.join(tokens.pieces)}", flush=True)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{len(tokens.pieces)} tokens", title_justify="left", box=None, pad_edge=False)
    for column in ("#", *(["id"] if tokens.ids is not None else []), "piece"):
        table.add_column(column, header_style="dim", justify="left" if column == "piece" else "right")
    for index, piece in enumerate(tokens.pieces):
        ids = [str(tokens.ids[index])] if tokens.ids is not None else []
        table.add_row(str(index), *ids, Text(piece))
    Console().print(table)
