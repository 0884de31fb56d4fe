"""Gather what the checks need. Invalid variables become findings; invalid flags are still errors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tgis_cli.decide.resolve import Resolved, resolve
from tgis_cli.doctor.verdict import Host, Subject
from tgis_cli.machine import probe_machine
from tgis_server.errors import TgisError, UsageError
from tgis_server.options import LoadedConfig, find_conflicts, merge_options, options, parse_value


def examine(
    flags: Mapping[str, Any], environ: Mapping[str, str], config_file: Path | None = None, host: Host | None = None
) -> Subject:
    """Look at the machine, and at the model if one is named.

    Raises:
        UsageError: a flag or the config file is wrong.
    """
    loaded, refused = read_options(flags, environ, config_file)
    machine = probe_machine(environ)
    resolved: Resolved | None = None
    problem: Exception | None = None
    if loaded.config.model_name is not None or loaded.config.rehearse:
        try:
            resolved = resolve(loaded, environ, machine)
        except (TgisError, OSError) as error:
            problem = error
    return Subject(environ, loaded, machine, host or Host(), resolved, problem, refused)


def read_options(
    flags: Mapping[str, Any], environ: Mapping[str, str], config_file: Path | None
) -> tuple[LoadedConfig, tuple[str, ...]]:
    """Read options as the launcher does, but leave out variables that it would refuse; also return the refusals."""
    accepted, refused = dict(environ), []
    for option in options():
        while flags.get(option.name) is None and (variable := option.find_variable(accepted)):
            try:
                parse_value(option, accepted[variable].strip(), f"The variable {variable}")
                break
            except UsageError as error:
                refused.append(str(error))
                del accepted[variable]
    loaded = merge_options(flags, accepted, config_file)
    return loaded, (*refused, *find_conflicts(loaded.config))
