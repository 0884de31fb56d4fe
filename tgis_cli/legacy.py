"""The executables of the original, for manifests and clients that start them by name.

``text-generation-launcher`` takes the same options as ``tgis launch``, but never falls back to the demo model: a pod
must not become ready on toy text. ``text-generation-server`` holds the original's tools as far as they exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tgis_cli.exits import errors_as_exit_codes
from tgis_cli.option_help import GroupedHelpCommand
from tgis_cli.options import with_serve_options
from tgis_server.errors import UsageError


def launch(flags: Mapping[str, Any], config_file: Path | None) -> None:
    """Serve a model; the same as `tgis launch`, with a model being required."""
    from tgis_cli.commands.launch import run_launch

    raise SystemExit(run_launch(flags, config_file, needs_model=True))


def launcher() -> None:
    """The console script ``text-generation-launcher``."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(cls=GroupedHelpCommand)(with_serve_options(launch, positional_model=False))
    with errors_as_exit_codes(debug=False):
        typer.main.get_command(app).main(prog_name="text-generation-launcher")


server_app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True, rich_markup_mode="rich"
)


@server_app.callback()
def text_generation_server() -> None:
    """The original's shard server and weight tools."""


@server_app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def serve(model: Annotated[str, typer.Argument(help="Directory or hub id.")] = "MODEL") -> None:
    """Replaced by `tgis launch`, which starts the shards itself."""
    raise UsageError(f"A shard cannot be started by itself: `tgis launch {model}` starts all processes of a server.")


def server() -> None:
    """The console script ``text-generation-server``."""
    with errors_as_exit_codes(debug=False):
        typer.main.get_command(server_app).main(prog_name="text-generation-server")
