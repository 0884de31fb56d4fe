"""``tgis plan``: what a model needs, and whether it runs here or on stated devices. Nothing is loaded or written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tgis_cli.terminal.option_help import GroupedHelpCommand
from tgis_cli.terminal.options import with_serve_options
from tgis_cli.terminal.progress import failures_told
from tgis_server.options import load_config

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


def plan(
    flags: Mapping[str, Any],
    config_file: Path | None,
    gpu: Annotated[
        str | None,
        typer.Option(metavar="SIZE|NAME[xN]", help="Plan for GPUs such as 80GiB, H100 or L4x4, not for this machine."),
    ] = None,
    cpu: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Plan for a CPU like this one, with so much memory free.")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="For gated and private models; HF_TOKEN keeps it out of process lists."),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell what a model needs and where it fits: parameters, memory, longest sequences, and what a start would choose.

    Reads config.json and the headers of the weights, of a directory, a cached model, or a model on the hub, which is
    not downloaded. Takes the options of `tgis launch`. Ends with exit code 4 if the model does not fit.
    """
    from tgis_cli.machine import probe_machine
    from tgis_cli.plan import describe_report, make_report, open_model, read_devices

    environ = dict(os.environ)
    loaded = load_config(flags, environ, config_file)
    is_asked = gpu is None and cpu is None  # else the GPUs of this machine do not matter, and their driver may hang
    machine = probe_machine(environ if is_asked else environ | {"CUDA_VISIBLE_DEVICES": ""})
    devices = read_devices(gpu, cpu, loaded.config, machine)
    with failures_told(as_json=json_), open_model(loaded.config, environ, token) as source:
        report = make_report(source, devices, loaded, environ)
        print(json.dumps(report.as_dict(), indent=1, default=str) if json_ else "\n".join(describe_report(report)))
    if report.problem is not None:
        raise report.problem


MODEL = "Directory, hub id in the local cache, or model of the hub; without one the demo model."

app.command(cls=GroupedHelpCommand)(with_serve_options(plan, positional_model=MODEL))
