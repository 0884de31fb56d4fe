"""``tgis convert-to-fast-tokenizer``: make the tokenizer.json that serving needs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from tgis_cli.commands.shared_options import Model, Revision
from tgis_cli.model_files import find_model_dir, get_cache_dir
from tgis_cli.terminal.progress import tell
from tgis_cli.terminal.stop_signals import interrupted_by_signals
from tgis_server.errors import ModelError, UsageError

app = typer.Typer(add_completion=False)


@app.command()
def convert_to_fast_tokenizer(
    model: Model,
    revision: Revision = "main",
    output_path: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Output directory.", show_default="the model's directory")
    ] = None,
) -> None:
    """Make tokenizer.json from a model's older tokenizer files. Needs `pip install 'tgis[convert]'`."""
    from tgis_cli.model_files.convert import fast_tokenizer

    model_dir = find_model_dir(model, revision, get_cache_dir(os.environ))
    output_dir = output_path or model_dir
    if not output_dir.is_dir():
        raise UsageError(f"--output-path {output_dir} is not a directory: create it first.")
    target = output_dir / fast_tokenizer.NAME
    present = [path for path in (target, model_dir / fast_tokenizer.NAME) if path.exists()]
    if present:
        target = present[0]
        tell(f"{target} already exists", as_json=False)
    elif not fast_tokenizer.has_slow_tokenizer(model_dir):
        raise ModelError(f"{model_dir} has no tokenizer files: there is nothing to convert.")
    else:
        tell("making tokenizer.json", as_json=False)
        with interrupted_by_signals():
            fast_tokenizer.convert_to_fast_tokenizer(model_dir, output_dir)
    print(target)
