"""``tgis health`` for shell completion and ``tgis --debug``, which the shortcut in ``__main__`` does not serve."""

from __future__ import annotations

import inspect
import os
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from tgis_cli.clients import probe
from tgis_cli.terminal.options import complete_from, keyword

app = typer.Typer(add_completion=False)


class HealthCommand(TyperCommand):
    """Has options for completion only; passes the command line on unparsed."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if ctx.resilient_parsing:  # set while completing
            return super().parse_args(ctx, args)
        ctx.args = args
        return args


def health(context: typer.Context, **_: Any) -> None:
    """Check the health of a running server."""
    raise SystemExit(probe.main(context.args, os.environ))


def to_parameter(flag: str, settings: dict[str, Any]) -> inspect.Parameter:
    kwargs: dict[str, Any] = {"autocompletion": complete_from(settings["choices"])} if "choices" in settings else {}
    kind: Any = bool if settings.get("action") == "store_true" else str
    return keyword(flag.removeprefix("--").replace("-", "_"), Annotated[kind | None, typer.Option(flag, **kwargs)])


context_parameter = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
own_parameters = [to_parameter(flag, settings) for flag, settings in probe.OPTIONS.items()]
health.__dict__["__signature__"] = inspect.Signature([context_parameter, *own_parameters])
health.__annotations__ = {}
app.command(cls=HealthCommand)(health)
