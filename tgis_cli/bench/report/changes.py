"""The comparison of two results as text and as Markdown."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from tgis_cli.bench.compare import Judgment, Row, Table
from tgis_cli.bench.report.grids import Column, Grid, name_figure, name_unit
from tgis_cli.bench.report.markdown import escape, write_grid
from tgis_cli.bench.report.remarks import Remark
from tgis_cli.bench.report.table import draw_grid, draw_remarks
from tgis_cli.bench.report.units import UNKNOWN, Unit, choose_unit, write_change

WORDS = {
    Judgment.REGRESSION: "REGRESSION",
    Judgment.WORSE: "worse",
    Judgment.BETTER: "better",
    Judgment.NOISE: "noise",
    Judgment.UNKNOWN: "?",
}
COLUMNS = ("old", "new", "change", "interval", "")
INDENT = "  "
HOW = (
    "The intervals hold for all figures at once, with 95 % confidence, but only for the noise within each run. They "
    "do not cover how much the machine changes from run to run: `tgis bench ab` does."
)


Units = Mapping[tuple[str, str], Unit]  # by name and unit of a figure


def describe_table(table: Table, width: int | None, *, is_colored: bool) -> list[str]:
    """
    Args:
        width: the terminal's width; ``None`` leaves lines whole.
    """
    grid = draw_grid(make_grid(table), width, is_colored=is_colored)
    return [*grid, "", *draw_remarks(list_remarks(table), width, is_colored=is_colored)]


def write_table(table: Table) -> str:
    """As Markdown."""
    lines = [*write_grid(make_grid(table)), ""]
    return "\n".join([*lines, *(f"- **{one.label}**: {escape(one.sentence)}" for one in list_remarks(table))]) + "\n"


def make_grid(table: Table) -> Grid:
    """A row for each figure. Several groups are blocks of rows, each below its name."""
    units = choose_units(table.rows)
    groups = [(group, list(rows)) for group, rows in itertools.groupby(table.rows, key=lambda row: row.group)]
    if len(groups) == 1:
        names = [name_row(row, units) for row in table.rows]
        return Grid(table.rows[0].group, names, make_columns([write_cells(row, units) for row in table.rows]))
    names, cells = [], []
    for group, rows in groups:
        names += [group, *(INDENT + name_row(row, units) for row in rows)]
        cells += [("",) * len(COLUMNS), *(write_cells(row, units) for row in rows)]
    return Grid("", names, make_columns(cells))


def make_columns(cells: Sequence[tuple[str, ...]]) -> list[Column]:
    return [Column("", name, "", column) for name, column in zip(COLUMNS, zip(*cells, strict=True), strict=True)]


def choose_units(rows: Sequence[Row]) -> Units:
    """One for each figure, so that its groups can be compared."""
    values: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        values.setdefault((row.name, row.unit), []).extend((row.old.value, row.new.value))
    return {key: choose_unit(name_unit(*key), found) for key, found in values.items()}


def name_row(row: Row, units: Units) -> str:
    """``TTFT p50, ms``."""
    unit = units[row.name, row.unit].name
    return f"{name_figure(row.name)}, {unit}" if unit else name_figure(row.name)


def write_cells(row: Row, units: Units) -> tuple[str, ...]:
    unit = units[row.name, row.unit]
    values = (unit.format(row.old.value), unit.format(row.new.value))
    return (*values, write_change(row.ratio.value), write_change(*(row.ratio.interval or ())), WORDS[row.change])


def describe_change(row: Row, units: Units) -> str:
    """``8 streams, output tokens -13.8 %``; with both values where there is no ratio."""
    change = write_change(row.ratio.value)
    if change == UNKNOWN:
        unit = units[row.name, row.unit]
        change = f"{unit.format(row.old.value)} to {unit.format_with_name(row.new.value)}"
    return f"{row.group}, {name_figure(row.name)} {change}"


def list_remarks(table: Table) -> list[Remark]:
    units = choose_units(table.rows)
    worse = [describe_change(row, units) for row in table.regressions]
    remarks = [Remark("worse", f"{'; '.join(worse)}.")] if worse else []
    return [*remarks, *(Remark("note", note) for note in table.notes), Remark("note", HOW)]
