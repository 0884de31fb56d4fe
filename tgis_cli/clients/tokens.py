"""Tokenized texts as ``tgis tokenize`` shows them, from a running server or from a local tokenizer."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tgis_cli.clients.connection import Connection
from tgis_cli.clients.grpc_client import Client
from tgis_cli.clients.token_view import show_piece
from tgis_cli.model_files import find_cache_dir, find_model
from tgis_cli.terminal.capabilities import is_terminal
from tgis_cli.terminal.sentences import print_sentence
from tgis_cli.terminal.tables import make_table, open_console
from tgis_server.words.sizes import format_count


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of one text."""

    text: str
    pieces: list[str]
    ids: list[int] | None  # None from a server: the API has no ids

    def as_dict(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"text": self.text, "count": len(self.pieces), "pieces": self.pieces}
        return facts | ({"ids": self.ids} if self.ids is not None else {})

    def print(self) -> None:
        """A table on a terminal; elsewhere one line: the count, then the pieces."""
        if not is_terminal(sys.stdout):
            print(f"{len(self.pieces)}\t{' '.join(self.pieces)}", flush=True)
            return
        from rich.text import Text

        table = make_table(format_count(len(self.pieces), "token"))
        for column in ("#", *(["id"] if self.ids is not None else []), "piece"):
            table.add_column(column, header_style="dim", justify="left" if column == "piece" else "right")
        for index, piece in enumerate(self.pieces):
            ids = [str(self.ids[index])] if self.ids is not None else []
            table.add_row(str(index), *ids, Text(show_piece(piece)))
        open_console().print(table)


def tokenize_locally(texts: Iterable[str], model: str) -> Iterator[Tokens]:
    """Tokenize with the tokenizer of a directory or cached model."""
    from tgis_server.frontend.text import read_tokenizer

    cache_dir, _ = find_cache_dir(os.environ)
    tokenizer = read_tokenizer(find_model(model, None, cache_dir), warn)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for text in texts:
        encoding = tokenizer.encode(text)
        yield Tokens(text, list(encoding.tokens), list(encoding.ids))


def warn(sentence: str) -> None:
    print_sentence(f"warning: {sentence}", sys.stderr)


def tokenize_remotely(texts: Iterable[str], connection: Connection) -> Iterator[Tokens]:
    """Tokenize with a running server, one call per text."""
    with Client.connect(connection) as client:
        for text in texts:
            (response,) = client.tokenize([text])
            yield Tokens(text, list(response.tokens), None)
