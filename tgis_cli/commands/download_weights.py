"""``tgis download-weights``: get a model into the local cache, and make of it what serving needs."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tgis_cli.model_files import get_cache_dir
from tgis_cli.terminal.progress import failures_told, tell, tell_result
from tgis_server.errors import UsageError
from tgis_server.words.sizes import format_bytes

if TYPE_CHECKING:
    from tgis_cli.model_files.download.snapshot import SnapshotDownload

app = typer.Typer(add_completion=False, rich_markup_mode="rich")

MAX_PARALLEL = 64


@app.command()
def download_weights(
    model: Annotated[str, typer.Argument(help="Name on the hub, such as org/model, or a directory to convert in.")],
    revision: Annotated[str, typer.Option(help="Branch, tag or commit.")] = "main",
    token: Annotated[
        str | None, typer.Option(help="For gated and private models; HF_TOKEN keeps it out of process lists.")
    ] = None,
    extension: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Endings of the files to take, with commas. A single one brings configuration and tokenizer along.",
        ),
    ] = ".safetensors",
    auto_convert: Annotated[
        bool,
        typer.Option(
            help="Where there are no safetensors, take PyTorch weights and convert them; make tokenizer.json if it is "
            "missing."
        ),
    ] = True,
    verify: Annotated[
        bool, typer.Option("--verify", help="Also read what is there already, and fetch again what is damaged.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be downloaded.")] = False,
    parallel: Annotated[int, typer.Option(min=1, max=MAX_PARALLEL, help="Most transfers at a time.")] = 8,
    stall_timeout: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="A transfer that brings nothing for so long begins anew.")
    ] = 30,
    json_: Annotated[bool, typer.Option("--json", help="Print events as JSON, one a line.")] = False,
) -> None:
    """Download a model into the local cache. What is printed on stdout is its directory.

    An interrupted download goes on where it ended. A file gets its name when it is complete and has the checksum that
    the hub states.
    """
    with failures_told(as_json=json_):
        from tgis_cli.model_files.download.hub_token import find_token
        from tgis_cli.model_files.download.selection import SAFETENSORS_ENDING, parse_extensions
        from tgis_cli.model_files.download.snapshot import Order, SnapshotDownload, find_local_dir
        from tgis_cli.model_files.download.transfers import TransferOptions

        cache_dir = get_cache_dir(os.environ)
        model_dir = find_local_dir(model, cache_dir)
        can_convert = auto_convert and SAFETENSORS_ENDING in parse_extensions(extension)

        def finish(directory: Path) -> None:
            if can_convert:
                convert_weights(directory, as_json=json_)
                make_tokenizer(directory, as_json=json_)

        if model_dir is None:
            transfers = TransferOptions(
                find_token(token, os.environ, partial(tell, as_json=json_)), parallel, stall_timeout
            )
            order = Order(model, revision, extension, can_convert, verify, transfers)
            download = SnapshotDownload(order, cache_dir, as_json=json_)
            if dry_run and verify:
                raise UsageError("--dry-run and --verify exclude each other: one reads nothing, the other everything.")
            if dry_run:
                print_plan(download, as_json=json_)
                return
            model_dir = download.run(finish)
        elif verify or dry_run:
            raise UsageError(f"{model} is a directory: there is nothing to download, and nothing to compare it with.")
        else:
            tell(f"{model} is a directory: nothing is downloaded", as_json=json_)
            finish(model_dir)
        if auto_convert and not can_convert:  # files for another program are complete without it
            make_tokenizer(model_dir, as_json=json_)
        tell_result(model_dir, as_json=json_)


def print_plan(download: SnapshotDownload, *, as_json: bool) -> None:
    """What would be downloaded, and where to."""
    from tgis_cli.model_files.cache.disk import describe_free_space, free_disk_bytes

    chosen = download.choose_files()
    missing = {file.name for file in chosen.missing.files}
    target = download.folder.snapshot(chosen.selection.listing.commit)
    free_bytes = free_disk_bytes(download.folder.root)
    files = [
        {"name": file.name, "bytes": file.size, "is_present": file.name not in missing}
        for file in chosen.selection.files
    ]
    facts = {
        "model_dir": target,
        "files": files,
        "num_bytes": chosen.selection.num_bytes,
        "missing_bytes": chosen.missing.num_bytes,
        "free_bytes": free_bytes,
    }
    summary = (
        f"{format_bytes(chosen.missing.num_bytes)} of {format_bytes(chosen.selection.num_bytes)} would be "
        f"downloaded to {target}; {describe_free_space(free_bytes)} there"
    )
    if as_json:
        tell(summary, "plan", as_json=True, **facts)
    else:
        for entry in files:
            state = "there already" if entry["is_present"] else ""
            print(f"{format_bytes(int(str(entry['bytes']))):>10}  {entry['name']:<48} {state}".rstrip())
        print(summary)
    download.check_space(chosen)


def convert_weights(model_dir: Path, *, as_json: bool) -> None:
    """If there are others than safetensors only."""
    from tgis_cli.model_files.convert.to_safetensors import convert_to_safetensors, needs_conversion

    if needs_conversion(model_dir):
        convert_to_safetensors(model_dir, as_json=as_json)


def make_tokenizer(model_dir: Path, *, as_json: bool) -> None:
    """If there is an older one only."""
    from tgis_cli.model_files.convert.fast_tokenizer import convert_to_fast_tokenizer, has_slow_tokenizer

    if has_slow_tokenizer(model_dir):
        tell("making tokenizer.json", as_json=as_json)
        convert_to_fast_tokenizer(model_dir, model_dir)
