"""The ``tgis`` command: a table of commands, each imported only when it runs.

``tgis --help`` shows the table without importing any command, so it is always fast.
"""

from __future__ import annotations

import difflib
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tgis_cli.terminal.command_table import COMMANDS, describe_command, load_command
from tgis_cli.terminal.exits import errors_as_exit_codes
from tgis_server import __version__
from tgis_server.errors import UsageError

OTHER_WORDS = dict.fromkeys(("serve", "start", "run", "up"), "launch")  # the names that other programs use


class LazyGroup(TyperGroup):
    """Lists the commands of the table; imports only the one that runs."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        for name, summary in COMMANDS.items():
            self.add_command(describe_command(name, summary), name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in COMMANDS and args[0][:1] != "-" and not ctx.resilient_parsing:  # shell completion
            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            suggestion = OTHER_WORDS.get(args[0]) or (close[0] if close else "")
            hint = f"did you mean `tgis {suggestion}`?" if suggestion else f"the commands are {', '.join(COMMANDS)}."
            raise UsageError(f"No such command: {args[0]}; {hint}")
        name, command, rest = super().resolve_command(ctx, args)
        return name, load_command(name) if command is not None and name else command, rest

    def invoke(self, ctx: Any) -> Any:
        with errors_as_exit_codes(debug=bool(ctx.params.get("debug"))):
            return super().invoke(ctx)


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="First steps: `tgis launch` serves a small demo model, and `tgis generate` queries it.",
)


def print_version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


@app.callback()
def tgis(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Text generation inference server: a model directory becomes a supervised gRPC service."""


def main() -> None:
    """The console script ``tgis``."""
    command = typer.main.get_command(app)
    with errors_as_exit_codes(debug="--debug" in sys.argv):
        sys.exit(command.main(prog_name="tgis", standalone_mode=False))
