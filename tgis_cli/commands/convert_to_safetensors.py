"""``tgis convert-to-safetensors``: convert a model's PyTorch weights."""

from __future__ import annotations

import os

import typer

from tgis_cli.commands.shared_options import JsonEvents, Model, Revision
from tgis_cli.model_files import find_model_dir, get_cache_dir
from tgis_cli.terminal.progress import tell_result
from tgis_cli.terminal.stop_signals import interrupted_by_signals

app = typer.Typer(add_completion=False)


@app.command()
def convert_to_safetensors(
    model: Model,
    revision: Revision = "main",
    json_: JsonEvents = False,
) -> None:
    """Convert .bin and .pt files to safetensors next to them, without running code that they may contain.

    Each file is compared with its source before it gets its final name. An interrupted conversion resumes when run
    again.
    """
    with interrupted_by_signals():
        from tgis_cli.model_files.convert.to_safetensors import convert_to_safetensors as convert

        model_dir = find_model_dir(model, revision, get_cache_dir(os.environ))
        converted = convert(model_dir, as_json=json_)
        tell_result(model_dir, as_json=json_, converted=converted)
