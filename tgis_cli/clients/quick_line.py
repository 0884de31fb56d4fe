"""The command line of ``tgis generate`` without the framework of the other commands.

That framework takes as long to import as a short answer takes to generate. This parser has the same options, but
accepts only lines that are plainly correct: it leaves mistakes, ``--help`` and anything else to the framework.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tgis_cli.clients.connection import Connection
from tgis_cli.clients.generation import MAX_PARALLEL, generate
from tgis_cli.clients.parameter_table import PARAMETERS
from tgis_cli.clients.parameters import Parameters
from tgis_cli.terminal.exits import errors_as_exit_codes, leave

CONNECTION = {
    "--url": "url",
    "--ca": "ca",
    "--cert": "cert",
    "--key": "key",
    "--tls-server-name": "tls_server_name",
}
PATHS = ("ca", "cert", "key")
COUNTS = {"parallel": range(1, MAX_PARALLEL + 1), "num_answers": range(1, 2**31)}
WITH_VALUE = {
    **{parameter.flag: name for name, parameter in PARAMETERS.items() if parameter.kind is not bool},
    **CONNECTION,
    "--file": "file",
    "--parallel": "parallel",
    "-n": "num_answers",
}
SWITCHES: dict[str, tuple[str, bool]] = {
    **{parameter.flag: (name, True) for name, parameter in PARAMETERS.items() if parameter.kind is bool},
    **{f"--no-{p.flag[2:]}": (name, False) for name, p in PARAMETERS.items() if p.has_negative},
    "--json": ("json_", True),
    "--wait": ("wait", True),
    "--verbose": ("verbose", True),
    "-v": ("verbose", True),
}


def run_quickly(arguments: Sequence[str]) -> None:
    """Run the command and end the process; return only if the framework must parse the line."""
    values = read_line(arguments)
    if values is None:
        return
    with errors_as_exit_codes(debug=False):
        connection = Connection(**{name: values.pop(name) for name in CONNECTION.values() if name in values})
        parameters = Parameters.from_flags({name: values.pop(name) for name in PARAMETERS if name in values})
        leave(generate(connection, parameters, **values))


def read_line(arguments: Sequence[str]) -> dict[str, Any] | None:
    """The values by name, as the framework would pass them; ``None`` if it must parse the line itself."""
    values: dict[str, Any] = {}
    words: list[str] = []
    before = ""
    rest = iter(arguments)
    for argument in rest:
        flag, has_value, value = argument.partition("=")
        if argument == "--":
            words += rest
        elif argument[:1] != "-" or argument == "-":
            if before == "--wait" and argument[:1].isdecimal():  # may be meant as seconds
                return None
            words.append(argument)
        elif flag in SWITCHES and not has_value:
            name, state = SWITCHES[flag]
            values[name] = state
        elif flag in WITH_VALUE and (not has_value or flag[:2] == "--"):
            text = value if has_value else next(rest, None)
            if text is None or not put(values, WITH_VALUE[flag], text):
                return None
        else:
            return None
        before = argument
    return values | ({"text": words} if words else {})


def put(values: dict[str, Any], name: str, text: str) -> bool:
    """Store a value; return whether it is valid, as far as this parser checks."""
    if name in PATHS:
        values[name] = Path(text)
    elif name in COUNTS:
        if not (text.isascii() and text.isdecimal() and int(text) in COUNTS[name]):
            return False
        values[name] = int(text)
    elif name in PARAMETERS and PARAMETERS[name].kind is str:
        values.setdefault(name, []).append(text)
    else:
        values[name] = text
    return True
