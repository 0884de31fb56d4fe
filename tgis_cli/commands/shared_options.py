"""Options shared by the commands that work on models."""

from __future__ import annotations

from typing import Annotated

import typer

from tgis_cli.model_files.completion import complete_model

Model = Annotated[str, typer.Argument(help="Name in the local cache, or a directory.", autocompletion=complete_model)]
Revision = Annotated[str, typer.Option(help="Branch, tag or commit.")]
Token = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="For gated and private models; HF_TOKEN keeps the token out of process lists."),
]
JsonEvents = Annotated[bool, typer.Option("--json", help="Print events as JSON, one per line.")]
