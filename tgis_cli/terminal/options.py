"""The options of ``tgis launch`` on a command line, made from ``tgis_server.options.options()``.

The command line passes raw texts to ``load_config``, so that flags, environment and config file give the same values
and errors. For the same reason, environment variables are named in the help but not read here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from tgis_cli.terminal.callbacks import make_callback
from tgis_server.errors import UsageError
from tgis_server.options import Argument, Option, options
from tgis_server.words.sizes import format_bytes

# A command's body: raw flags by option name (None = not given), the config file, and the command's own parameters.
Body = Callable[..., None]
Complete = Callable[[str], list[str]]  # from the start of a word to the words that a shell offers

SAME_AS_MODEL = "The same as the argument MODEL."
LAUNCHED = "Directory, or hub id in the local cache; without one a small demo model is served."


def with_serve_options(
    body: Body,
    *,
    positional_model: str | None = LAUNCHED,
    only: Collection[str] | None = None,
    complete_model: Complete | None = None,
) -> Callable[..., None]:
    """Make a Typer callback that takes serving options, ``--config`` and the body's own parameters.

    Args:
        body: called as ``body(flags, config_file, **own)``; parameters after the second are its own.
        positional_model: help of the model as the first argument; ``None``: it is an option only.
        only: the names of the options; ``None``: all. Without ``model_name`` no flag takes the model.
        complete_model: gives the names that a shell may offer for the start of a model's name.
    """
    offered = [option for option in options() if only is None or option.name in only]
    own = list(inspect.signature(body, eval_str=True).parameters.values())[2:]
    parameters = [model_argument(positional_model, complete_model)] if positional_model else []
    model = SAME_AS_MODEL if positional_model else None
    parameters += [
        config_file_parameter(),
        *own,
        *(to_parameter(option, model if option.name == "model_name" else None) for option in offered),
    ]

    def command(**values: Any) -> None:
        flags = {option.name: values.pop(option.name) for option in offered}
        config_file = values.pop("config_file")
        flags["model_name"] = pick_model(values.pop("model", None), flags.get("model_name"))
        body(flags, config_file, **values)

    return make_callback(command, body, parameters)


def pick_model(argument: str | None, flag: str | None) -> str | None:
    if argument is not None and flag is not None and argument != flag:
        raise UsageError(f"Two models are given, {argument} and --model-name {flag}: leave one out.")
    return flag if argument is None else Argument(argument)


def keyword(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def model_argument(help_text: str, complete: Complete | None) -> inspect.Parameter:
    argument = typer.Argument(help=help_text, metavar="MODEL", show_default=False, autocompletion=complete)
    return keyword("model", Annotated[str | None, argument])


def config_file_parameter() -> inspect.Parameter:
    help_text = "TOML file with options; flags and the environment override it."
    return keyword("config_file", Annotated[Path | None, typer.Option("--config", metavar="FILE", help=help_text)])


def to_parameter(option: Option, text: str | None = None) -> inspect.Parameter:
    """An option as Typer sees it: a string, or a pair of flags for a boolean.

    Args:
        text: replaces its help and default.
    """
    is_switch = option.type is bool and not option.opt.takes_value
    negative = f"/--no-{option.name.replace('_', '-')}" if is_switch else ""
    names = [*([f"-{option.opt.short}"] if option.opt.short else []), option.flag + negative]
    kwargs: dict[str, Any] = {
        "help": f"{text} [env: {option.env}]" if text else help_text(option),
        "hidden": option.opt.hidden,
        "rich_help_panel": option.opt.group,
        "show_default": False,
        "metavar": "" if is_switch else metavar(option),
    }
    if option.opt.choices:
        kwargs["autocompletion"] = complete_from(option.opt.choices)
    return keyword(option.name, Annotated[bool | None if is_switch else str | None, typer.Option(*names, **kwargs)])


def complete_from(choices: Iterable[str]) -> Complete:
    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return complete


def metavar(option: Option) -> str:
    if option.type is bool:
        return "true|false"
    if option.opt.unit == "bytes":
        return "SIZE"
    if option.opt.choices and len("|".join(option.opt.choices)) <= 26:
        return "|".join(option.opt.choices)
    return {int: "INT", float: "NUMBER", Path: "PATH"}.get(option.type, "TEXT")


def help_text(option: Option) -> str:
    """``What it does. [env: PORT; default: 3000]``, which ``option_help`` takes apart."""
    if option.default is None:
        default = f"default: {option.opt.unset}" if option.opt.unset else ""
    else:
        is_size = option.opt.unit == "bytes"
        default = f"default: {format_bytes(option.default) if is_size else format_default(option.default)}"
    facts = "; ".join(filter(None, (f"env: {option.env}", default)))
    return f"{option.opt.help} [{facts}]"


def format_default(value: object) -> str:
    """As typed on a command line: ``true``, ``60``, ``0.2``."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
