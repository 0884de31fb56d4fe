"""A command line of `tgis launch` as one string: ``org/model --num-shard 2``. Of `tgis bench`, which starts servers."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from tgis_cli.own_server.launcher import LaunchOptions
from tgis_cli.terminal.command import Command
from tgis_cli.terminal.fixed_in_run import FIXED_IN_RUN
from tgis_cli.terminal.options import with_serve_options
from tgis_server.errors import UsageError
from tgis_server.options import options


def read_launch_line(line: str, flag: str) -> LaunchOptions:
    """
    Args:
        flag: the option that has the line, such as ``--launch``.

    Raises:
        UsageError: it cannot be split into words, or sets what is fixed for a server of one command.
    """
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise UsageError(f"{flag} {line!r} cannot be split into words: {str(error).lower()}.") from None
    if words[:2] == ["tgis", "launch"]:  # a whole command
        words = words[2:]
    flags, config_file = parse_words(words)
    fixed = [option.flag for option in options() if option.name in FIXED_IN_RUN and flags.get(option.name) is not None]
    if fixed:
        raise UsageError(f"{flag} has {', '.join(fixed)}, which `tgis bench` sets itself: leave it out.")
    return LaunchOptions(flags, config_file)


def parse_words(words: list[str]) -> tuple[Mapping[str, Any], Path | None]:
    """As `tgis launch` does, with its errors."""
    parsed: list[tuple[Mapping[str, Any], Path | None]] = []

    def launch(flags: Mapping[str, Any], config_file: Path | None) -> None:
        parsed.append((flags, config_file))

    app = typer.Typer(add_completion=False)
    app.command(cls=Command)(with_serve_options(launch))
    typer.main.get_command(app).main(words, prog_name="tgis launch", standalone_mode=False)
    return parsed[0] if parsed else ({}, None)  # after --help there is nothing
