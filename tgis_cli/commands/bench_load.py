"""``tgis bench load``: send requests to a server, and measure what its users would experience."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import Annotated

import typer

from tgis_cli.bench.load.options import PARAMETERS, LoadOptions, with_load_options
from tgis_cli.bench.report.outputs import Csv, Html, Json, Markdown, Outputs, Verbose
from tgis_cli.clients.connection import Connection
from tgis_cli.clients.connection_options import PANEL, with_connection_options
from tgis_cli.clients.parameter_flags import with_parameters
from tgis_cli.clients.tls_files import name_flags
from tgis_cli.terminal.exits import as_told, leave
from tgis_cli.terminal.quiet_input import quiet_input
from tgis_cli.terminal.stop_signals import Stop, interrupted_by_signals
from tgis_server.errors import TgisError

app = typer.Typer(add_completion=False)

LAUNCH_HELP = 'Start a server for the run with these arguments of `tgis launch`, such as demo or "MODEL --num-shard 2".'
METRICS_HELP = "HTTP address at which to read the server's /metrics. [default: that of the running server]"
SELF_HELP = "Measure the generator itself instead of a server: its CPU time per token, and the latency that it adds."


@app.command()
@with_connection_options
@partial(with_parameters, only=PARAMETERS)
@with_load_options
def load(
    connection: Connection,
    options: LoadOptions,
    launch: Annotated[str | None, typer.Option(metavar="ARGS", help=LAUNCH_HELP, rich_help_panel=PANEL)] = None,
    metrics_url: Annotated[str | None, typer.Option(metavar="URL", help=METRICS_HELP, rich_help_panel=PANEL)] = None,
    is_self: Annotated[bool, typer.Option("--self", help=SELF_HELP)] = False,
    json_: Json = None,
    csv: Csv = None,
    markdown: Markdown = None,
    html: Html = None,
    verbose: Verbose = False,
) -> None:
    """Send requests to a server, and measure what its users would experience.

    Without options, it sends prompts of 128 tokens, each answered with 64, in 1, 8 and 32 concurrent streams, as far as
    30 seconds allow. The exit code is 0 if the figures can be trusted, 1 if they cannot or if there is no server, 2
    after wrong usage, and 130 after Ctrl-C, when the figures cover what was measured until then. docs/benchmarking.md
    lists all exit codes.
    """
    from tgis_cli.bench.load.live import Live
    from tgis_cli.bench.load.run import measure_generator, run_load
    from tgis_cli.bench.load.target import open_target
    from tgis_cli.own_server.launch_line import read_launch_line

    outputs = Outputs(json_, csv, markdown, html, is_verbose=verbose)
    server_config = read_launch_line(launch, "--launch").config_file if launch is not None else None
    tls_files = {"--ca": connection.ca, "--cert": connection.cert, "--key": connection.key}
    outputs.check({"--prompts": options.prompts, "--launch": server_config, **tls_files})
    if is_self:
        flags = {"--url": connection.url, "--launch": launch, "--metrics-url": metrics_url}
        of_server = [*(flag for flag, value in flags.items() if value is not None), name_flags(connection)]
        with interrupted_by_signals():
            result = measure_generator(options, [flag for flag in of_server if flag])
        outputs.write(result)
        leave(0 if result.is_valid else 1)
    stop, is_written = Stop(), False
    try:
        with (
            interrupted_by_signals(),
            quiet_input(sys.stderr),
            open_target(connection, launch, metrics_url, os.environ, sys.stderr) as target,
        ):
            live = Live(sys.stderr, os.environ)
            result = run_load(options, target, live, on_start=lambda run: stop.calling(run.stop))
            is_written = True
            outputs.write(result)  # before the server is stopped, which takes seconds and may be interrupted
    except TgisError as error:
        if is_written:  # with --json -, stdout gets no second object
            as_told(error)
        raise
    leave(stop.exit_code(0 if result.is_valid else 1))
