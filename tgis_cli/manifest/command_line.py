"""The launcher's arguments in the container: the options that the user gave, and those that a cluster needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tgis_cli.manifest.explained import Explained
from tgis_server.options import LoadedConfig, Option, options
from tgis_server.words.sizes import write_bytes_for_option
from tgis_server.words.url_credentials import split_credentials

LEFT_OUT = ("model_name", "revision")  # decided by where the model is in the pod


def list_given(loaded: LoadedConfig) -> dict[str, Any]:
    """The options that have a value from a flag, the environment or a config file, without secrets."""
    return {
        option.name: getattr(loaded.config, option.name)
        for option in options()
        if is_given(option, loaded) and option.name not in LEFT_OUT and not is_secret(option, loaded)
    }


def is_given(option: Option, loaded: LoadedConfig) -> bool:
    """Whether the option was set. An image sets variables such as PORT to their defaults: those do not count."""
    origin = loaded.origins[option.name]
    restates = origin.startswith("environment ") and getattr(loaded.config, option.name) == option.default
    return origin != "default" and not restates


def list_secret(loaded: LoadedConfig) -> list[Option]:
    """The options whose values contain credentials, which must come from a Secret."""
    return [option for option in options() if is_secret(option, loaded)]


def is_secret(option: Option, loaded: LoadedConfig) -> bool:
    value = getattr(loaded.config, option.name)
    return option.opt.has_credentials and bool(value) and bool(split_credentials(value)[1])


def write_args(
    model: str, revision: str | None, values: Mapping[str, Any], reasons: Mapping[str, str]
) -> Iterator[str | Explained]:
    """``launch MODEL --flag=value …``, in the order of the options.

    Args:
        model: empty for the demo model.
        values: by name of the option.
        reasons: those of the values that the user did not give, by name of the option.
    """
    yield "launch"
    if model:
        yield model
    if revision is not None:
        yield f"--revision={revision}"
    for option in options():
        if option.name in values:
            flag = write_flag(option, values[option.name])
            yield Explained(flag, reasons[option.name]) if option.name in reasons else flag


def write_flag(option: Option, value: Any) -> str:
    if option.type is bool and not option.opt.takes_value:
        return option.flag if value else f"--no-{option.flag[2:]}"
    return f"{option.flag}={write_value(option, value)}"


def write_value(option: Option, value: Any) -> str:
    """The value as a user would type it: round sizes with a unit."""
    if isinstance(value, bool):
        return str(value).lower()
    if option.opt.unit == "bytes":
        return write_bytes_for_option(value)
    if isinstance(value, float):
        return f"{value:.12g}"
    return str(value) if not isinstance(value, Path) else value.as_posix()
