"""A result as Markdown, to paste into a pull request."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Sequence

from tgis_cli.bench.report.grids import Column, Grid, make_grids
from tgis_cli.bench.report.remarks import make_remarks
from tgis_cli.bench.report.subject import describe_subject
from tgis_cli.bench.result import Result, drop_nonfinite
from tgis_server.words.control_characters import escape_controls

MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~])")


def write_markdown(result: Result) -> str:
    """Tables, then remarks, then the command and the fingerprint, folded."""
    subject = describe_subject(result)
    lines = [f"**{escape(subject)}**", ""] if subject else []
    for grid in make_grids(result):
        lines += [*write_grid(grid), ""]
    remarks = [f"- **{remark.label}**: {escape(remark.sentence)}" for remark in make_remarks(result)]
    lines += [*remarks, ""] if remarks else []
    return "\n".join([*lines, *write_fingerprint(result)]) + "\n"


def write_grid(grid: Grid) -> Iterator[str]:
    yield write_row([grid.corner, *(column.full_name for column in grid.columns)])
    yield "|---|" + "--:|" * len(grid.columns)
    for number, row in enumerate(grid.rows):
        cells = [write_cell(column, number) for column in grid.columns]
        yield write_row([row, *cells]) if any(cells) else f"| **{escape(row)}** |{' |' * len(cells)}"


def write_cell(column: Column, number: int) -> str:
    below = column.below[number] if column.below else ""
    return f"{column.cells[number]} ({below})" if below else column.cells[number]


def write_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(escape(cell) for cell in cells)} |"


def write_fingerprint(result: Result) -> list[str]:
    """In HTML, because only some viewers interpret Markdown within it."""
    facts = json.dumps(drop_nonfinite(result.fingerprint), indent=2, ensure_ascii=False)
    text = f"{result.command}\n{result.created_at}\n\n{facts}"
    return ["<details><summary>How it was measured</summary>", "", f"<pre>{html.escape(text)}</pre>", "</details>"]


def escape(text: str) -> str:
    return MARKUP.sub(r"\\\1", escape_controls(text).replace("\n", " "))
