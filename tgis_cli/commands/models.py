"""``tgis models``: what is in the local cache, and ``tgis models rm`` to take something out."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from tgis_cli.model_files import get_cache_dir
from tgis_cli.terminal.progress import format_seconds
from tgis_cli.terminal.stop_signals import interrupted_by_signals
from tgis_server.errors import UsageError
from tgis_server.words.sizes import format_bytes

if TYPE_CHECKING:
    from tgis_cli.model_files.cache.removal import Removal
    from tgis_cli.model_files.inventory import CachedModel

app = typer.Typer(add_completion=False, rich_markup_mode="rich")
DISPENSABLE = ("architecture", "format", "last used", "engine", "revision")  # in this order, where space is scarce
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback(invoke_without_command=True)
def models(ctx: typer.Context, json_: Json = False) -> None:
    """List the models in the local cache: which revision, how large, who would serve it, and whether it is complete."""
    if ctx.invoked_subcommand is None:
        from tgis_cli.model_files.inventory import list_models

        cache_dir = get_cache_dir(os.environ)
        found = list_models(cache_dir)
        if json_:
            report = {"cache_dir": str(cache_dir), "models": [model.as_dict() for model in found]}
            print(json.dumps(report, indent=1, default=str))
        elif found:
            print_models(found)
        else:
            print(f"There are no models in the cache {cache_dir}; `tgis download-weights org/model` gets one.")


def print_models(found: Sequence[CachedModel]) -> None:
    """A table, and under it what is wrong with which."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = [describe_model(model) for model in found]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 10_000)
    for least in DISPENSABLE:  # names and sizes are never cut
        if sum(widths.values()) + 2 * len(widths) > console.width:
            del widths[least]
    table = Table(box=None, pad_edge=False)
    for name in widths:
        table.add_column(name, header_style="dim", justify="right" if name == "size" else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(row[name]) for name in widths))
    console.print(table)
    for model in found:
        for problem in model.problems:
            print(f"{model.model}: {problem}")
        if not model.engine and model.is_complete:
            print(f"{model.model}: {model.why_no_engine}")


def describe_model(model: CachedModel) -> dict[str, str]:
    """Cells by column."""
    return {
        "model": model.model,
        "revision": ", ".join((*model.revisions, model.commit[:8])) or "-",
        "size": format_bytes(model.num_bytes),
        "format": model.format or "-",
        "architecture": model.architecture or "-",
        "engine": model.engine or "none",
        "complete": "yes" if model.is_complete else "no",
        "last used": format_age(model.last_used),
    }


def format_age(when: float) -> str:
    if not when:
        return "-"
    days = (time.time() - when) / 86_400
    return f"{days:.0f} days ago" if days >= 2 else f"{format_seconds(max(0, days * 86_400))} ago"


@app.command()
def rm(
    model: Annotated[str, typer.Argument(help="Name as `tgis models` shows it.")],
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit; all revisions where it is left out.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be removed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json_: Json = False,
) -> None:
    """Remove a model, or a revision of it, from the local cache. Content that other revisions use stays."""
    from tgis_cli.model_files.cache.removal import prepare_removal, remove

    removal = prepare_removal(get_cache_dir(os.environ), model, revision)
    if not json_:
        print(removal.describe(), flush=True)
    if not dry_run:
        with interrupted_by_signals():
            if not yes:
                confirm(removal)
            remove(removal)
    if json_:
        print(json.dumps(asdict(removal) | {"is_removed": not dry_run}, indent=1, default=str))
    elif not dry_run:
        print(f"removed {format_bytes(removal.num_bytes)}")


def confirm(removal: Removal) -> None:
    """Ask on a terminal; elsewhere nobody can answer."""
    if not sys.stdin.isatty():
        raise UsageError(f"{removal.model} is not removed: nobody can be asked here, so say --yes (or --dry-run).")
    print("Remove this? [y/N] ", end="", flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        print("nothing is removed")
        raise typer.Exit(1)
