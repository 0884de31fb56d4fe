"""The comparison of two results as text and as Markdown."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from tgis_cli.bench.compare import Change, Row, Table
from tgis_cli.bench.report.grids import Column, Grid, name_figure, name_unit
from tgis_cli.bench.report.markdown import escape, write_grid
from tgis_cli.bench.report.remarks import Remark
from tgis_cli.bench.report.table import draw_grid, draw_remarks
from tgis_cli.bench.report.units import Unit, choose_unit, write_change

WORDS = {
    Change.REGRESSION: "REGRESSION",
    Change.WORSE: "worse",
    Change.BETTER: "better",
    Change.NOISE: "noise",
    Change.UNKNOWN: "?",
}
HOW = (
    "The intervals hold for all figures at once, with 95 % confidence, but only for the noise within each run. They "
    "do not cover how much the machine changes from run to run: `tgis bench ab` does."
)


def describe_table(table: Table, width: int | None, *, is_colored: bool) -> list[str]:
    """
    Args:
        width: of the terminal; ``None`` leaves lines whole.
    """
    blocks = [draw_grid(grid, width, is_colored=is_colored) for grid in make_change_grids(table)]
    blocks.append(draw_remarks(list_remarks(table), width, is_colored=is_colored))
    return [line for block in blocks for line in (*block, "")][:-1]


def write_table(table: Table) -> str:
    """As Markdown."""
    lines: list[str] = []
    for grid in make_change_grids(table):
        lines += [*write_grid(grid), ""]
    return "\n".join([*lines, *(f"- **{one.label}**: {escape(one.sentence)}" for one in list_remarks(table))]) + "\n"


def make_change_grids(table: Table) -> Iterator[Grid]:
    """One for each group."""
    for group, members in itertools.groupby(table.rows, key=lambda row: row.group):
        rows = list(members)
        cells = list(zip(*(write_cells(row) for row in rows), strict=True))
        names = ("old", "new", "change", "interval", "")
        columns = [Column("", name, "", column) for name, column in zip(names, cells, strict=True)]
        yield Grid(group, [name_row(row) for row in rows], columns)


def name_row(row: Row) -> str:
    """``TTFT p50, ms``."""
    unit = choose_row_unit(row).name
    return f"{name_figure(row.name)}, {unit}" if unit else name_figure(row.name)


def choose_row_unit(row: Row) -> Unit:
    return choose_unit(name_unit(row.name, row.unit), (row.old.value, row.new.value))


def write_cells(row: Row) -> tuple[str, ...]:
    unit = choose_row_unit(row)
    values = (unit.format(row.old.value), unit.format(row.new.value))
    return (*values, write_change(row.ratio.value), write_change(*(row.ratio.interval or ())), WORDS[row.change])


def list_remarks(table: Table) -> list[Remark]:
    worse = [f"{row.group}, {name_figure(row.name)} {write_change(row.ratio.value)}" for row in table.regressions]
    remarks = [Remark("worse", f"{'; '.join(worse)}.")] if worse else []
    return [*remarks, *(Remark("note", note) for note in table.notes), Remark("note", HOW)]
