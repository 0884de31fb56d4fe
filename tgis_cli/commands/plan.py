"""``tgis plan``: what a model needs, and whether it runs here or on given devices. Nothing is loaded or written."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tgis_cli.commands.shared_options import Token
from tgis_cli.model_files.completion import complete_model
from tgis_cli.terminal.capabilities import find_width
from tgis_cli.terminal.exits import as_told
from tgis_cli.terminal.options import with_serve_options
from tgis_cli.terminal.stop_signals import interrupted_by_signals
from tgis_server.options import load_config

app = typer.Typer(add_completion=False)


def plan(
    flags: Mapping[str, Any],
    config_file: Path | None,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="GPU", help="Plan for GPUs such as 80GB, H100, 2xA100-40 or RTX4090:2 instead of this machine."
        ),
    ] = None,
    cpu: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Plan for a CPU like this one with this much free memory.")
    ] = None,
    token: Token = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a model needs and where it fits: parameters, memory, longest sequences, and what a launch would choose.

    Reads only config.json and the headers of the weights: from a directory, the cache, or the hub.
    Takes the options of `tgis launch`. The exit code is 4 if the model does not fit.
    """
    from tgis_cli.machine import probe_machine
    from tgis_cli.plan import describe_report, make_report, open_model, read_devices

    environ = dict(os.environ)
    loaded = load_config(flags, environ, config_file)
    for_this_machine = gpu is None and cpu is None  # otherwise, its GPUs do not matter, and their driver may hang
    machine = probe_machine(environ if for_this_machine else environ | {"CUDA_VISIBLE_DEVICES": ""})
    devices = read_devices(gpu, cpu, loaded.config, machine)
    with interrupted_by_signals(), open_model(loaded.config, environ, token) as source:
        report = make_report(source, devices, loaded, environ)
        width = find_width(sys.stdout)
        text = (
            json.dumps(report.as_dict(), indent=1, default=str) if json_ else "\n".join(describe_report(report, width))
        )
        print(text)
    if report.problem is not None:
        raise as_told(report.problem)


MODEL = "Directory, or hub id of a cached or remote model; without one, the demo model."

app.command()(with_serve_options(plan, positional_model=MODEL, complete_model=complete_model))
