"""What a line of a prompt loop means, and how Tab completes it."""

from __future__ import annotations

import pytest

from tgis_cli.clients.prompt_commands import Command, complete_word, parse_command, parse_setting
from tgis_server.errors import UsageError


@pytest.mark.parametrize(
    "line",
    [
        "Once upon a time",
        " / is a slash, and this a text",
        "//usr/bin is a directory",
        "/set top_k 5\nin a text of two lines",
        '"""',
    ],
)
def test_lines_without_a_command_are_texts(line: str):
    assert parse_command(line) is None


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("/continue", Command("/continue", "")),
        ("/BYE ", Command("/bye", "")),
        ("  /retry", Command("/retry", "")),
        ("/set  stop  a b ", Command("/set", "stop  a b")),
        ("/exit", Command("/bye", "")),
        ("/?", Command("/help", "")),
    ],
)
def test_commands_are_recognized_however_people_type_them(line: str, command: Command):
    assert parse_command(line) == command


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("/sett top_k 5", "No such command: /sett; did you mean /set?"),
        ("/temperatur 0.5", "No such command: /temperatur; did you mean /set temperature?"),
        ("/top-k 5", "No such command: /top-k; did you mean /set top_k?"),
        (
            "/usr/bin/env",
            "No such command: /usr/bin/env; /help lists the commands; type two slashes to begin a text with",
        ),
    ],
)
def test_unknown_commands_get_a_suggestion(line: str, sentence: str):
    with pytest.raises(UsageError) as caught:
        parse_command(line)

    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("rest", "setting"),
    [
        ("top_k 5", ("top_k", "5")),
        ("top_k=5", ("top_k", "5")),
        ("stop = two words", ("stop", "two words")),
        ('stop "="', ("stop", '"="')),
        ("seed", ("seed", "")),
        ("seed =", ("seed", "")),
    ],
)
def test_a_setting_is_a_name_and_a_value_with_or_without_an_equals_sign(rest: str, setting: tuple[str, str]):
    assert parse_setting(rest) == setting


@pytest.mark.parametrize(
    ("before", "word", "matches"),
    [
        ("", "/s", ["/set ", "/show"]),
        ("", "/CONT", ["/continue"]),
        ("", "Once", []),
        ("", "", []),
        ("/set ", "top-", ["top_k ", "top_p ", "top_n "]),
        ("/set logprobs ", "o", ["on", "off"]),
        ("/set top_k ", "", ["default"]),
        ("Once ", "/s", []),
    ],
)
def test_tab_completes_commands_parameters_and_switches(before: str, word: str, matches: list[str]):
    assert complete_word(before, word) == matches
