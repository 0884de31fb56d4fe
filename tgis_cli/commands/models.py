"""``tgis models`` lists the local cache, and ``tgis models rm`` removes models from it."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from tgis_cli.model_files import get_cache_dir
from tgis_cli.model_files.completion import complete_cached_model
from tgis_cli.terminal.capabilities import is_terminal
from tgis_cli.terminal.stop_signals import interrupted_by_signals
from tgis_cli.terminal.tables import print_sentence
from tgis_server.errors import UsageError
from tgis_server.words.sizes import format_bytes

if TYPE_CHECKING:
    from tgis_cli.model_files.cache.removal import Removal

app = typer.Typer(add_completion=False)
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback(invoke_without_command=True)
def models(ctx: typer.Context, json_: Json = False) -> None:
    """List the models in the local cache with revision, size and engine, and show whether they are complete."""
    if ctx.invoked_subcommand is None:
        from tgis_cli.model_files.inventory import list_models
        from tgis_cli.model_files.inventory_table import print_models

        cache_dir = get_cache_dir(os.environ)
        found = list_models(cache_dir)
        if json_:
            report = {"cache_dir": str(cache_dir), "models": [model.as_dict() for model in found]}
            print(json.dumps(report, indent=1, default=str))
        elif found:
            print_models(found)
        else:
            print_sentence(
                f"There are no models in the cache {cache_dir}; `tgis download-weights org/model` downloads one."
            )


@app.command()
def rm(
    model: Annotated[str, typer.Argument(help="Name as `tgis models` shows it.", autocompletion=complete_cached_model)],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit; all revisions if left out.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be removed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json_: Json = False,
) -> None:
    """Remove a model, or one revision of it, from the local cache. Files that other revisions use are kept."""
    from tgis_cli.model_files.cache.removal import prepare_removal, remove

    removal = prepare_removal(get_cache_dir(os.environ), model, revision)
    if not json_:
        print_sentence(removal.describe(), flush=True)
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
    """Ask on a terminal; refuse elsewhere."""
    if not is_terminal(sys.stdin):
        raise UsageError(f"{removal.model} is not removed: there is no terminal to ask on; use --yes (or --dry-run).")
    print("Remove this? [y/N] ", end="", flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        print("nothing was removed")
        raise typer.Exit(1)
