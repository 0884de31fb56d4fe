"""Where the text to complete comes from: the command line and standard input."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Iterator, Sequence
from typing import BinaryIO, TextIO

from tgis_cli.terminal.capabilities import is_terminal
from tgis_server.errors import UsageError

STDIN = "-"
MAX_TEXT_BYTES = 64 << 20  # more than any server takes
ON_COMMAND_LINE = 'at the end of the command line, as in "Once upon a time"'


class EmptyInput(UsageError):
    """Standard input has no text."""


def read_prompt(words: Sequence[str], stdin: TextIO) -> str | None:
    """The words of the command line joined by spaces, with ``-`` replaced by standard input.

    Returns:
        The text; ``None`` if there are no words and standard input is a terminal: no text is given.

    Raises:
        UsageError: standard input is empty or not UTF-8, or a word is not.
    """
    if not words:
        return None if is_terminal(stdin) else read_stdin(stdin)
    if words.count(STDIN) > 1:
        raise UsageError(f"{STDIN} is given {words.count(STDIN)} times, but standard input can be read only once.")
    return " ".join(read_stdin(stdin) if word == STDIN else check_word(word) for word in words)


def read_stdin(stdin: TextIO) -> str:
    """All of standard input, without the line end that ``echo`` adds."""
    if is_terminal(stdin):
        print("Type the text; Ctrl-D on a line of its own ends it.", file=sys.stderr)
    text = decode(read_bytes(stdin.buffer), "Standard input")
    if not text.strip():
        raise EmptyInput(f"Standard input is empty: pipe text in, or write it {ON_COMMAND_LINE}.")
    return text.removesuffix("\n").removesuffix("\r")


def read_bytes(stream: BinaryIO) -> bytes:
    """
    Raises:
        UsageError: standard input cannot be read, as when it is a directory, or is too long or endless.
    """
    try:
        data = stream.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise UsageError(f"Standard input cannot be read: {error.strerror}.") from None
    if len(data) > MAX_TEXT_BYTES:
        raise UsageError(f"Standard input is too long for a text: it has more than {MAX_TEXT_BYTES >> 20} MiB.")
    return data


def read_lines(stream: BinaryIO, name: str) -> Iterator[bytes]:
    """
    Raises:
        OSError: the stream cannot be read.
        UsageError: a line is too long for a text.
    """
    number = 0
    while data := stream.readline(MAX_TEXT_BYTES + 1):
        number += 1
        if len(data) > MAX_TEXT_BYTES:
            raise UsageError(f"{name}, line {number}, is too long: it has more than {MAX_TEXT_BYTES >> 20} MiB.")
        yield data


def decode(data: bytes, name: str) -> str:
    """Decode UTF-8, without a byte order mark.

    Raises:
        UsageError: the bytes are not UTF-8.
    """
    try:
        return data.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{name} is not UTF-8 at byte {error.start}: convert it, for instance with `iconv -f latin1 -t utf-8`."
        ) from None


def check_word(word: str) -> str:
    """
    Raises:
        UsageError: the word has bytes that are not UTF-8.
    """
    try:
        word.encode()
    except UnicodeEncodeError:
        raise UsageError("The text is not UTF-8: check the encoding of the terminal, and the locale (LANG).") from None
    return word
