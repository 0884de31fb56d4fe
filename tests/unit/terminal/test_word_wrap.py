"""Streamed text on a terminal: whole words, however the text is split into pieces."""

from __future__ import annotations

import io
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from screens import Screen
from tgis_cli.terminal.word_wrap import DIM, WordWriter


def write(pieces: list[str], columns: int) -> Screen:
    stream, screen = io.StringIO(), Screen(columns)
    writer = WordWriter(stream, lambda: columns)
    for piece in pieces:
        writer.write(piece)
    screen.feed(stream.getvalue().replace("\n", "\r\n"))
    assert screen.column == writer.column
    return screen


def wrap(text: str, columns: int) -> list[str]:
    return write([text], columns).lines


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("one two three", ["one two", "three"]),
        ("1234567890 x", ["1234567890", "x"]),  # the space after a full line is no space of the next line
        ("12345678 90 x", ["12345678", "90 x"]),
        ("12345678901234 x", ["1234567890", "1234 x"]),  # longer than a line: broken at the edge
        ("abc 12345678901234", ["abc", "1234567890", "1234"]),
        ("a\n\n  b", ["a", "", "  b"]),
        ("a\tb", ["a       b"]),
        ("abcdefgh\tb", ["abcdefgh", "b"]),
        ("日本語日本語", ["日本語日本", "語"]),
        ("a日本語日本語", ["a日本語日", "本語"]),  # a wide character does not fit into the last column
        ("abcdefg e\u0301e\u0301e\u0301e\u0301", ["abcdefg", "e\u0301" * 4]),  # combining marks need no column
        ("", [""]),
    ],
)
def test_lines_break_between_words(text: str, lines: list[str]):
    assert wrap(text, 10) == lines


TEXTS = st.text(st.sampled_from("ab-é日\u0301 \n\t"), max_size=60)


@given(text=TEXTS, cuts=st.lists(st.integers(0, 60)), columns=st.integers(4, 20))
def test_the_pieces_of_a_text_do_not_matter(text: str, cuts: list[int], columns: int):
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:end] for start, end in itertools.pairwise(places)]

    assert write(pieces, columns).lines == wrap(text, columns)


@given(words=st.lists(st.text(st.sampled_from("abc"), min_size=1, max_size=8), min_size=1), columns=st.integers(9, 30))
def test_a_word_that_fits_into_a_line_is_not_broken(words: list[str], columns: int):
    lines = wrap(" ".join(words), columns)

    assert " ".join(lines).split(" ") == words


def test_a_word_keeps_its_styles_when_it_moves():
    stream, screen = io.StringIO(), Screen(8)
    writer = WordWriter(stream, lambda: 8)

    writer.write("once ti", DIM)
    writer.write("me there")
    screen.feed(stream.getvalue().replace("\n", "\r\n"))

    assert screen.lines == ["once", "time", "there"]
    assert screen.styled("2") == "once titi"  # written twice
    assert screen.styled("") == "mme thethere"


def test_a_narrower_window_counts_from_its_next_line():
    columns = 20
    stream = io.StringIO()
    writer = WordWriter(stream, lambda: columns)

    writer.write("0123456789 ab")
    columns = 10
    writer.write("cd efghi jk")

    assert writer.column == len("efghi jk")
    assert "\nefghi" in stream.getvalue()
