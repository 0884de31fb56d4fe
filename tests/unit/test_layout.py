"""Text in a terminal's columns."""

from __future__ import annotations

import pytest

from tgis_server.words.layout import lay_out, wrap

PATH = "/root/.cache/huggingface/hub/models--org--name/snapshots/0123456789abcdef"
ROWS = [
    ("engine", "native", "supports this model's family"),
    ("max_sequence_length", "2048", "max_position_embeddings of config.json"),
]


def lines_of(rows: list[tuple[str, ...]], width: int | None) -> list[str]:
    return [line for lines in lay_out(rows, width) for line in lines]


def test_lines_break_between_words_and_hang_below_the_text():
    assert wrap("one two three four", 17, first="12:30 a  ") == [
        "12:30 a  one two",
        "         three",
        "         four",
    ]


def test_without_a_width_a_text_stays_whole():
    assert wrap("  one  two", None, first="- ") == ["-   one  two"]


def test_blanks_at_the_start_and_between_words_are_kept_within_a_line():
    assert wrap("  a  bbbbbb ccc", 12) == ["  a  bbbbbb", "  ccc"]


def test_a_line_that_fits_exactly_is_not_broken():
    assert wrap("one two", 7) == ["one two"]


@pytest.mark.parametrize("word", ["--max-sequence-length", "ibm-granite/granite-3b"])
def test_a_word_that_fits_on_a_line_is_never_broken(word: str):
    assert wrap(f"use {word} now", 24) == ["use", word, "now"]


def test_a_path_too_long_for_a_line_is_broken_after_a_slash():
    assert wrap(f"in {PATH} now", 40) == [
        "in",
        "/root/.cache/huggingface/hub/",
        "models--org--name/snapshots/",
        "0123456789abcdef now",
    ]


def test_a_long_word_without_marks_is_broken_where_the_line_ends():
    assert wrap("x" * 20, 10) == ["x" * 10] * 2


def test_a_terminal_narrower_than_the_start_of_a_line_leaves_some_room_for_the_text():
    assert wrap("one two", 3, first="12:30 a  ") == ["12:30 a  one two"]


def test_wide_characters_take_two_columns():
    assert wrap("模型模 模型", 10) == ["模型模", "模型"]


def test_columns_are_aligned():
    assert lines_of(ROWS, None) == [
        "  engine               native  supports this model's family",
        "  max_sequence_length  2048    max_position_embeddings of config.json",
    ]


def test_the_last_column_is_wrapped_below_its_start():
    assert lines_of(ROWS, 60) == [
        "  engine               native  supports this model's family",
        "  max_sequence_length  2048    max_position_embeddings of",
        "                               config.json",
    ]


def test_a_cell_that_is_too_wide_for_its_column_pushes_the_next_one_below():
    rows = [("--port", "3000", "default"), ("--model-name", PATH[:40], "flag")]

    assert lines_of(rows, 60) == [
        "  --port        3000  default",
        "  --model-name  /root/.cache/huggingface/hub/models--org",
        "                      flag",
    ]


def test_columns_that_are_too_narrow_are_stacked():
    assert lines_of(ROWS, 40) == [
        "  engine",
        "      native",
        "      supports this model's family",
        "  max_sequence_length",
        "      2048",
        "      max_position_embeddings of",
        "      config.json",
    ]


@pytest.mark.parametrize("width", range(30, 121, 10))
def test_no_line_is_wider_than_the_terminal(width: int):
    rows = [*ROWS, ("model_dir", PATH, f"in the cache {PATH} (from HF_HOME)")]

    assert max(map(len, lines_of(rows, width))) <= width


def test_each_line_of_a_text_is_wrapped_by_itself():
    assert wrap("two lines are wrong:\nline 1: it is not JSON", 16) == [
        "two lines are",
        "wrong:",
        "line 1: it is",
        "not JSON",
    ]
    assert wrap("one\n  two three", 12, first="- ") == ["- one", "    two", "    three"]
    assert wrap("one\ntwo", None) == ["one", "two"]
