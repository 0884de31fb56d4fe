"""Sentences for people: wrapped between words on a terminal, and left whole in files and pipes."""

from __future__ import annotations

from typing import TextIO

from tgis_cli.terminal.capabilities import find_width
from tgis_server.words.layout import wrap


def print_sentence(sentence: str, stream: TextIO) -> None:
    """Print a sentence on lines of its own. Control characters in it are shown, not obeyed."""
    print(fit_sentence(sentence, stream), file=stream, flush=True)


def fit_sentence(sentence: str, stream: TextIO) -> str:
    """The sentence, with the line ends that an output needs."""
    return "\n".join(wrap(sentence, find_width(stream)))
