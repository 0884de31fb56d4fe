"""``tgis unbundle``: check a bundle, and put its model into the local cache or a directory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from tgis_cli.commands.shared_options import JsonEvents
from tgis_cli.model_files import get_cache_dir
from tgis_cli.terminal.progress import show_progress, tell_result
from tgis_cli.terminal.stop_signals import interrupted_by_signals
from tgis_server.errors import UsageError

app = typer.Typer(add_completion=False)


@app.command()
def unbundle(
    source: Annotated[str, typer.Argument(help="A bundle's directory or tar file, or `-` for a tar stream on stdin.")],
    to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Unpack into this new directory instead of the cache.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name in the cache, such as org/model; needed for a bundle made from a directory."),
    ] = None,
    json_: JsonEvents = False,
) -> None:
    """Check a packed model, put it into the local cache, and print its directory on stdout."""
    with interrupted_by_signals():
        from tgis_cli.model_files.bundle import open_bundle, unbundle_to_cache, unbundle_to_directory

        if to and name:
            raise UsageError("--to and --name cannot be used together: a directory needs no name in the cache.")
        with open_bundle(source) as bundle:
            manifest = bundle.manifest
            model = name or manifest.model
            if not to and not model:
                raise UsageError(f"{source} was made from a directory: give --name org/model, or --to DIR.")
            if not to and (model.startswith(("/", ".")) or model.count("/") > 1):
                raise UsageError(f"--name {model!r} cannot be a name in the cache: use a name like org/model.")
            with show_progress("unpacking", manifest.num_bytes, as_json=json_) as progress:
                if to:
                    model_dir = unbundle_to_directory(bundle, to, progress.advance)
                else:
                    cache_dir = get_cache_dir(os.environ)

                    def tell_waiting() -> None:
                        progress.tell(f"another process is working on {model}: waiting for it")

                    model_dir = unbundle_to_cache(bundle, cache_dir, model, progress.advance, tell_waiting)
        tell_result(model_dir, as_json=json_)
