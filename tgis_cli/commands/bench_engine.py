"""``tgis bench engine``: what the engine reaches alone, without gRPC and without a scheduler."""

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
from tgis_server.options import load_config

app = typer.Typer(add_completion=False)

OFFERED = (
    *("revision", "dtype", "device", "num_shard", "kv_cache_memory", "max_sequence_length", "max_batch_tokens"),
    *("rehearse", "rehearse_step_ms"),
)
MODEL_HELP = "Directory, or hub id in the local cache; without one the small demo model."

Rows = Annotated[str, typer.Option(metavar="N,N,...", help="Sequences that decode together.")]
Context = Annotated[str, typer.Option(metavar="N,N,...", help="Tokens that each of these sequences already has.")]
Prefill = Annotated[str, typer.Option(metavar="N,N,...", help="Lengths of prompts, each computed alone.")]
Repeat = Annotated[int, typer.Option(metavar="N", min=1, help="Rounds, each of which measures everything once.")]
Profile = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Print the N slowest operations of each row instead."),
]


@app.command()
@partial(with_serve_options, positional_model=MODEL_HELP, only=OFFERED, complete_model=complete_model)
def engine(
    flags: dict[str, Any],
    config_file: Path | None,
    rows: Rows = "1,8,32",
    context: Context = "128,1024",
    prefill: Prefill = "128,512,1024",
    repeat: Repeat = 5,
    profile: Profile = None,
    json_: Json = None,
    csv: Csv = None,
    markdown: Markdown = None,
) -> None:
    """Measure the engine alone, without gRPC: decode steps, prefill, and other ways of sampling.

    The engine runs in shard processes, as in a server. Beside each time, the table shows how close it comes to the
    limits of this machine, which are measured, too: the memory bandwidth for the bytes that are read, and the rate of
    matrix products for the operations. All other options of `tgis launch` can be given in the environment or with
    --config.
    """
    from tgis_cli.bench.engine.measure import EngineOptions, measure_engine
    from tgis_cli.bench.engine.work import read_sizes

    outputs = Outputs(json_, csv, markdown)
    if profile:
        outputs.refuse("--profile prints a list of operations instead of a result")
    outputs.check({"--config": config_file})
    sizes = read_sizes(rows, "--rows"), read_sizes(context, "--context"), read_sizes(prefill, "--prefill")
    loaded = load_config(flags, os.environ, config_file)
    stop = Stop()
    with interrupted_by_signals():
        result = measure_engine(loaded, os.environ, EngineOptions(*sizes, repeat, profile or 0), stop)
    if result is not None:
        outputs.write(result)
    leave(stop.exit_code())
