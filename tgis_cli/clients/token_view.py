"""How likely the tokens are: as colours of the text on a terminal, and as tables."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tgis_server.words.control_characters import escape_controls

if TYPE_CHECKING:
    from rich.table import Table

    from tgis_server.wire import generation_pb2 as pb

# The least probability of each colour, from likely to unlikely. Every terminal has these colours.
BANDS = ((0.9, "\x1b[32m"), (0.5, "\x1b[36m"), (0.1, "\x1b[33m"), (0.01, "\x1b[35m"), (0.0, "\x1b[31m"))
# Characters that stand for a space or a line end in a vocabulary's pieces.
MARKS = str.maketrans({"Ġ": " ", "▁": " ", "Ċ": "\n"})


class TokenColors:
    """Colours the text of a stream by the tokens that it comes from.

    Text may come later than its tokens, for instance while it could still become a stop sequence. It is matched to
    its tokens by their pieces as far as these agree with it; the rest gets the colour of the least likely of its
    tokens.
    """

    def __init__(self) -> None:
        self._pending: deque[tuple[str, float]] = deque()  # expected text, probability
        self._has_tokens = False

    def split(self, frame: pb.GenerationResponse) -> Iterator[tuple[str, str]]:
        """The frame's text in parts, each with its colour; without one if no tokens were asked for."""
        self._pending.extend((token.text.translate(MARKS), to_probability(token.logprob)) for token in frame.tokens)
        self._has_tokens |= bool(frame.tokens)
        text = frame.text
        if not self._has_tokens:
            yield text, ""
            return
        while text and len(self._pending) > 1:
            expected, probability = self._pending[0]
            if not expected or not text.startswith(expected):
                break
            self._pending.popleft()
            text = text.removeprefix(expected)
            yield expected, find_color(probability)
        if text:
            yield text, find_color(min((probability for _, probability in self._pending), default=1.0))
            self._pending.clear()


def to_probability(logprob: float) -> float:
    """From 0 to 1, whatever a server sends; NaN for NaN."""
    return math.exp(min(logprob, 0.0))


def find_color(probability: float) -> str:
    """NaN, which a server has no reason to send, is shown as unlikely."""
    return next((color for least, color in BANDS if probability >= least), BANDS[-1][1])


def make_legend() -> list[tuple[str, str]]:
    """``probability: 90 % or more, 50 % or more, ..., less``, in parts with their colours."""
    parts = [("probability: ", "")]
    for least, color in BANDS:
        parts += [(f"{least * 100:.0f}% or more" if least else "less", color), (", ", "")]
    return parts[:-1]


def make_tables(input_tokens: Sequence[pb.TokenInfo], tokens: Sequence[pb.TokenInfo]) -> Iterator[Table]:
    """A table of each list that is not empty."""
    if input_tokens:
        yield make_token_table("Tokens of the text", input_tokens)
    if tokens:
        yield make_token_table("Tokens of the answer", tokens)


def make_token_table(title: str, tokens: Sequence[pb.TokenInfo]) -> Table:
    """A row for each token: its place, piece, probability and rank, and the likeliest tokens at its place."""
    from rich.text import Text

    from tgis_cli.terminal.tables import make_table

    table = make_table(title)
    has_alternatives = any(token.top_tokens for token in tokens)
    for column in ("#", "probability", "rank"):
        table.add_column(column, justify="right", header_style="dim", no_wrap=True)
    table.add_column("token", header_style="dim", overflow="fold")
    if has_alternatives:
        table.add_column("likeliest", header_style="dim", overflow="fold")
    for index, token in enumerate(tokens, 1):
        rank = str(token.rank) if token.rank else ""
        row = [Text(number) for number in (str(index), format_probability(token.logprob), rank)]
        alternatives = [f"{show_piece(top.text)} {format_probability(top.logprob)}" for top in token.top_tokens]
        cells = [*row, Text(show_piece(token.text)), *([Text("  ".join(alternatives))] if has_alternatives else [])]
        table.add_row(*cells)
    return table


def format_probability(logprob: float) -> str:
    """``97.3%``; empty for NaN: nothing predicts the first token of a text."""
    if math.isnan(logprob):
        return ""
    percent = to_probability(logprob) * 100
    return f"{percent:.1f}%" if percent >= 0.1 else f"{percent:.1g}%"


def show_piece(piece: str) -> str:
    return escape_controls(piece).replace("\n", "\\n").replace("\t", "\\t")
