"""``tgis health``, for those who do not come by the short way of ``tgis_cli.__main__``."""

from __future__ import annotations

import os

import typer

from tgis_cli import probe

app = typer.Typer(add_completion=False)

PASS_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


@app.command(context_settings=PASS_ON)
def health(context: typer.Context) -> None:
    """Ask a running server whether it is well."""
    raise SystemExit(probe.main(context.args, os.environ))
