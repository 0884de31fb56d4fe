"""The ``tgis`` command: a table of commands, each imported only when it runs.

``tgis --help`` shows the table without importing any command, so it is always fast.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any, ClassVar

import typer

from tgis_cli.terminal.coercion import spare_coercion
from tgis_cli.terminal.command import Group
from tgis_cli.terminal.command_table import COMMANDS, SECTIONS, load_command, make_stand_in
from tgis_cli.terminal.exits import errors_as_exit_codes
from tgis_server import __version__
from tgis_server.errors import UsageError

COMPLETION = "_TGIS_COMPLETE"
LINES = {"COMP_WORDS", "_TYPER_COMPLETE_ARGS"}  # the variables that have the line to complete


class TgisGroup(Group):
    """Lists the commands of the table; imports only the one that runs."""

    sections: ClassVar = {name: title for title, names in SECTIONS.items() for name in names}

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        for name, summary in COMMANDS.items():
            self.add_command(make_stand_in(name, summary), name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] == "help" and not ctx.resilient_parsing:  # as with git and gh
            names = [word for word in args if word != "help" and word[:1] != "-"]
            if not names:
                print(ctx.get_help())
                raise typer.Exit
            args = [*names, "--help"]
        name, command, rest = super().resolve_command(ctx, args)
        return name, load_command(name) if command is not None and name else command, rest

    def invoke(self, ctx: Any) -> Any:
        with errors_as_exit_codes(debug=bool(ctx.params.get("debug"))):
            return super().invoke(ctx)


app = typer.Typer(cls=TgisGroup, no_args_is_help=True, pretty_exceptions_enable=False)


def print_version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


@app.callback()
def tgis(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Text generation inference server: a model becomes a supervised gRPC service.

    `tgis COMMAND --help` explains a command; its examples can be typed as they are.
    """


def main() -> None:
    """The console script ``tgis``."""
    spare_coercion()
    command = typer.main.get_command(app)
    with errors_as_exit_codes(debug="--debug" in sys.argv):
        if os.environ.get(COMPLETION, "").startswith("complete_") and not LINES & os.environ.keys():
            raise UsageError(f"{COMPLETION} is set, but there is no line to complete: only shells set it, so unset it.")
        sys.exit(command.main(prog_name="tgis", standalone_mode=False))
