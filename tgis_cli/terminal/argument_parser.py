"""Command lines parsed with argparse, for commands that must start fast, with the same help and errors as all others.

Imports nothing but argparse until there is help or an error to show.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

TYPE_CHECKING = False  # importing typing would take time
if TYPE_CHECKING:
    from typing import Any, NoReturn


class ArgumentParser(argparse.ArgumentParser):
    """
    Args:
        prog: the command as it is typed.
        description: paragraphs, separated by blank lines.
    """

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog, description=description, allow_abbrev=False, add_help=False)
        self.add_argument("-h", "--help", action="help", help="Show this message and exit.")
        self.argv: Sequence[str] = ()

    def parse_args(self, argv: Sequence[str]) -> argparse.Namespace:  # type: ignore[override]  # always with arguments
        """
        Raises:
            SystemExit: 2, after a sentence about the error; 0 after the help.
        """
        self.argv = [self.prog.rpartition(" ")[2], *argv]
        options, unknown = self.parse_known_args(argv)
        if unknown:
            self.explain_unknown(unknown[0])
        return options

    def explain_unknown(self, word: str) -> NoReturn:
        from tgis_cli.terminal.suggestions import explain_no_option, explain_too_many

        if word[:1] != "-":
            self.end_with(explain_too_many(word, self.prog))
        self.end_with(explain_no_option(word.partition("=")[0], self.get_parameters(), self.prog))

    def error(self, message: str) -> NoReturn:
        """Also called by argparse, for example with ``argument --timeout: expected one argument``."""
        from tgis_cli.terminal.exits import point_to_help

        message = message.removeprefix("argument ").replace(": expected one argument", " needs a value")
        self.end_with(point_to_help(message, self.prog))

    def end_with(self, sentence: str) -> NoReturn:
        from tgis_cli.terminal.exits import print_failure

        print_failure(sentence, 2, self.argv)
        raise SystemExit(2)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """The hook of argparse for values that are not among the choices."""
        if action.choices is not None and value not in action.choices:
            from tgis_cli.terminal.suggestions import explain_no_choice

            self.end_with(explain_no_choice(action.option_strings[-1], value, action.choices))

    def format_help(self) -> str:
        from tgis_cli.terminal.examples import find_examples
        from tgis_cli.terminal.help_page import HelpPage, Section
        from tgis_cli.terminal.option_help import OPTIONS, PARAGRAPHS, describe_parameter, show_page

        rows = map(describe_parameter, dict.fromkeys(self.get_parameters().values()))
        paragraphs = (" ".join(paragraph.split()) for paragraph in PARAGRAPHS.split(self.description or ""))
        examples = find_examples(self.prog)
        page = HelpPage(self.prog, tuple(paragraphs), (Section(OPTIONS, tuple(rows)),), examples)
        return show_page(page, os.environ)

    def get_parameters(self) -> dict[str, Parameter]:
        helps, *others = self._actions
        parameters = [Parameter(action) for action in (*others, helps)]
        return {name: parameter for parameter in parameters for name in parameter.opts}


class Parameter:
    """An option of argparse in the form in which ``option_help`` and ``suggestions`` read Typer's."""

    secondary_opts = ()
    show_default = False  # the help text states it
    required = False
    hidden = False

    def __init__(self, action: argparse.Action) -> None:
        self.opts = action.option_strings
        self.is_flag = action.nargs == 0
        self.help = (action.help or "") % {"default": action.default}
        self.default: Any = None
        metavar = action.metavar or ("|".join(map(str, action.choices)) if action.choices else None)
        self.metavar = str(metavar) if metavar else None
