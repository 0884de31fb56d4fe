"""Every launch option: its type, default, check and help, where its value comes from, and what it excludes."""

from tgis_server.options.config import (
    DTYPES,
    FALSE_WORDS,
    FRAMEWORKS,
    GROUPS,
    LoadedConfig,
    Option,
    ServeConfig,
    describe_accepted,
    find_conflicts,
    load_config,
    merge_options,
    options,
    parse_bytes,
    parse_value,
)
from tgis_server.options.faults import Fault

__all__ = [
    "DTYPES",
    "FALSE_WORDS",
    "FRAMEWORKS",
    "GROUPS",
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
