"""The executables of the original, for manifests and clients that start them by name.

``text-generation-launcher`` takes the same options as ``tgis launch``, but never falls back to the demo model: a pod
must not become ready on toy text. ``text-generation-server serve`` started one shard; here it starts the whole server.
The other commands of that executable are commands of ``tgis`` and take the original's options.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tgis_cli.commands.launch import LaunchCommand, Verbose
from tgis_cli.decide.legacy_commands import make_launcher, make_server, to_launch_flags
from tgis_cli.terminal.exits import errors_as_exit_codes

WHOLE_SERVER = "text-generation-server serve starts the whole server (all shards and the front-end): use `tgis launch`."


def launch(flags: Mapping[str, Any], config_file: Path | None, verbose: Verbose = False) -> None:
    """Serve a model, under the name and with the options of the original's launcher.

    `tgis launch MODEL` is the newer command and takes the same options.
    `tgis migrate FILE` explains what becomes of the settings in a manifest.
    """
    from tgis_cli.launch.serve import run_launch

    raise SystemExit(run_launch(flags, config_file, needs_model=True, is_verbose=verbose))


def serve(params: Mapping[str, Any]) -> None:
    """``text-generation-server serve``."""
    from tgis_cli.launch.serve import run_launch

    raise SystemExit(run_launch(to_launch_flags(params, os.environ), None, needs_model=True, warnings=[WHOLE_SERVER]))


def launcher() -> None:
    """The console script ``text-generation-launcher``."""
    run("text-generation-launcher", make_launcher(launch, LaunchCommand))


def server() -> None:
    """The console script ``text-generation-server``."""
    run("text-generation-server", make_server(serve, LaunchCommand))


def run(name: str, command: Any) -> None:
    with errors_as_exit_codes(debug=False):
        sys.exit(command.main(prog_name=name, standalone_mode=False))
