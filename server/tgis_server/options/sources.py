"""Where the values of options come from: flag > environment > config file > default.

Nothing else reads options from the environment; child processes get the resolved ``Run``.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tgis_server.errors import UsageError
from tgis_server.host.regular_file import open_file_or_pipe
from tgis_server.options.conflicts import find_conflicts
from tgis_server.options.faults import Fault
from tgis_server.options.table import ServeConfig, options
from tgis_server.options.values import parse_value
from tgis_server.words.close_words import did_you_mean

MAX_FILE_BYTES = 1 << 20  # a config file with all options is fifty times smaller


class Argument(str):
    """The value of an option that was given without its flag, as an argument."""


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A config and the origin of each value."""

    config: ServeConfig
    origins: dict[str, str]  # "flag --port", "argument MODEL", "environment PORT", "tgis.toml" or "default"

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Value and origin of each option by name, without credentials."""
        return {
            option.name: {"value": option.get_shown(self.config), "origin": self.origins[option.name]}
            for option in options()
        }


def load_config(flags: Mapping[str, Any], environ: Mapping[str, str], config_file: Path | None = None) -> LoadedConfig:
    """Merge flags, environment and config file over the defaults.

    Args:
        flags: option name -> value from the command line; ``None`` = not given.
        environ: the environment; blank values are ignored.
        config_file: TOML with option names as top-level keys (``-`` or ``_``).

    Raises:
        UsageError: a value cannot be parsed, is out of range, or conflicts with another; the text names the option,
            its value and the values that it accepts.
    """
    loaded = merge_options(flags, environ, config_file)
    for conflict in find_conflicts(loaded.config):
        raise UsageError(conflict)
    if loaded.config.fault:
        Fault.parse(loaded.config.fault)
    return loaded


def merge_options(
    flags: Mapping[str, Any], environ: Mapping[str, str], config_file: Path | None = None
) -> LoadedConfig:
    """Like ``load_config``, but without checks across options. All wrong values are reported at once."""
    from_file, problems = read_config_file(config_file) if config_file else ({}, [])
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for option in options():
        if flags.get(option.name) is not None:
            raw = flags[option.name]
            is_argument = isinstance(raw, Argument)
            source = f"argument {option.argument}" if is_argument else f"flag {option.flag}"
            where = source if is_argument else option.flag
        elif variable := option.find_variable(environ):
            source, raw = f"environment {variable}", environ[variable].strip()
            where = f"The variable {variable}"
        elif option.name in from_file:
            source, (raw, line) = str(config_file), from_file[option.name]
            where = f"{config_file}, line {line}: {option.name}"
        else:
            values[option.name], origins[option.name] = option.default, "default"
            continue
        origins[option.name] = source
        try:
            values[option.name] = parse_value(option, raw, where)
        except UsageError as error:
            problems.append(str(error))
    if problems:
        raise UsageError(" ".join(problems))
    return LoadedConfig(ServeConfig(**values), origins)


class FileValue(NamedTuple):
    """A value of a config file, not checked yet, and the line of its key."""

    value: Any
    line: int


def read_config_file(path: Path) -> tuple[dict[str, FileValue], list[str]]:
    """The values by option name, and what is wrong with the keys.

    Raises:
        UsageError: the file cannot be read or is not TOML.
    """
    try:
        with open_file_or_pipe(path) as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise UsageError(f"Config file {path} is too large: it has more than {MAX_FILE_BYTES >> 20} MiB.")
        text = data.decode().replace("\r\n", "\n")
        table = tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"Config file {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"Config file {path} is not valid TOML: {error}.") from error
    known = {option.name for option in options()}
    found: dict[str, FileValue] = {}
    problems: list[str] = []
    has_dashes = any("-" in key for key in table)
    for key, value in table.items():
        name, line = key.replace("-", "_"), find_line(text, key)
        if name not in known:
            spellings = [each.replace("_", "-") for each in known] if has_dashes else known
            hint = did_you_mean(key, spellings) or "`tgis config show` lists the options."
            problems.append(f"Config file {path} has an unknown option {key} on line {line}. {hint}")
        elif name in found:
            problems.append(f"Config file {path} sets {name} twice, on lines {found[name].line} and {line}.")
        else:
            found[name] = FileValue(value, line)
    return found, problems


def find_line(text: str, key: str) -> int:
    """The number of the line that sets a key or opens a table of that name; ``tomllib`` does not report it."""
    opening = re.compile(rf"""\s*\[*\s*(["']?){re.escape(key)}\1\s*[=.\]]""")
    return next((number for number, line in enumerate(text.splitlines(), 1) if opening.match(line)), 1)
