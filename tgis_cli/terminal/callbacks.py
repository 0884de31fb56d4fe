"""Builds the functions that Typer makes into commands, for bodies that share options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable


def make_callback(
    command: Callable[..., None], body: Callable[..., None], parameters: Iterable[inspect.Parameter]
) -> Callable[..., None]:
    """Give a command the name and the help of its body, and the parameters that Typer reads.

    Args:
        command: calls the body; it gets the values of the parameters by name.
    """
    command.__doc__ = inspect.getdoc(body)
    command.__name__ = body.__name__
    command.__annotations__ = {}
    by_name = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    command.__dict__["__signature__"] = inspect.Signature(by_name)
    return command
