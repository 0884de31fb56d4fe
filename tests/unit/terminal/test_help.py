"""``--help``: one look for all commands, at any width, on any terminal; and examples that can be typed."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from in_process import run_in_process
from terminals import ESCAPES, pseudo_terminal
from tgis_cli import grpc_healthcheck
from tgis_cli.app import app
from tgis_cli.clients import probe
from tgis_cli.commands.launch import LaunchCommand
from tgis_cli.decide.legacy_commands import make_launcher, make_server
from tgis_cli.terminal.argument_parser import ArgumentParser
from tgis_cli.terminal.capabilities import can_draw
from tgis_cli.terminal.command_table import COMMANDS, SECTIONS, load_command
from tgis_cli.terminal.examples import EXAMPLES
from tgis_cli.terminal.help_page import HelpPage, Row, Section
from tgis_cli.terminal.option_help import describe_command
from tgis_server.words.layout import count_columns

PROGRAMS = {
    "tgis": lambda: typer.main.get_command(app),
    "text-generation-launcher": lambda: make_launcher(cls=LaunchCommand),
    "text-generation-server": lambda: make_server(cls=LaunchCommand),
}


def open_command(line: str) -> tuple[Any, Any]:
    """The command of a line without options, and its context."""
    program, *words = line.split()
    command = PROGRAMS[program]()
    context = command.make_context(program, [], resilient_parsing=True)
    for word in words:
        parent = context
        command = (
            load_command(word)
            if command.commands.get(word) and program == "tgis" and word in COMMANDS
            else (command.commands[word])
        )
        context = command.make_context(word, [], parent=parent, resilient_parsing=True)
    return command, context


def list_lines() -> Iterator[str]:
    for name in COMMANDS:
        yield f"tgis {name}"
        yield from (f"tgis {name} {each}" for each in getattr(load_command(name), "commands", {}))
    yield from PROGRAMS
    yield "text-generation-server serve"


LINES = list(list_lines())
PARSED_WITH_TYPER = [line for line in LINES if line != "tgis health"]


def make_page(line: str) -> HelpPage:
    return describe_command(*open_command(line))


@pytest.mark.parametrize("line", PARSED_WITH_TYPER)
def test_a_plain_page_fits_80_columns_and_shows_every_name_in_full(line: str) -> None:
    command, context = open_command(line)

    text = make_page(line).render(80, is_styled=False)

    flags = {max(param.opts, key=len) for param in command.get_params(context) if not getattr(param, "hidden", False)}
    names = {flag.removeprefix("--") for flag in flags if flag[0] == "-"} | set(getattr(command, "commands", ()))
    assert [name for name in names if name not in text] == []
    assert [part for part in text.splitlines() if count_columns(part) > 80] == []
    assert text.startswith(f"Usage: {line}")
    assert re.search(r"<\w+>|\[OPTIONS\]|\[ARGS\]|\[/|\\\[|\u2026|\x1b|[\u2500-\u257f]", text) is None


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("line", ["tgis", "tgis launch", "tgis models"])
def test_boxes_have_straight_edges(line: str, width: int) -> None:
    text = ESCAPES.sub("", make_page(line).render(width, is_styled=True))

    boxed = [part for part in text.splitlines() if part[:1] in "╭│╰"]
    assert {(count_columns(part), part[-1] in "╮│╯") for part in boxed if part} == {(min(width, 100), True)}


def test_texts_are_beside_their_names_and_long_names_have_lines_of_their_own() -> None:
    rows = (
        Row("--port INT", "The port to listen on, where clients connect.", "default: 3000"),
        Row("--a-very-long-name-of-an-option INT", "Something."),
    )

    page = HelpPage("tool", ("What it does.",), (Section("Options", rows),))

    assert page.render(40, is_styled=False) == (
        "Usage: tool\n"
        "\n"
        "What it does.\n"
        "\n"
        "Options\n"
        "  --port INT  The port to listen on,\n"
        "              where clients connect.\n"
        "              [default: 3000]\n"
        "  --a-very-long-name-of-an-option INT\n"
        "              Something.\n"
    )


def test_facts_are_dim_even_where_they_continue_on_the_next_line() -> None:
    page = HelpPage("t", (), (Section("Options", (Row("--port INT", "Where it is.", "env: PORT; default: 3000"),)),))

    dim = re.findall(r"\x1b\[2m([^─╭╮╰╯│]*?)\x1b\[0m", page.render(40, is_styled=True))

    assert " ".join(" ".join(dim).split()) == "[env: PORT; default: 3000]"


def test_a_terminal_gets_boxes_unless_it_cannot_show_them_or_must_not() -> None:
    with pseudo_terminal(80) as terminal:
        able = terminal.stream

        assert can_draw(able, {"TERM": "xterm"})
        assert not can_draw(able, {"TERM": "xterm", "NO_COLOR": "1"})
        assert not can_draw(able, {"TERM": "dumb"})
        assert not can_draw(able, {})
        with open(os.dup(able.fileno()), "w", encoding="latin-1") as latin:
            assert not can_draw(latin, {"TERM": "xterm"})
    with open(os.devnull, "w", encoding="utf-8") as file:
        assert not can_draw(file, {"TERM": "xterm"})


# Every command has it


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("tgis ")] + ["tgis"])
def test_both_flags_and_the_word_help_show_the_same_page(line: str) -> None:
    words = line.split()[1:]

    pages = [
        run_in_process(*arguments, environ={"COLUMNS": "80"})
        for arguments in ((*words, "-h"), (*words, "--help"), ("help", *words))
    ]

    assert {(page.returncode, page.stderr) for page in pages} == {(0, b"")}
    assert len({page.stdout for page in pages}) == 1
    assert pages[0].stdout.decode().startswith(f"Usage: {line}")


def test_every_command_has_its_place_in_the_list() -> None:
    assert [name for name in COMMANDS if not any(name in names for names in SECTIONS.values())] == []


@pytest.mark.parametrize("name", ["tgis health", "grpc_healthcheck"])
def test_commands_that_start_without_typer_have_the_same_page(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main = grpc_healthcheck.main if name == "grpc_healthcheck" else lambda argv: probe.main(argv, {})

    with pytest.raises(SystemExit) as end:
        main(["-h"])

    text = capsys.readouterr().out
    assert end.value.code == 0
    assert text.startswith(f"Usage: {name}\n")
    assert "\nOptions\n" in text
    assert "\n  -h, --help " in text
    assert f"\nExamples\n  {name}\n" in text


# Examples


@pytest.mark.parametrize("line", LINES)
def test_every_page_ends_with_a_few_examples(line: str) -> None:
    assert 2 <= len(EXAMPLES[line]) <= (5 if line == "tgis" else 4)
    assert max(len(example) for example, _ in EXAMPLES[line]) <= 74  # not wrapped in 80 columns


@pytest.mark.parametrize("example", sorted({example for line in LINES for example, _ in EXAMPLES[line]}))
def test_an_example_can_be_typed(example: str) -> None:
    for part in example.split("|"):
        words = [word for word in shlex.split(part) if "=" not in word or word[0] == "-"]
        program = next(word for word in words if word in ("kubectl", "ssh", *PROGRAMS, "grpc_healthcheck"))
        if program == "ssh":
            words = words[words.index("tgis") :]
        if program != "kubectl":
            parse(words)


def parse(words: list[str]) -> None:
    """
    Raises:
        An error of the command line.
    """
    if words[:2] == ["tgis", "health"]:
        probe.make_parser().parse_args(words[2:])
        return
    command = PROGRAMS[words[0]]()
    context = command.make_context(words[0], words[1:])
    while getattr(command, "commands", None) and (rest := [*context._protected_args, *context.args]):
        name, command, arguments = command.resolve_command(context, rest)
        context = command.make_context(name, arguments, parent=context)


def test_the_examples_of_the_probe_of_another_adapter_can_be_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[Any] = []
    original = ArgumentParser.parse_args

    def parse_only(self: ArgumentParser, argv: list[str]) -> Any:
        parsed.append(original(self, argv))
        raise InterruptedError

    monkeypatch.setattr(ArgumentParser, "parse_args", parse_only)
    for example, _ in EXAMPLES["grpc_healthcheck"]:
        with pytest.raises(InterruptedError):
            grpc_healthcheck.main(shlex.split(example)[1:])

    assert [options.service_name for options in parsed] == ["fmaas.GenerationService", "live"]
