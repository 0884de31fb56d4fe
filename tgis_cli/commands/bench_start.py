"""``tgis bench start``: how long a server takes until it serves requests."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from tgis_cli.bench.report.outputs import Csv, Json, Markdown, Outputs
from tgis_cli.model_files.completion import complete_model
from tgis_cli.terminal.exits import leave
from tgis_cli.terminal.options import with_serve_options
from tgis_cli.terminal.stop_signals import Stop, interrupted_by_signals

app = typer.Typer(add_completion=False)

OFFERED = ("revision", "dtype", "device", "num_shard", "kv_cache_memory", "max_sequence_length", "rehearse")
MODEL_HELP = "Directory, or hub id in the local cache; without one the small demo model."


@app.command()
@partial(with_serve_options, positional_model=MODEL_HELP, only=OFFERED, complete_model=complete_model)
def start(
    flags: dict[str, Any],
    config_file: Path | None,
    repeat: Annotated[int, typer.Option(metavar="N", min=1, help="Cold and warm starts, N of each.")] = 3,
    json_: Json = None,
    csv: Csv = None,
    markdown: Markdown = None,
) -> None:
    """Measure how long a server takes to start: seconds by phase, bytes read from storage, and peak memory.

    Before a cold start, the model's files are dropped from the kernel's page cache, which needs no privileges; a warm
    start follows at once. The server listens on free ports of this machine only. All other options of `tgis launch` can
    be given in the environment or with --config, except those that `tgis run` fixes.
    """
    from tgis_cli.bench.start.measure import measure_starts

    outputs = Outputs(json_, csv, markdown)
    outputs.check({"--config": config_file})
    stop = Stop()
    with interrupted_by_signals():
        result = measure_starts(flags, config_file, os.environ, repeat, stop)
    outputs.write(result)
    leave(stop.exit_code())
