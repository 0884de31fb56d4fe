"""What every command of ``tgis`` has in common: how its options are read, and how its help looks.

``command_table.py`` gives these classes to the commands as they are loaded; a command's own class derives from them.
"""

from __future__ import annotations

import contextlib
import os
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup

from tgis_cli.terminal.option_help import FACTS, describe_command, show_page
from tgis_server.errors import UsageError
from tgis_server.words.close_words import squeeze

MAX_HINT = 70  # characters of a help text that a shell shows
SECONDS = re.compile(r"(\d+(?:\.\d+)?)s?")
HELP_NAMES = ["-h", "--help"]


class Explained:
    """Mixed into commands and groups: explains misspelt options, and shows the help that all commands have."""

    def __init__(self, *args: Any, **attrs: Any) -> None:
        super().__init__(*args, **attrs)
        self.context_settings.setdefault("help_option_names", HELP_NAMES)  # type: ignore[attr-defined]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with errors_at(ctx):
            check_options(self, ctx, args)
            return super().parse_args(ctx, args)  # type: ignore[misc,no-any-return]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(show_page(describe_command(self, ctx), os.environ))

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        return shorten_helps(super().shell_complete(ctx, incomplete))  # type: ignore[misc]


class Command(Explained, TyperCommand):
    """A command."""


class Group(Explained, TyperGroup):
    """A command with subcommands."""

    sections: ClassVar[dict[str, str]] = {}  # the title under which a command is listed, by name

    def list_commands(self, ctx: Any) -> list[str]:
        listed = [name for name in self.sections if name in self.commands]
        return listed + [name for name in self.commands if name not in listed]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if not ctx.resilient_parsing and args[0] not in self.commands:  # completion is resilient
            from tgis_cli.terminal.suggestions import explain_no_command

            raise UsageError(explain_no_command(args[0], ctx.command_path, list(self.commands)))
        return super().resolve_command(ctx, args)


def shorten_helps(items: list[Any]) -> list[Any]:
    """Completions whose help is one short line, because some shells show it beside the word."""
    for item in items:
        if item.help:
            item.help = textwrap.shorten(FACTS.sub("", item.help), MAX_HINT, placeholder=" ...")
    return items


def dress(app: typer.Typer) -> None:
    """Give our classes to all commands and groups of an app that have no class of their own."""
    for info in app.registered_commands:
        if info.cls in (None, TyperCommand):
            info.cls = Command
    for group in (app.info, app.registered_callback):
        if group is not None and not isinstance(group.cls, type):
            group.cls = Group


@contextlib.contextmanager
def errors_at(ctx: Any) -> Iterator[None]:
    """Note the command in the framework's errors, some of which come without it."""
    try:
        yield
    except Exception as error:
        if getattr(error, "ctx", ctx) is None:
            error.ctx = ctx  # type: ignore[attr-defined]  # an error of the framework
        raise


def check_options(command: Any, ctx: Any, args: list[str]) -> None:
    """
    Raises:
        UsageError: an option does not exist; the message suggests the one that was probably meant, if any.
    """
    if ctx.resilient_parsing or ctx.ignore_unknown_options:
        return
    params = {name: param for param in command.get_params(ctx) for name in (*param.opts, *param.secondary_opts)}
    unknown = find_unknown(params, args, is_group=not ctx.allow_interspersed_args)
    if unknown:
        from tgis_cli.terminal.suggestions import explain_no_option

        commands = list(getattr(command, "commands", ()))
        raise UsageError(explain_no_option(unknown, params, ctx.command_path, commands))
    check_seconds(params, args)


def check_seconds(params: Mapping[str, Any], args: Sequence[str]) -> None:
    """
    Raises:
        UsageError: a number follows ``--wait``, although ``--wait-timeout`` takes it.
    """
    for word, following in pairwise([*args[: args.index("--") if "--" in args else None], ""]):
        switch, has_value, value = word.partition("=")
        number = SECONDS.fullmatch(value if has_value else following)
        if number and switch in params and f"{switch}-timeout" in params:
            text = "" if has_value else f" If {following} begins the text, write the text before {switch}."
            raise UsageError(f"{switch} takes no value: write {switch}-timeout {number[1]}.{text}")


def find_unknown(params: Mapping[str, Any], args: Sequence[str], *, is_group: bool) -> str | None:
    """The first word that looks like an option but is not one, without what follows ``=``.

    A word such as ``-port`` counts even if ``-p`` exists and would take ``ort`` as its value.

    Args:
        is_group: what follows the first word without a dash belongs to another command.
    """
    words = iter(args)
    for word in words:
        name = word.partition("=")[0]
        if word == "--" or (is_group and word[:1] != "-"):
            return None
        if word[:1] != "-" or word == "-":
            continue
        if name in params:
            needs_value = takes_value(params[name]) and "=" not in word
        elif word[:2] == "--" or word[:2] not in params or is_long_option(name, params):
            return name
        else:
            unknown, needs_value = read_short_options(word, params)
            if unknown:
                return unknown
        if needs_value:
            next(words, None)
    return None


def is_long_option(name: str, params: Mapping[str, Any]) -> bool:
    """Whether a word with one dash, such as ``-port``, would be the name of an option with a second dash."""
    return any(flag[:2] == "--" and squeeze(flag) == squeeze(name) for flag in params)


def read_short_options(word: str, params: Mapping[str, Any]) -> tuple[str, bool]:
    """The first unknown option of ``-vx``, ``-p3000`` or ``-p``, and whether the next word is a value."""
    for index, letter in enumerate(word[1:], 2):
        flag = f"-{letter}"
        if flag not in params:
            return flag, False
        if takes_value(params[flag]):
            return "", index == len(word)
    return "", False


def takes_value(param: Any) -> bool:
    return not getattr(param, "is_flag", False) and not getattr(param, "count", False)
