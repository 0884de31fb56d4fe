"""Spares commands the validators of their framework, which take longer to build than most commands take to run.

Typer 0.29 builds one with pydantic for each option, whether it is given or not: a tenth of a second. Texts, switches
and defaults need none; given numbers and paths get theirs. Other versions of Typer are left alone.
"""

from __future__ import annotations

from typing import Any

import typer.core


def spare_coercion() -> None:
    """Change how Typer converts what was given into values, in this process."""
    parameter_type = getattr(typer.core, "_TyperParameter", None)
    original = getattr(parameter_type, "process_value", None)
    if parameter_type is None or original is None or not hasattr(parameter_type, "get_runtime_param"):
        return

    def process_value(self: Any, ctx: Any, value: Any) -> Any:
        if not is_ready(self, value) or self.required:
            return original(self, ctx, value)
        if value is None and (self.multiple or self.nargs == -1):
            value = ()
        return value if self.callback is None else self.callback(ctx, self, value)

    parameter_type.process_value = process_value


def is_ready(parameter: Any, value: Any) -> bool:
    """Whether a value can be used as it is: nothing, a default, or a string for an option that takes strings."""
    annotation = parameter.type_descriptor.annotation
    if value is None or isinstance(value, int | float):
        return True
    if isinstance(value, str):
        return annotation is str
    return annotation == list[str] and isinstance(value, list | tuple)
