"""A result as grids of cells, which text, Markdown and the page each write in their own way."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tgis_cli.bench.load.detail import Distribution, Level, LoadDetail, read_detail
from tgis_cli.bench.report.units import Unit, choose_unit
from tgis_cli.bench.result import PERCENTILES, Estimate, Result

ACRONYMS = {"ttft": "TTFT", "itl": "ITL", "tpot": "TPOT", "cpu": "CPU", "kv": "KV", "pss": "PSS", "gemm": "GEMM"}
LATENCIES = {
    "ttft": "TTFT",
    "ttft_intended": "TTFT, intended",
    "itl": "ITL",
    "tpot": "TPOT",
    "e2e": "e2e",
    "e2e_intended": "e2e, intended",
}
IN_NAME = re.compile(r"(_per_s|_s|_bytes|_share)\b")  # units, which have their own place


@dataclass(frozen=True, slots=True)
class Column:
    """A column of numbers. Neighbours with the same heading share it."""

    heading: str  # "TTFT"
    name: str  # "p50"
    unit: str  # "ms"; empty for counts
    cells: Sequence[str]
    below: Sequence[str] = ()  # a second line of each cell: the interval

    @property
    def head(self) -> str:
        """``TTFT, ms``."""
        return f"{self.heading}, {self.unit}" if self.unit else self.heading

    @property
    def full_name(self) -> str:
        name = f"{self.heading} {self.name}".strip().replace(" /", "/")
        return f"{name}, {self.unit}" if self.unit else name


@dataclass(frozen=True, slots=True)
class Grid:
    """Rows with names, and columns of numbers."""

    corner: str  # what the rows are: "load"
    rows: Sequence[str]
    columns: list[Column] = field(default_factory=list)


def find_detail(result: Result) -> LoadDetail | None:
    """The details of a load; ``None`` for other results."""
    return read_detail(result.detail) if result.kind == "load" and result.detail else None


def make_grids(result: Result) -> list[Grid]:
    """The result in short: one row for each load, or for each group of figures of another kind."""
    detail = find_detail(result)
    return [make_load_grid(detail.levels)] if detail and detail.levels else list(make_figure_grids(result))


def make_load_grid(levels: Sequence[Level]) -> Grid:
    grid = Grid("load", [level.title for level in levels])

    def add(heading: str, name: str, unit: str, read: Callable[[Level], float | None]) -> None:
        values = [read(level) for level in levels]
        chosen = choose_unit(unit, values)
        grid.columns.append(Column(heading, name, "", [chosen.format(value) for value in values]))

    add("output", "tokens/s", "tokens/s", lambda level: level.output_tokens_per_s.value)
    add("requests", "/s", "requests/s", lambda level: level.requests_per_s.value)
    known = {name for level in levels for name, each in level.latencies.items() if each.count}
    shown = {"ttft": ("50", "95"), "itl": ("50", "95"), "e2e": ("50",) if "ttft" in known else ("50", "95", "99")}
    for latency, percents in shown.items():
        if latency in known:
            grid.columns.extend(make_latency_columns(levels, latency, percents))
    if any(level.objective_share is not None for level in levels):
        add("", "met, %", "share", lambda level: level.objective_share)
    add("", "failed", "", lambda level: level.failed)
    return grid


def make_latency_columns(levels: Sequence[Level], latency: str, percents: Sequence[str]) -> Iterator[Column]:
    found = [level.latencies.get(latency) for level in levels]
    columns = {percent: [find_percentile(each, percent) for each in found] for percent in percents}
    unit = choose_unit("s", (each.value for values in columns.values() for each in values if each))
    for percent, values in columns.items():
        cells = [unit.format(get_value(each)) for each in values]
        yield Column(LATENCIES[latency], f"p{percent}", unit.name, cells)


def find_percentile(distribution: Distribution | None, percent: str) -> Estimate | None:
    return distribution.percentiles.get(percent) if distribution else None


def get_value(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.value


def make_percentile_grid(level: Level) -> Grid:
    """A row for each latency of a level, and the intervals of the percentiles below them."""
    found = {name: level.latencies[name] for name in LATENCIES if name in level.latencies}
    units = {name: choose_unit("s", list_values(each)) for name, each in found.items()}
    rows = [f"{LATENCIES[name]}, {units[name].name}" for name in found]
    columns = []
    for percent in PERCENTILES:
        values = {name: each.percentiles.get(percent) for name, each in found.items()}
        if any(values.values()):
            cells = [units[name].format(get_value(value)) for name, value in values.items()]
            below = [format_interval(units[name], value) for name, value in values.items()]
            columns.append(Column("", f"p{percent}", "", cells, below))
    for name, read in {"mean": "mean", "max": "maximum"}.items():
        columns.append(Column("", name, "", [units[key].format(getattr(each, read)) for key, each in found.items()]))
    columns.append(Column("", "samples", "", [f"{each.count:,}" for each in found.values()]))
    return Grid("", rows, columns)


def list_values(distribution: Distribution) -> Iterator[float]:
    yield distribution.mean
    yield from (each.value for each in distribution.percentiles.values())


def format_interval(unit: Unit, estimate: Estimate | None) -> str:
    """``44.0-46.2``; empty where none can be given."""
    interval = estimate.interval if estimate else None
    return "-".join(map(unit.format, interval)) if interval else ""


def make_figure_grids(result: Result) -> Iterator[Grid]:
    """A grid for each run of groups that have the same figures."""
    groups = [(group, {(each.name, each.unit): each for each in found.values()}) for group, found in result.groups()]
    for kinds, members in itertools.groupby(groups, key=lambda item: list(item[1])):
        rows = dict(members)
        grid = Grid("", list(rows))
        for name, unit_of in kinds:
            figures = [found[name, unit_of] for found in rows.values()]
            estimates = [figure.estimate for figure in figures]
            unit = choose_unit(name_unit(name, unit_of), (each.value for each in estimates))
            cells = [unit.format(each.value) for each in estimates]
            below = [format_interval(unit, each) for each in estimates]
            grid.columns.append(Column(*place_name(name_figure(name), unit.name), cells, below))
        yield grid


def place_name(name: str, unit: str) -> tuple[str, str, str]:
    """Heading, name and unit of a column; a unit such as tokens/s is not written beside its own word."""
    heading, _, last = name.rpartition(" ")
    if unit.partition("/")[0] == last:
        return heading, unit, ""
    return (heading, last, unit) if heading else (last, unit, "")


def name_figure(name: str) -> str:
    """``ttft_p50`` is ``TTFT p50``, and ``output_tokens_per_s`` is ``output tokens``."""
    return " ".join(ACRONYMS.get(word, word) for word in IN_NAME.sub("", name).split("_"))


def name_unit(name: str, unit: str) -> str:
    return "share" if name.endswith("_share") and not unit else unit


def drop_columns(grid: Grid, *names: str) -> Grid:
    return Grid(grid.corner, grid.rows, [column for column in grid.columns if column.name not in names])
