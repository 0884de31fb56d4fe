"""``tgis download-weights``: download a model into the local cache, and convert what serving cannot use."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from tgis_cli.commands.shared_options import JsonEvents, Revision, Token
from tgis_cli.model_files import get_cache_dir
from tgis_cli.model_files.completion import complete_model
from tgis_cli.terminal.progress import tell_result
from tgis_cli.terminal.stop_signals import interrupted_by_signals

app = typer.Typer(add_completion=False)

MAX_PARALLEL = 64


@app.command()
def download_weights(
    model: Annotated[
        str,
        typer.Argument(
            help="Name on the hub, such as org/model, or a directory of files to convert.",
            autocompletion=complete_model,
        ),
    ],
    revision: Revision = "main",
    token: Token = None,
    extension: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Comma-separated file name endings to download. A single one also gets configuration and tokenizer.",
        ),
    ] = ".safetensors",
    auto_convert: Annotated[
        bool,
        typer.Option(
            help="If there are no safetensors, download PyTorch weights and convert them; make tokenizer.json if it "
            "is missing."
        ),
    ] = True,
    verify: Annotated[
        bool, typer.Option("--verify", help="Also check files already in the cache, and replace damaged ones.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be downloaded.")] = False,
    parallel: Annotated[int, typer.Option(min=1, max=MAX_PARALLEL, help="Maximum number of parallel transfers.")] = 8,
    stall_timeout: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="Restart a transfer that receives nothing for this long.")
    ] = 30,
    json_: JsonEvents = False,
) -> None:
    """Download a model into the local cache and print its directory on stdout.

    An interrupted download resumes where it stopped. A file gets its final name once it is complete and its checksum
    matches the hub's.
    """
    with interrupted_by_signals():
        from tgis_cli.model_files.download.servable import get_servable
        from tgis_cli.model_files.download.snapshot import Order
        from tgis_cli.model_files.download.transfers import TransferOptions

        transfers = TransferOptions(num_parallel=parallel, stall_s=stall_timeout)
        order = Order(model, revision, extension, auto_convert, verify, transfers)
        model_dir = get_servable(order, token, get_cache_dir(os.environ), dry_run=dry_run, as_json=json_)
        if model_dir:
            tell_result(model_dir, as_json=json_)
