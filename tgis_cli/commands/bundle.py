"""``tgis bundle``: pack a model as plain files with checksums, to carry to a site without a network."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from tgis_cli.commands.shared_options import JsonEvents, Model, Revision
from tgis_cli.model_files import find_model_dir, get_cache_dir, is_in_cache
from tgis_cli.terminal.progress import show_progress, tell
from tgis_cli.terminal.stop_signals import interrupted_by_signals
from tgis_server.errors import ModelError
from tgis_server.words.sizes import format_bytes

app = typer.Typer(add_completion=False)


@app.command()
def bundle(
    model: Model,
    target: Annotated[
        str, typer.Argument(help="New directory, or a tar file if the name ends in .tar; `-` is stdout.")
    ],
    revision: Revision = "main",
    json_: JsonEvents = False,
) -> None:
    """Pack a model with its checksums.

    The files are plain: `sha256sum --check SHA256SUMS` checks them, `tgis unbundle` puts them into a cache, and
    `tgis launch` serves the directory.
    """
    as_json = json_ and target != "-"
    with interrupted_by_signals():
        from tgis_cli.model_files.bundle import make_bundle, make_manifest
        from tgis_cli.model_files.cache.folder import CacheFolder
        from tgis_cli.model_files.inventory import (
            find_broken_config,
            find_broken_tokenizer,
            find_weight_problems,
            inspect_snapshot,
        )

        cache_dir = get_cache_dir(os.environ)
        model_dir = find_model_dir(model, revision, cache_dir)
        name, revisions = "", tuple[str, ...]()
        if is_in_cache(model, model_dir, cache_dir):
            folder = CacheFolder(cache_dir, model)
            problems = inspect_snapshot(folder, model, model_dir.name, ()).problems
            name = model
            revisions = tuple(ref for ref, commit in folder.read_references().items() if commit == model_dir.name)
        else:
            problems = (
                *find_broken_config(model_dir),
                *(find_broken_tokenizer(model_dir) if (model_dir / "tokenizer.json").exists() else ()),
                *(find_weight_problems(model_dir) if any(model_dir.glob("*.safetensors")) else ()),
            )
        if problems:
            raise ModelError(f"{model} is not complete: {problems[0]}.")
        manifest = make_manifest(model_dir, name, revisions)
        with show_progress("packing", manifest.num_bytes, as_json=as_json) as progress:
            make_bundle(model_dir, manifest, target, progress.advance)
        where = "a stream" if target == "-" else target
        tell(
            f"packed {len(manifest.files)} files of {model} into {where}: {format_bytes(manifest.num_bytes)}",
            "done",
            as_json=as_json,
            target=target,
        )
