"""``tgis run``: serve a model, complete texts with it, and stop."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from tgis_cli.clients.generation import Generation
from tgis_cli.clients.parameter_flags import with_parameters
from tgis_cli.clients.parameters import Parameters
from tgis_cli.clients.presenter import Presenter
from tgis_cli.commands.generate import AsJson, File, NumAnswers, Parallel, Text
from tgis_cli.model_files.completion import complete_model
from tgis_cli.own_server.own_server import OwnServer
from tgis_cli.own_server.words import empty_input_explained, explain_word, make_options, split_words
from tgis_cli.terminal.exits import leave
from tgis_cli.terminal.options import with_serve_options
from tgis_cli.terminal.stop_signals import EXIT_INTERRUPTED, ended_by_signals

app = typer.Typer(add_completion=False)

OFFERED = ("revision", "dtype", "device", "num_shard", "kv_cache_memory", "max_sequence_length", "rehearse")
MODEL_HELP = "Directory, or hub id in the local cache; without one the small demo model."

Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the server's log, and statistics, on stderr.")]


@app.command()
@partial(with_serve_options, positional_model=MODEL_HELP, only=OFFERED, complete_model=complete_model)
@with_parameters
def run(
    flags: dict[str, Any],
    config_file: Path | None,
    parameters: Parameters,
    text: Text = None,
    json_: AsJson = False,
    verbose: Verbose = False,
    file: File = None,
    parallel: Parallel = 8,
    num_answers: NumAnswers = 1,
) -> None:
    """Try a model: serve it on this machine only, complete text with it, and stop the server.

    If the first argument contains spaces, it is a prompt for the demo model. All other options of `tgis
    launch` can be given in the environment or with --config, except those for addresses, restarts, draining, the log
    format and the termination log, which are fixed. TLS variables are ignored. The server's log is in
    ~/.local/state/tgis/run-logs.
    """
    model, words = split_words(flags.pop("model_name"), text or [])
    server = OwnServer(
        model or "the demo model",
        make_options(model, flags, config_file, parameters),
        os.environ,
        sys.stderr,
        shows_log=verbose,
        explain_model=partial(explain_word, model, words),
    )
    presenter = Presenter.open(os.environ, verbose=verbose)
    generation = Generation(server, parameters, presenter, as_json=json_, num_answers=num_answers, parallel=parallel)
    with ended_by_signals(), empty_input_explained(model):
        is_complete = generation.run(words, file)
    leave(0 if is_complete else EXIT_INTERRUPTED)
