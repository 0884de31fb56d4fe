"""``tgis launch``: serve a model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tgis_cli.launch.errors import errors_in_termination_log, find_output_flags
from tgis_cli.model_files.completion import complete_model
from tgis_cli.terminal.command import Command
from tgis_cli.terminal.options import with_serve_options

app = typer.Typer(add_completion=False)

Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Show every log line on a terminal; files, pipes and JSON always have them."),
]


def launch(flags: Mapping[str, Any], config_file: Path | None, verbose: Verbose = False) -> None:
    """Serve a model until Ctrl-C or SIGTERM.

    Every option can also be given as an environment variable or in a TOML file; flags take precedence over the
    environment, which takes precedence over the file. `tgis config show` prints where each value comes from.
    """
    from tgis_cli.launch.serve import run_launch

    raise SystemExit(run_launch(flags, config_file, is_verbose=verbose))


class LaunchCommand(Command):
    """Reports whatever prevents startup, even a wrong command line, where operators look for it."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        with errors_in_termination_log(find_output_flags(args), os.environ, None):
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        with errors_in_termination_log(ctx.params, os.environ, ctx.params.get("config_file")):
            return super().invoke(ctx)


app.command(cls=LaunchCommand)(with_serve_options(launch, complete_model=complete_model))
