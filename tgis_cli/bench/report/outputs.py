"""Where a command writes its result: files, standard output, or both."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from tgis_cli.bench.result import Result
from tgis_cli.terminal.capabilities import find_width, has_color
from tgis_cli.terminal.sentences import print_sentence
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

    def check(self, inputs: Mapping[str, str | Path | None]) -> None:
        """Called before the measurement, so that it is not lost.

        Args:
            inputs: by option, the files that the command reads; ``None`` if they are not given.

        Raises:
            UsageError: a file cannot be written, would replace an input, or two results would be written to one place.
        """
        given = self._given
        for number, (flag, path) in enumerate(given):
            if not path:
                raise UsageError(f"{flag} is empty: give the name of a file, or - for standard output.")
            if twice := [other for other, same in given[:number] if is_same(same, path)]:
                where = "standard output" if path == STDOUT else path
                raise UsageError(
                    f"{twice[0]} and {flag} would both write to {where}: choose a different file for one of them."
                )
            if path == STDOUT:
                continue
            for read_by, name in inputs.items():
                if name is not None and is_same(str(name), path):
                    raise UsageError(f"{flag} would replace the file of {read_by}, {name}: choose another file.")
            check_file(flag, Path(path))

    def refuse(self, why: str) -> None:
        """Refuse all files, for a command that makes no result.

        Args:
            why: a clause.

        Raises:
            UsageError: a file was asked for.
        """
        if given := self._given:
            raise UsageError(f"{why}: leave {' and '.join(flag for flag, _ in given)} out.")

    def write(self, result: Result, environ: Mapping[str, str] = os.environ) -> None:
        """Write all files and name them on stderr; print the table unless something else goes to standard output.

        Raises:
            UsageError: some files cannot be written any more; everything else has been written.
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
        written, failures = [], []
        for flag, path in self._given:
            if path == STDOUT:
                continue
            try:
                Path(path).write_text(writers[flag](result), encoding="utf-8")
                written.append(path)
            except OSError as error:
                failures.append(explain_failure(flag, path, error))
        printed = next((flag for flag, path in self._given if path == STDOUT), None)
        if printed is not None:
            sys.stdout.write(writers[printed](result))
        else:
            is_colored = has_color(sys.stdout, environ)
            lines = describe_result(result, find_width(sys.stdout), verbose=self.is_verbose, is_colored=is_colored)
            print("\n".join(lines))
        sys.stdout.flush()  # before what is on stderr
        if written:
            print_sentence(f"Written: {', '.join(written)}.", sys.stderr)
        if failures:
            raise UsageError(" ".join(failures))

    @property
    def _given(self) -> list[tuple[str, str]]:
        paths = {"--json": self.json, "--csv": self.csv, "--markdown": self.markdown, "--html": self.html}
        return [(flag, path) for flag, path in paths.items() if path is not None]


def is_same(one: str, other: str) -> bool:
    """Whether two names lead to the same file, which need not exist yet."""
    if STDOUT in (one, other):
        return one == other
    with contextlib.suppress(OSError):
        return os.path.samefile(one, other)
    return os.path.realpath(one) == os.path.realpath(other)


def check_file(flag: str, path: Path) -> None:
    """
    Raises:
        UsageError: it cannot be opened for writing.
    """
    is_new = not path.exists()
    if not (is_new or path.is_file() or path.is_dir()):
        return  # a pipe's reader would take this for its end
    try:
        with path.open("ab"):
            pass
        if is_new:
            path.resolve().unlink()  # for a link, its target
    except OSError as error:
        raise UsageError(explain_failure(flag, str(path), error)) from None


def explain_failure(flag: str, path: str, error: OSError) -> str:
    return f"{flag} {path} cannot be written: {error.strerror}."
