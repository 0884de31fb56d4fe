"""The parts of the page that need no script: remarks, tables, the figures of each load, and how it was measured."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from tgis_cli.bench.load.detail import Level
from tgis_cli.bench.report.facts import describe_level
from tgis_cli.bench.report.grids import (
    ACRONYMS,
    Grid,
    format_interval,
    make_grids,
    make_percentile_grid,
    name_figure,
)
from tgis_cli.bench.report.remarks import make_remarks
from tgis_cli.bench.report.units import choose_unit
from tgis_cli.bench.result import Estimate, Result
from tgis_server.words.control_characters import escape_controls
from tgis_server.words.sizes import format_bytes

EN_DASH = "\u2013"
GIGA = 1e9
TABLE = '<div class="table" tabindex="0"><table><thead>{}</thead><tbody>{}</tbody></table></div>'
SETUP = '<details open><summary>Machine, model, server and options</summary><div class="panels">{}</div></details>'


def clean(text: object) -> str:
    """Any text as HTML, with its control characters shown."""
    return escape(escape_controls(str(text)))


def write_remarks(result: Result) -> str:
    items = [
        f'<li class="{remark.label}"><b>{remark.label.capitalize()}</b><span>{clean(remark.sentence)}</span></li>'
        for remark in make_remarks(result)
    ]
    return f'<ul class="remarks">{"".join(items)}</ul>' if items else ""


def write_tables(result: Result) -> str:
    tables = "".join(write_grid(grid) for grid in make_grids(result))
    return tables or '<p class="empty">Nothing was measured.</p>'


def write_grid(grid: Grid) -> str:
    rows = [
        f'<tr><th scope="row">{clean(row)}</th>{write_cells(grid, number)}</tr>' for number, row in enumerate(grid.rows)
    ]
    return TABLE.format(write_head(grid), "".join(rows))


def write_head(grid: Grid) -> str:
    names = "".join(f'<th scope="col">{clean(column.name)}</th>' for column in grid.columns)
    headings = ""
    if any(column.heading for column in grid.columns):
        groups = itertools.groupby(grid.columns, key=lambda column: column.head)
        spans = "".join(
            f'<th scope="colgroup" colspan="{len(list(members))}">{clean(head)}</th>' for head, members in groups
        )
        headings = f"<tr><th></th>{spans}</tr>"
    return f"{headings}<tr><th>{clean(grid.corner)}</th>{names}</tr>"


def write_cells(grid: Grid, number: int) -> str:
    return "".join(
        f"<td>{clean(column.cells[number])}{write_small(column.below[number] if column.below else '')}</td>"
        for column in grid.columns
    )


def write_small(text: str) -> str:
    return f"<small>{clean(text.replace('-', EN_DASH))}</small>" if text else ""


def write_levels(levels: Sequence[Level]) -> str:
    """The figures of each load; the page's script shows one at a time."""
    return "".join(
        f'<div class="level" data-level="{number}"><h2>{clean(level.title)}</h2>'
        f'<dl class="tiles">{"".join(write_tiles(level))}</dl>{write_details(level)}</div>'
        for number, level in enumerate(levels)
    )


def write_tiles(level: Level) -> Iterator[str]:
    rate = level.output_tokens_per_s
    yield write_tile("Output", rate, "tokens/s", describe_range(rate, "tokens/s"))
    for name, words in (("ttft", "Time to first token"), ("itl", "Inter-token latency"), ("e2e", "End to end")):
        percentiles = level.latencies[name].percentiles if name in level.latencies else {}
        if "50" in percentiles:
            values = [percentiles[percent].value for percent in ("50", "95") if percent in percentiles]
            unit = choose_unit("s", values)
            more = f"p95 {unit.format_with_name(values[1])}" if len(values) > 1 else ""
            yield write_tile(f"{words}, p50", percentiles["50"], "s", more)
    counts = f"{level.completed:,} completed, {level.failed:,} failed"
    yield write_tile("Requests", level.requests_per_s, "requests/s", counts)


def write_tile(words: str, estimate: Estimate, unit: str, more: str) -> str:
    chosen = choose_unit(unit, [estimate.value])
    name = chosen.name.replace("requests/s", "/s")
    figure = f"{clean(chosen.format(estimate.value))} <small>{clean(name)}</small>"
    return f'<div><dt>{clean(words)}</dt><dd>{figure}</dd><dd class="more">{clean(more)}</dd></div>'


def describe_range(estimate: Estimate, unit: str) -> str:
    if not estimate.value:
        return ""
    chosen = choose_unit(unit, [estimate.value])
    return format_interval(chosen, estimate).replace("-", f" {EN_DASH} ")


def write_details(level: Level) -> str:
    grid = make_percentile_grid(level)
    table = write_grid(grid) if grid.rows else '<p class="empty">No request was completed in the steady window.</p>'
    return table + write_facts((fact.name, fact.text) for fact in describe_level(level))


def write_facts(facts: Iterator[tuple[str, str]]) -> str:
    rows = "".join(f"<dt>{clean(name)}</dt><dd>{clean(text)}</dd>" for name, text in facts)
    return f'<dl class="facts">{rows}</dl>' if rows else ""


def write_setup(result: Result) -> str:
    """The command, then the machine, the versions and the options, by group."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for title, facts in (("Origin", result.fingerprint), ("Shape", result.shape), ("Options", result.options)):
        for name, value in facts.items():
            is_group = isinstance(value, Mapping) and facts is result.fingerprint
            rows = groups.setdefault(name_group(name) if is_group else title, [])
            rows += flatten(value, "" if is_group else clean_name(name))
    panels = "".join(
        f'<div class="panel"><h3>{clean(title)}</h3>{write_facts(iter(rows))}</div>'
        for title, rows in groups.items()
        if rows
    )
    command = f'<p class="command"><code>{clean(result.command)}</code></p>' if result.command else ""
    return command + (SETUP.format(panels) if panels else "")


def name_group(name: str) -> str:
    """``CPU``, ``Server``."""
    words = name_figure(name)
    return words if words in ACRONYMS.values() else words.capitalize()


def flatten(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Values with the names that lead to them, without empty ones."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from flatten(each, f"{name} {clean_name(key)}".strip())
    elif isinstance(value, Sequence) and not isinstance(value, str):
        if any(isinstance(each, Mapping) for each in value):
            for number, each in enumerate(value):
                yield from flatten(each, f"{name} {number}".strip())
        elif value:
            yield name, ", ".join(format_fact(name, each) for each in value)
    elif value is not None and value != "":
        yield name.removesuffix(" bytes").removesuffix(" share"), format_fact(name, value)


def clean_name(name: object) -> str:
    return str(name).replace("_", " ")


def format_fact(name: str, value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case int() if name.endswith(" bytes"):
            return format_bytes(value)
        case int() | float() if name.endswith(" share"):
            return f"{value:.1%}"
        case int() | float() if "bandwidth" in name and value > GIGA / 1000:
            return f"{value / GIGA:.1f} GB/s"
        case int() | float() if "flops per s" in name:
            return f"{value / GIGA:,.0f} GFLOP/s"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.4g}"
    return str(value)
