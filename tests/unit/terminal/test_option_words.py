"""Options that do not exist are found before the framework parses the line, and no others."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tgis_cli.terminal.command import find_unknown
from tgis_cli.terminal.command_table import load_command
from tgis_server.errors import UsageError

PLAN = load_command("plan")
OPTIONS = {name: param for param in PLAN.params for name in (*param.opts, *param.secondary_opts)}
WORDS = (
    *(
        "--port",
        "--port=1",
        "-p",
        "-p1",
        "-port",
        "--gpu",
        "--json",
        "--no-prefix-cache",
        "--prefix-cache=x",
        "--port ",
    ),
    *("--nope", "--nope=1", "-x", "-px", "-1", "-", "--", "", "model", "-- ", "--=", "-=", "-jp", "-g-p"),
)


@pytest.mark.parametrize(
    ("words", "unknown"),
    [
        (["--port", "--nope"], None),  # a value
        (["--port=1", "--nope"], "--nope"),
        (["--nope=1"], "--nope"),
        (["-p", "-x"], None),
        (["-p1", "-x"], "-x"),
        (["-port", "1"], "-port"),
        (["--", "--nope"], None),
        (["-"], None),
        (["model", "--nope"], "--nope"),
    ],
)
def test_the_first_unknown_option_is_found(words: list[str], unknown: str | None) -> None:
    assert find_unknown(OPTIONS, words, is_group=False) == unknown


def test_in_a_group_the_words_of_the_command_are_not_its_options() -> None:
    assert find_unknown({}, ["rm", "--nope"], is_group=True) is None


@settings(max_examples=100, deadline=None)
@given(words=st.lists(st.sampled_from(WORDS), max_size=6))
def test_the_framework_never_gets_an_unknown_option(words: list[str]) -> None:
    unknown = find_unknown(OPTIONS, words, is_group=False)

    error = parse(words)

    assert type(error).__name__ != "NoSuchOption"
    if unknown:
        assert isinstance(error, UsageError)
        assert str(error).startswith("No such option: ")


def parse(words: list[str]) -> Any:
    try:
        PLAN.make_context("plan", list(words))
    except Exception as error:  # noqa: BLE001  any is an answer
        return error
    return None
