"""``tgis convert-to-onnx``: export a model to ONNX."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from tgis_cli.commands.shared_options import Model, Revision
from tgis_cli.model_files import find_model_dir, get_cache_dir
from tgis_cli.terminal.progress import tell
from tgis_cli.terminal.stop_signals import interrupted_by_signals

app = typer.Typer(add_completion=False)


@app.command()
def convert_to_onnx(
    model: Model,
    target: Annotated[Path, typer.Argument(help="Directory to create.")],
    revision: Revision = "main",
    merge_graphs: Annotated[
        bool,
        typer.Option(
            help="Merge the two decoders of an encoder-decoder model into one file; other models have only one."
        ),
    ] = False,
    optimize: Annotated[bool, typer.Option(help="Optimize the graph: level O3 for GPUs, O1 for CPUs.")] = False,
    provider: Annotated[
        str | None,
        typer.Option(
            help="Execution provider to optimize for: CPUExecutionProvider or CUDAExecutionProvider.",
            show_default="this machine's",
        ),
    ] = None,
    environment: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Directory to install the exporter in.", show_default="~/.cache/tgis/onnx-exporter"
        ),
    ] = None,
) -> None:
    """Export a model to ONNX, in float32, and compare its logits with the original's.

    The exporter needs different library versions, so it is installed once, with pip, in its own directory.
    """
    from tgis_cli.model_files.convert.onnx import Export, export_to_onnx, find_environment

    model_dir = find_model_dir(model, revision, get_cache_dir(os.environ))
    export = Export(model_dir, expand(target), merge_graphs, optimize, provider)
    with interrupted_by_signals():
        difference = export_to_onnx(export, expand(environment or find_environment(os.environ)))
    tell(f"logits differ by at most {difference:.2g}", as_json=False)
    print(export.target)


def expand(path: Path) -> Path:
    return Path(os.path.expanduser(path)).absolute()
