"""Container commands that run the original's executables, parsed by the executables' own parsers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import typer

from tgis_cli.decide.legacy_commands import LAUNCH_NAMES, TOOLS, make_launcher, make_server, to_launch_flags
from tgis_cli.migrate.containers import EXECUTABLES, Given, LocatedText, is_reference, line_of
from tgis_cli.migrate.shell import expand, find_executable, read_commands
from tgis_server.errors import UsageError

SHELLS = ("sh", "bash", "dash", "ash")
WRONG_COMMAND_LINE: type[Exception] = typer.BadParameter.__bases__[0]  # typer has no public name for it


@dataclass(slots=True)
class Command:
    """One of the executables with its flags; empty if the container runs the image's default command."""

    executable: str = ""
    subcommand: str = ""
    flags: dict[str, Any] = field(default_factory=dict)  # known values by option name
    given: list[tuple[str, Given]] = field(default_factory=list)  # option names, and flags as written
    problems: list[str] = field(default_factory=list)

    @property
    def is_unread(self) -> bool:
        """Whether the command cannot be parsed, so that its flags are unknown."""
        return bool(self.problems) and not self.flags


def parse_command(argv: list[str], environ: Mapping[str, str]) -> Command:
    """Find the executable, even in a shell script, and parse its arguments."""
    words = find_words(argv, environ)
    if not words:
        return Command()
    command = Command(words[0].rsplit("/", 1)[-1])
    parser, arguments = make_launcher(), [word for word in words[1:] if word != "--help"]
    if command.executable == "text-generation-server":
        command.subcommand = arguments[0] if arguments else ""
        server = make_server()
        context = server.make_context("", [], resilient_parsing=True)
        try:
            server.resolve_command(context, arguments[:1])
        except (UsageError, WRONG_COMMAND_LINE, IndexError) as error:
            command.problems.append(str(error) or "text-generation-server without a command does nothing.")
            return command
        _, parser, arguments = server.resolve_command(context, arguments)
    try:
        context = parser.make_context("", list(arguments), ignore_unknown_options=True, allow_extra_args=True)
    except WRONG_COMMAND_LINE as error:
        command.problems.append(f"{command.executable}: {getattr(error, 'message', error)}")
        return command
    unknown = [word for word in context.args if word.startswith("-")] or context.args
    command.problems += [f"{command.executable} does not know {word}." for word in unknown]
    if command.subcommand in TOOLS:  # they take no server options
        return command
    for param in parser.params:
        if context.get_parameter_source(param.name).name == "COMMANDLINE":
            given = read_parameter(param, context.params[param.name], arguments)
            command.given.append((LAUNCH_NAMES.get(param.name, param.name), given))
    known = {name: value for name, value in context.params.items() if not is_reference(str(value))}
    try:
        is_serve = command.subcommand == "serve"
        command.flags = to_launch_flags({"sharded": False} | known, environ) if is_serve else known
    except UsageError as error:
        command.problems.append(str(error))
    return command


def read_parameter(param: Any, value: object, arguments: list[str]) -> Given:
    """A parsed parameter as written, with its line."""
    names = {*param.opts, *param.secondary_opts}
    text = str(value).lower() if isinstance(value, bool) else str(value)
    word = next((word for word in arguments if word.partition("=")[0] in names or word == value), arguments[0])
    spelled = word.partition("=")[0]
    name = spelled if spelled in names else max(names, key=len)
    return Given(name, None if is_reference(text) else text, line_of(word), text)


def find_words(argv: list[str], environ: Mapping[str, str]) -> list[str]:
    """The executable and its arguments; known variables in a shell script are filled in."""
    if argv and argv[0].rsplit("/", 1)[-1] in SHELLS:
        script = next((word for before, word in pairwise(argv) if before.endswith("c")), "")
        for words in read_commands(script):
            if (start := find_executable(words)) is not None:
                return [
                    LocatedText(expand(word, environ), line_of(script) + (line_of(word) if "\n" in script else 0))
                    for word in words[start:]
                ]
        return []
    if argv and argv[0].startswith("-"):  # a patch, or KServe's model: flags for a command defined elsewhere
        return [EXECUTABLES[0], *argv]
    start = next((index for index, word in enumerate(argv) if word.rsplit("/", 1)[-1] in EXECUTABLES), None)
    return [] if start is None else argv[start:]
