"""``tgis bench ab``: two configurations in alternating rounds, so that a noisy machine slows both alike."""

from __future__ import annotations

import sys
from functools import partial
from typing import Annotated, Any

import typer

from tgis_cli.bench.ab import EQUAL_WITHIN, MAX_PAIRS, METRIC
from tgis_cli.bench.load.options import PARAMETERS, ROUND_S, ROUND_STREAMS, LoadOptions, with_load_options
from tgis_cli.bench.report.outputs import Csv, Html, Json, Markdown, Outputs
from tgis_cli.bench.shares import read_share
from tgis_cli.clients.parameter_flags import with_parameters
from tgis_cli.terminal.exits import leave
from tgis_cli.terminal.quiet_input import quiet_input
from tgis_cli.terminal.stop_signals import Stop, interrupted_by_signals

app = typer.Typer(add_completion=False)


def side(name: str, metavar: str, what: str) -> Any:
    return typer.Option(name, metavar=metavar, help=what, rich_help_panel="Sides", show_default=False)


LAUNCH = 'Start {} with these arguments of `tgis launch`: "MODEL --num-shard 2".'
URL = "Address of {}, if it is already running."
PYTHON = "Start {} with the installation of this interpreter, such as other/bin/python."
REFUSED = ("sweep", "goodput", "speed")  # a round has one level, and replays no trace
DEFAULTS = {"concurrency": f"{ROUND_STREAMS}", "duration": f"{ROUND_S:g}"}
METRIC_HELP = "The figure to compare: output_tokens_per_s, requests_per_s, ttft_p50, itl_p50, e2e_p95, ..."


@app.command()
@partial(with_parameters, only=PARAMETERS)
@partial(with_load_options, hidden=REFUSED, defaults=DEFAULTS)
def ab(
    options: LoadOptions,
    a: Annotated[str | None, side("--a", "ARGS", LAUNCH.format("A"))] = None,
    b: Annotated[str | None, side("--b", "ARGS", LAUNCH.format("B"))] = None,
    a_url: Annotated[str | None, side("--a-url", "HOST:PORT", URL.format("A"))] = None,
    b_url: Annotated[str | None, side("--b-url", "HOST:PORT", URL.format("B"))] = None,
    a_python: Annotated[str | None, side("--a-python", "PATH", PYTHON.format("A"))] = None,
    b_python: Annotated[str | None, side("--b-python", "PATH", PYTHON.format("B"))] = None,
    metric: Annotated[str, typer.Option(metavar="NAME", help=METRIC_HELP)] = METRIC,
    rounds: Annotated[int, typer.Option(metavar="N", help="Maximum number of pairs of rounds.", min=2)] = MAX_PAIRS,
    equal_within: Annotated[
        str, typer.Option(metavar="SHARE", help="Smaller differences count as equal.")
    ] = f"{EQUAL_WITHIN:.0%}",
    restart: Annotated[bool, typer.Option("--restart", help="Run only one server at a time.")] = False,
    json_: Json = None,
    csv: Csv = None,
    markdown: Markdown = None,
    html: Html = None,
) -> None:
    """Compare two configurations in alternating rounds.

    A round is a load of 8 streams for 5 seconds unless the options say otherwise; the rounds alternate as A B B A. The
    comparison ends as soon as A and B are known to differ or to be equal. The exit code is 0 whatever the verdict, 1 if
    the figures cannot be trusted, and 130 after Ctrl-C.
    """
    from tgis_cli.bench.ab_run import Side, run_ab

    outputs = Outputs(json_, csv, markdown, html)
    sides = (Side.from_flags("A", a, a_url, a_python), Side.from_flags("B", b, b_url, b_python))
    outputs.check({"--prompts": options.prompts, "--a": sides[0].config_file, "--b": sides[1].config_file})
    within = read_share(equal_within, "--equal-within")
    stop = Stop()
    with interrupted_by_signals(), quiet_input(sys.stderr):
        result = run_ab(
            options,
            sides,
            metric=metric,
            max_pairs=rounds,
            equal_within=within,
            restarts=restart,
            err=sys.stderr,
            on_start=lambda run: stop.calling(run.stop),
        )
    outputs.write(result)
    leave(stop.exit_code(0 if result.is_valid else 1))
