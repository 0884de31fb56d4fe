"""The ``--help`` of every command, made from what its framework knows about it.

``command.py`` uses it for Typer's commands, ``argument_parser.py`` for those that start faster without Typer.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from tgis_cli.terminal.capabilities import can_draw, get_width
from tgis_cli.terminal.examples import find_examples
from tgis_cli.terminal.help_page import HelpPage, Row, Section

ARGUMENTS, OPTIONS, COMMANDS = "Arguments", "Options", "Commands"
FACTS = re.compile(r"\s*\[((?:env|default)[^\]]*)\]$")  # a help text may end with facts
PARAGRAPHS = re.compile(r"\n\s*\n")
MAX_SUMMARY = 200  # characters
TYPES = {int: "INT", float: "NUMBER", str: "TEXT"}


def show_page(page: HelpPage, environ: Mapping[str, str]) -> str:
    """The page as stdout can show it."""
    return page.render(get_width(sys.stdout), is_styled=can_draw(sys.stdout, environ))


def describe_command(command: Any, ctx: Any) -> HelpPage:
    """
    Args:
        command: a command of Typer; a group if it has commands of its own.
    """
    params = [param for param in command.get_params(ctx) if not getattr(param, "hidden", False)]
    is_group = bool(getattr(command, "commands", None))
    sections: dict[str, list[Row]] = {ARGUMENTS: []} if not is_group else {COMMANDS: []}
    if is_group:
        for name in command.list_commands(ctx):
            title = command.sections.get(name, COMMANDS)
            summary = str(command.get_command(ctx, name).get_short_help_str(MAX_SUMMARY))
            sections.setdefault(title, []).append(Row(name, summary))
    for param in params:
        title = getattr(param, "rich_help_panel", None) or (OPTIONS if is_option(param) else ARGUMENTS)
        sections.setdefault(title, []).append(describe_parameter(param))
    usage = write_usage(ctx)
    if is_group:
        usage += " [COMMAND]" if getattr(command, "invoke_without_command", False) else " COMMAND"
    return HelpPage(
        usage,
        tuple(" ".join(paragraph.split()) for paragraph in PARAGRAPHS.split(command.help or "") if paragraph),
        tuple(Section(title, tuple(rows)) for title, rows in sections.items() if rows),
        find_examples(ctx.command_path),
        "First steps" if ctx.command_path == "tgis" else "Examples",
    )


def write_usage(ctx: Any) -> str:
    """``tgis bundle MODEL TARGET``."""
    arguments = [param for param in ctx.command.params if is_argument(param)]
    return " ".join([ctx.command_path, *map(write_argument, arguments)])


def is_option(param: Any) -> bool:
    return bool(param.opts[0][0] == "-")


def is_argument(param: Any) -> bool:
    return not is_option(param)


def write_argument(param: Any) -> str:
    """``MODEL`` in a usage line: ``[MODEL]`` if it may be left out, ``MODEL...`` if there may be several."""
    name = name_argument(param)
    name = f"{name}..." if param.nargs != 1 and not name.endswith("...") else name
    return name if param.required else f"[{name}]"


def name_argument(param: Any) -> str:
    return str(param.metavar or param.opts[0].upper().replace("_", "-")).strip("[].")


def describe_parameter(param: Any) -> Row:
    """A parameter's names, what it does, and the facts: from the framework, or from the end of its help text."""
    text = str(getattr(param, "help", None) or "")
    found = FACTS.search(text)
    if found:
        return Row(describe_names(param), text[: found.start()], found[1])
    return Row(describe_names(param), text, "; ".join(list_facts(param)))


def describe_names(param: Any) -> str:
    """``-p, --port INT``, ``--[no-]rehearse`` or ``MODEL``."""
    if is_argument(param):
        return name_argument(param)
    names = list(param.opts)
    if param.secondary_opts:
        names[-1] = "--[no-]" + names[-1].removeprefix("--")
    shown = ", ".join(sorted(names, key=len))
    return f"{shown} {name_value(param)}".rstrip()


def name_value(param: Any) -> str:
    """``INT``, ``FILE`` or another name for an option's value; empty for a switch."""
    if getattr(param, "is_flag", False):
        return ""
    kind = getattr(getattr(param, "type_descriptor", None), "annotation", str)
    return str(param.metavar or TYPES.get(kind, "TEXT"))


def describe_range(param: Any) -> str:
    """``from 1 to 64``, ``of at least 1``, or nothing."""
    low, high = getattr(param, "min", None), getattr(param, "max", None)
    if low is None:
        return ""
    return f"of at least {low:g}" if high is None else f"from {low:g} to {high:g}"


def describe_accepted(param: Any) -> str:
    """``an integer from 1 to 64``; empty if it is not a number."""
    kinds = str(getattr(getattr(param, "type_descriptor", None), "annotation", ""))
    noun = "an integer" if "int" in kinds else "a number" if "float" in kinds else ""
    return f"{noun} {describe_range(param)}".rstrip() if noun else ""


def list_facts(param: Any) -> Iterator[str]:
    """The range and the default of an option, if it has them and they are not obvious."""
    if accepted := describe_range(param).removeprefix("of "):
        yield accepted
    shown, default = getattr(param, "show_default", False), param.default
    if isinstance(shown, str):
        yield f"default: {shown}"
    elif shown and default not in (None, False, "", (), []) and not callable(default):
        yield f"default: {str(default).lower() if isinstance(default, bool) else default}"
