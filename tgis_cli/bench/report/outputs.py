"""Where a command writes its result: files, standard output, or both."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from tgis_cli.bench.result import Result
from tgis_cli.terminal.capabilities import find_width, has_color
from tgis_server.errors import UsageError

STDOUT = "-"
PANEL = "Output"


def option(flag: str, what: str) -> Any:
    text = f"Write {what} to a file; - writes it to stdout instead of the table."
    return Annotated[str | None, typer.Option(flag, metavar="FILE", help=text, rich_help_panel=PANEL)]


Json = option("--json", "the whole result as JSON")
Csv = option("--csv", "one CSV line per figure")
Markdown = option("--markdown", "a Markdown table for a pull request")
Html = option("--html", "an HTML page with charts")
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show all percentiles of each level.", rich_help_panel=PANEL)
]


@dataclass(frozen=True, slots=True)
class Outputs:
    """The files of one command, ``None`` where none is asked for."""

    json: str | None = None
    csv: str | None = None
    markdown: str | None = None
    html: str | None = None
    is_verbose: bool = False

    def check(self) -> None:
        """Called before the measurement, so that it is not lost.

        Raises:
            UsageError: a file cannot be written, or two results would be written to one place.
        """
        given = self._given
        for number, (flag, path) in enumerate(given):
            if twice := [other for other, same in given[:number] if same == path]:
                where = "standard output" if path == STDOUT else path
                raise UsageError(
                    f"{twice[0]} and {flag} would both write to {where}: choose a different file for one of them."
                )
            if path != STDOUT:
                check_file(flag, Path(path))

    def refuse(self, why: str) -> None:
        """For a command that makes no result.

        Args:
            why: a clause.

        Raises:
            UsageError: a file was asked for.
        """
        if given := self._given:
            raise UsageError(f"{why}: leave {' and '.join(flag for flag, _ in given)} out.")

    def write(self, result: Result, environ: Mapping[str, str] = os.environ) -> None:
        """Write all files, and print the table unless something else goes to standard output.

        Raises:
            UsageError: a file cannot be written any more.
        """
        from tgis_cli.bench.report.csv import write_csv
        from tgis_cli.bench.report.html import write_html
        from tgis_cli.bench.report.markdown import write_markdown
        from tgis_cli.bench.report.table import describe_result

        writers: dict[str, Callable[[Result], str]] = {
            "--json": lambda result: result.to_json() + "\n",
            "--csv": write_csv,
            "--markdown": write_markdown,
            "--html": write_html,
        }
        for flag, path in self._given:
            if path != STDOUT:
                write_file(flag, Path(path), writers[flag](result))
        printed = next((flag for flag, path in self._given if path == STDOUT), None)
        if printed is not None:
            sys.stdout.write(writers[printed](result))
            return
        lines = describe_result(
            result, find_width(sys.stdout), verbose=self.is_verbose, is_colored=has_color(sys.stdout, environ)
        )
        print("\n".join(lines))

    @property
    def _given(self) -> list[tuple[str, str]]:
        return [(flag, path) for flag, path in self._paths.items() if path is not None]

    @property
    def _paths(self) -> dict[str, str | None]:
        return {"--json": self.json, "--csv": self.csv, "--markdown": self.markdown, "--html": self.html}


def check_file(flag: str, path: Path) -> None:
    """
    Raises:
        UsageError: it cannot be opened for writing.
    """
    is_new = not path.exists()
    try:
        with path.open("ab"):
            pass
        if is_new:
            path.unlink()
    except OSError as error:
        raise UsageError(f"{flag} {path} cannot be written: {error.strerror}.") from None


def write_file(flag: str, path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{flag} {path} cannot be written: {error.strerror}.") from None
