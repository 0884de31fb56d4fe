"""A result as text for a terminal: a row for each load, details of each, and remarks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from tgis_cli.bench.load.detail import Level
from tgis_cli.bench.report.facts import Fact, describe_level
from tgis_cli.bench.report.grids import Grid, drop_columns, find_detail, make_grids, make_percentile_grid
from tgis_cli.bench.report.remarks import Remark, make_remarks
from tgis_cli.bench.report.subject import describe_subject
from tgis_cli.bench.result import Result
from tgis_cli.terminal.capabilities import BOLD, DIM, paint
from tgis_server.words.control_characters import escape_controls
from tgis_server.words.layout import GAP, count_columns, lay_out, wrap

COLORS = {"problem": "1;31", "failed": "33", "cut": "33"}
# Columns that are dropped where there is no room, in this order: from the details, and from the table.
DROPPABLE = ("mean", "p90", "samples", "p99.9", "max")
DROPPABLE_RATES = ("/s",)
MIN_LABEL = 9  # columns of a label, so that sentences begin at the same place in most results


def describe_result(result: Result, width: int | None, *, verbose: bool, is_colored: bool) -> list[str]:
    """All lines of a result.

    Args:
        width: the terminal's width; ``None`` leaves lines whole.
        verbose: include percentiles and the server's view of each level; a single level always has them.
        is_colored: headings are dimmed, and problems are red.
    """
    subject = describe_subject(result)
    blocks = [wrap(subject, width)] if subject else []
    for grid in make_grids(result):
        blocks += [draw_grid(each, width, is_colored=is_colored) for each in narrow([grid], width, DROPPABLE_RATES)]
    detail = find_detail(result)
    levels = detail.levels if detail else []
    if verbose or len(levels) == 1:
        blocks += describe_levels(levels, width, is_colored=is_colored)
    blocks.append(draw_remarks(make_remarks(result), width, is_colored=is_colored))
    return [line for block in blocks if block for line in (*block, "")][:-1]


def describe_levels(levels: Sequence[Level], width: int | None, *, is_colored: bool) -> Iterator[list[str]]:
    """For each level its percentiles, and then other facts about it."""
    grids = narrow([make_percentile_grid(level) for level in levels], width, DROPPABLE)
    for level, grid in zip(levels, grids, strict=True):
        title = [paint(escape_controls(level.title), BOLD, is_colored=is_colored)] if len(levels) > 1 else []
        facts = draw_facts(list(describe_level(level)), width)
        if grid.rows:
            yield title + draw_grid(grid, width, is_colored=is_colored)
            yield facts
        else:
            yield title + facts


def narrow(grids: Sequence[Grid], width: int | None, droppable: Sequence[str]) -> Sequence[Grid]:
    """The grids without as many droppable columns as needed to fit; whole if they do not even fit without all."""
    for number in range(len(droppable) + 1):
        narrowed = [drop_columns(grid, *droppable[:number]) for grid in grids]
        if width is None or all(measure(grid) <= width for grid in narrowed):
            return narrowed
    return grids


def draw_grid(grid: Grid, width: int | None, *, is_colored: bool) -> list[str]:
    """Aligned columns below their headings; a block of lines for each row where they do not fit."""
    if width is not None and measure(grid) > width:
        return stack_grid(grid, width, is_colored=is_colored)
    sizes = find_sizes(grid)
    first = measure_rows(grid)
    headings = " " * first + "".join(draw_headings(grid, sizes))
    names = fill(grid.corner, first) + "".join(
        " " * GAP + fill_left(column.name, size) for column, size in zip(grid.columns, sizes, strict=True)
    )
    lines = [paint(line.rstrip(), DIM, is_colored=is_colored) for line in (headings, names) if line.strip()]
    for number, row in enumerate(grid.rows):
        cells = [column.cells[number] for column in grid.columns]
        lines.append((fill(escape_controls(row), first) + join_right(cells, sizes)).rstrip())
        below = [column.below[number] if column.below else "" for column in grid.columns]
        if any(below):
            lines.append(paint(" " * first + join_right(below, sizes).rstrip(), DIM, is_colored=is_colored))
    return lines


def draw_headings(grid: Grid, sizes: Sequence[int]) -> Iterator[str]:
    """Each heading at the right end of its columns."""
    columns = zip(grid.columns, sizes, strict=True)
    for heading, members in itertools.groupby(columns, key=lambda item: item[0].head):
        yield fill_left(heading, sum(GAP + size for _, size in members))


def find_sizes(grid: Grid) -> list[int]:
    sizes = [
        max(count_columns(text) for text in (column.name, *column.cells, *column.below)) for column in grid.columns
    ]
    start = 0
    for heading, members in itertools.groupby(grid.columns, key=lambda column: column.head):
        number = len(list(members))
        room = sum(sizes[start : start + number]) + GAP * (number - 1)
        sizes[start] += max(0, count_columns(heading) - room)
        start += number
    return sizes


def measure(grid: Grid) -> int:
    return measure_rows(grid) + sum(GAP + size for size in find_sizes(grid))


def measure_rows(grid: Grid) -> int:
    return max(count_columns(escape_controls(text)) for text in (grid.corner, *grid.rows))


def join_right(cells: Sequence[str], sizes: Sequence[int]) -> str:
    return "".join(" " * GAP + fill_left(cell, size) for cell, size in zip(cells, sizes, strict=True))


def fill(text: str, size: int) -> str:
    return text + " " * (size - count_columns(text))


def fill_left(text: str, size: int) -> str:
    return " " * (size - count_columns(text)) + text


def stack_grid(grid: Grid, width: int, *, is_colored: bool) -> list[str]:
    lines = []
    for number, row in enumerate(grid.rows):
        lines += [paint(line, BOLD, is_colored=is_colored) for line in wrap(row, width)]
        rows = [(column.full_name, column.cells[number]) for column in grid.columns if column.cells[number]]
        lines += [line for each in lay_out(rows, width) for line in each]
    return lines


def draw_facts(facts: Sequence[Fact], width: int | None) -> list[str]:
    size = max((len(fact.name) for fact in facts), default=0) + GAP
    return [line for fact in facts for line in wrap(fact.text, width, first=fill(fact.name, size))]


def draw_remarks(remarks: Sequence[Remark], width: int | None, *, is_colored: bool) -> list[str]:
    """Sentences, aligned after their labels."""
    size = max([MIN_LABEL, *(len(remark.label) + GAP for remark in remarks)])
    lines = []
    for remark in remarks:
        first, *others = wrap(remark.sentence, width, first=fill(remark.label, size))
        color = COLORS.get(remark.label, DIM)
        lines += [paint(remark.label, color, is_colored=is_colored) + first[len(remark.label) :], *others]
    return lines
