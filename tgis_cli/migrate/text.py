"""Migration reports as text, for terminals and for pipes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tgis_cli.migrate.examine import Finding, MigrationReport
from tgis_server.words.control_characters import escape_controls
from tgis_server.words.layout import wrap

if TYPE_CHECKING:
    from rich.console import Console

MUST_CHANGE = "must change"
STYLES = {
    "same": "green",
    "renamed": "yellow",
    "no effect": "yellow",
    "not there yet": "red",
    "unknown": "red",
    "refused": "bold red",
    MUST_CHANGE: "bold red",
}
DOUBTS = ("not there yet", "unknown")  # the server starts, but these settings do nothing
ADVICE = "advice"


def print_reports(reports: list[MigrationReport], console: Console) -> None:
    """Two lines per setting on a terminal; one elsewhere, for grep and diff."""
    for index, report in enumerate(reports):
        if index:
            console.print()
        container = report.container
        where = f"{container.file}:{container.line}" if container.line else container.file
        print_line(console, f"{where}: {container.title}", "bold")
        (print_table if console.is_terminal else print_lines)(console, rows_of(report))
        print_line(console, conclude(report))


def print_line(console: Console, text: str, style: str = "") -> None:
    text = "\n".join(wrap(text, console.width if console.is_terminal else None))
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def rows_of(report: MigrationReport) -> list[tuple[str, str, str, str]]:
    """Line, verdict, setting and text of all findings, then of all advice."""
    findings = [
        (str(finding.line or ""), finding.verdict, spell(finding), f"{finding.now} {finding.todo}")
        for finding in report.findings
    ]
    advice = [
        (str(advice.line or ""), MUST_CHANGE if advice.is_problem else ADVICE, advice.topic, advice.text)
        for advice in report.advice
    ]
    rows = [*findings, *advice]
    return [
        (line, verdict, escape_controls(name), escape_controls(text.removeprefix("As before.").strip()))
        for line, verdict, name, text in rows
    ]


def spell(finding: Finding) -> str:
    """``NAME=value`` or ``--flag value``."""
    return f"{finding.name}{' ' if finding.name.startswith('-') else '='}{finding.value}"


def print_lines(console: Console, rows: list[tuple[str, str, str, str]]) -> None:
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    for line, verdict, setting, text in rows:
        row = f"{line:>{widths[0]}}  {verdict:{widths[1]}}  {setting:{widths[2]}}  {text}"
        print_line(console, row.rstrip())


def print_table(console: Console, rows: list[tuple[str, str, str, str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(justify="right", style="dim")
    table.add_column()
    table.add_column(overflow="fold")
    for line, verdict, setting, text in rows:
        body = Text(setting, "bold")
        if text:
            body.append(f"\n{text}", "not bold")
        table.add_row(line, Text(verdict, STYLES.get(verdict, "")), body)
    console.print(table)


def conclude(report: MigrationReport) -> str:
    if report.will_fail:
        return "This server would not start, or would never become ready: see `refused` and `must change`."
    doubts = [f"`{verdict}`" for verdict in DOUBTS if any(finding.verdict == verdict for finding in report.findings)]
    but = f", except for what is {' and '.join(doubts)}" if doubts else ""
    return f"This works with the new image if it can serve the model{but}."
