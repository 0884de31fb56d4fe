"""The flags of generation parameters, made from ``PARAMETERS``, for every command that generates."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from typing import Annotated, Any

import typer

from tgis_cli.clients.parameter_table import PARAMETERS, Parameter
from tgis_cli.clients.parameters import Parameters
from tgis_cli.terminal.callbacks import make_callback


def with_parameters(body: Callable[..., None], *, only: Collection[str] = tuple(PARAMETERS)) -> Callable[..., None]:
    """Make a Typer callback that takes a flag for each parameter, for a body with an argument ``parameters``.

    What another such function passes first, such as a connection, goes to the body as it comes.

    Args:
        only: the names of the parameters; the others are not given.
    """
    signature = inspect.signature(body, eval_str=True)
    own = [parameter for parameter in signature.parameters.values() if parameter.name != "parameters"]

    def command(*first: Any, **values: Any) -> None:
        flags = {name: values.pop(name) for name in only}
        body(*first, parameters=Parameters.from_flags(flags), **values)

    return make_callback(command, body, [*own, *(to_flag(PARAMETERS[name]) for name in only)])


def to_flag(parameter: Parameter) -> inspect.Parameter:
    """A text that ``Parameters`` reads, so that flags, JSON and prompt loops give the same errors."""
    kinds: dict[type, Any] = {bool: bool | None, str: list[str] | None}
    names = f"{parameter.flag}/--no-{parameter.flag[2:]}" if parameter.has_negative else parameter.flag
    option = typer.Option(
        names,
        help=parameter.help,
        metavar=parameter.metavar,
        rich_help_panel=parameter.panel,
        show_default=False,
    )
    return inspect.Parameter(
        parameter.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kinds.get(parameter.kind, str | None), option],
    )
