"""The ``tgis`` command: a table of commands, each imported only when it runs.

``tgis --help`` shows the table without importing any command, so it is always fast.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tgis_cli.terminal.exits import errors_as_exit_codes
from tgis_server import __version__
from tgis_server.errors import UsageError

# name -> what it does; the module tgis_cli.commands.NAME has a Typer app called `app`
COMMANDS = {
    "launch": "Serve a model.",
    "plan": "Show what a model needs, and whether it runs here or on given devices.",
    "doctor": "Check this machine and suggest fixes.",
    "download-weights": "Download a model, and convert it if needed.",
    "models": "List, check and remove the models in the local cache.",
    "bundle": "Pack a model with its checksums, for sites without a network.",
    "unbundle": "Check a packed model and put it into the local cache.",
    "convert-to-safetensors": "Convert PyTorch weights to safetensors.",
    "convert-to-fast-tokenizer": "Make the tokenizer.json that serving needs.",
    "convert-to-onnx": "Export a model to ONNX.",
    "health": "Check the health of a running server.",
    "generate": "Complete a text with a running server.",
    "tokenize": "Show how text is split into tokens.",
    "migrate": "Check manifests and scripts that start the original server.",
    "config": "Show every option, its value and where it comes from.",
    "version": "Print versions of TGIS and of what it runs on.",
}

OTHER_WORDS = dict.fromkeys(("serve", "start", "run", "up"), "launch")  # what other programs call it


def load_command(name: str) -> Any:
    """Import a command's module and build the command."""
    module = importlib.import_module(f"tgis_cli.commands.{name.replace('-', '_')}")
    command = typer.main.get_command(module.app)
    command.name = name
    return command


def describe_command(name: str, summary: str) -> Any:
    """A stand-in that carries the name and summary of a command for listings and shell completion."""
    app = typer.Typer(add_completion=False)
    app.command(name, help=summary, add_help_option=False)(lambda: None)
    return typer.main.get_command(app)


class LazyGroup(TyperGroup):
    """Lists the commands of the table; imports only the one that runs."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        for name, summary in COMMANDS.items():
            self.add_command(describe_command(name, summary), name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in COMMANDS and args[0][:1] != "-" and not ctx.resilient_parsing:  # set while completing
            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            suggestion = OTHER_WORDS.get(args[0]) or (close[0] if close else "")
            hint = f"did you mean `tgis {suggestion}`?" if suggestion else f"there are {', '.join(COMMANDS)}."
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
    epilog="First steps: `tgis launch` serves a small demo model, `tgis generate` queries it.",
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
