"""The launch options: their types, defaults, checks and help, where values come from, and which options conflict."""

from tgis_server.options.conflicts import find_conflicts
from tgis_server.options.faults import Fault
from tgis_server.options.option import Option
from tgis_server.options.sources import Argument, LoadedConfig, load_config, merge_options
from tgis_server.options.table import DTYPES, FRAMEWORKS, GROUPS, ServeConfig, options
from tgis_server.options.values import FALSE_WORDS, describe_accepted, parse_bytes, parse_value

__all__ = [
    "DTYPES",
    "FALSE_WORDS",
    "FRAMEWORKS",
    "GROUPS",
    "Argument",
    "Fault",
    "LoadedConfig",
    "Option",
    "ServeConfig",
    "describe_accepted",
    "find_conflicts",
    "load_config",
    "merge_options",
    "options",
    "parse_bytes",
    "parse_value",
]
