"""``tgis download-weights``: a model ready to serve, downloaded or converted in its own directory."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from tgis_cli.model_files.cache.disk import describe_free_space, free_disk_bytes
from tgis_cli.model_files.convert.fast_tokenizer import convert_to_fast_tokenizer, has_slow_tokenizer
from tgis_cli.model_files.convert.to_safetensors import convert_to_safetensors, needs_conversion
from tgis_cli.model_files.download.hub_token import find_token
from tgis_cli.model_files.download.selection import SAFETENSORS_ENDING, parse_extensions
from tgis_cli.model_files.download.snapshot import Order, SnapshotDownload, find_local_dir
from tgis_cli.terminal.progress import tell
from tgis_cli.terminal.sentences import print_sentence
from tgis_server.errors import UsageError
from tgis_server.words.sizes import format_bytes


def get_servable(order: Order, token: str | None, cache_dir: Path, *, dry_run: bool, as_json: bool) -> Path | None:
    """Download what is missing and convert what serving cannot use.

    Args:
        order: ``with_pytorch`` also allows conversions, in a directory too.
        token: from the command line; it takes precedence over other sources.

    Returns:
        The model's directory; ``None`` after a dry run.

    Raises:
        UsageError: a flag makes no sense for a directory, or excludes another one.
        ModelError, HubError, NotEnoughDevices: see :class:`SnapshotDownload`.
    """
    auto_convert = order.with_pytorch
    order = replace(order, with_pytorch=auto_convert and SAFETENSORS_ENDING in parse_extensions(order.extension))

    def finish(directory: Path) -> None:
        if order.with_pytorch:
            if needs_conversion(directory):
                convert_to_safetensors(directory, as_json=as_json)
            make_tokenizer(directory, as_json=as_json)

    if model_dir := find_local_dir(order.model, cache_dir):
        if order.verify or dry_run:
            raise UsageError(f"{order.model} is a directory: there is nothing to download or to compare it with.")
        tell(f"{order.model} is a directory: nothing is downloaded", as_json=as_json)
        finish(model_dir)
    else:
        found = find_token(token, os.environ, partial(tell, as_json=as_json))
        order = replace(order, transfers=replace(order.transfers, token=found))
        download = SnapshotDownload(order, cache_dir, as_json=as_json)
        if dry_run and order.verify:
            raise UsageError(
                "--dry-run and --verify cannot be used together: one reads nothing, and the other reads everything."
            )
        if dry_run:
            print_plan(download, as_json=as_json)
            return None
        model_dir = download.run(finish)
    if auto_convert and not order.with_pytorch:  # the files are complete without it: they are for another program
        make_tokenizer(model_dir, as_json=as_json)
    return model_dir


def make_tokenizer(model_dir: Path, *, as_json: bool) -> None:
    """Make tokenizer.json if the model has only older tokenizer files."""
    if has_slow_tokenizer(model_dir):
        tell("making tokenizer.json", as_json=as_json)
        convert_to_fast_tokenizer(model_dir, model_dir)


def print_plan(download: SnapshotDownload, *, as_json: bool) -> None:
    """Print what would be downloaded, and where to.

    Raises:
        NotEnoughDevices: the download does not fit on the disk.
    """
    chosen = download.choose_files()
    missing = {file.name for file in chosen.missing.files}
    target = download.folder.snapshot(chosen.selection.listing.commit)
    free_bytes = free_disk_bytes(download.folder.root)
    summary = (
        f"{format_bytes(chosen.missing.num_bytes)} of {format_bytes(chosen.selection.num_bytes)} would be "
        f"downloaded to {target}; {describe_free_space(free_bytes)} there"
    )
    if as_json:
        files = [
            {"name": file.name, "bytes": file.size, "is_present": file.name not in missing}
            for file in chosen.selection.files
        ]
        tell(
            summary,
            "plan",
            as_json=True,
            model_dir=target,
            files=files,
            num_bytes=chosen.selection.num_bytes,
            missing_bytes=chosen.missing.num_bytes,
            free_bytes=free_bytes,
        )
    else:
        for file in chosen.selection.files:
            state = "" if file.name in missing else "present"
            print(f"{format_bytes(file.size):>10}  {file.name:<48} {state}".rstrip())
        print_sentence(summary, sys.stdout)
    download.check_space(chosen)
