"""Options and what is inferred from them, as the tables of ``tgis config show``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tgis_cli.decide.resolve import Resolved, format_value
from tgis_cli.terminal.capabilities import BOLD, DIM, paint
from tgis_server.options import GROUPS, LoadedConfig, options
from tgis_server.words.layout import lay_out

Row = tuple[str, str, str]


def describe_options(
    loaded: LoadedConfig, resolved: Resolved | None, width: int | None = None, *, is_colored: bool = False
) -> Iterator[str]:
    """A table per group of options, and one of inferred values if there are any.

    Args:
        width: the terminal's width; ``None`` leaves each row on one line.
        is_colored: titles are bold, and defaults dimmed.
    """
    tables = {group: list(list_options(loaded, group)) for group in GROUPS}
    header = ("option", "value", "origin")
    all_rows = [header, *(row for rows in tables.values() for row in rows)]
    laid_out = dict(zip(all_rows, lay_out(all_rows, width, indent=0), strict=True))
    for group, rows in tables.items():
        yield paint(group, BOLD, is_colored=is_colored)
        yield from paint_rows([header, *rows], [laid_out[row] for row in (header, *rows)], is_colored=is_colored)
        yield ""
    if resolved is not None:
        inferred = [(name, format_value(each["value"]), each["reason"]) for name, each in resolved.inferred().items()]
        rows = [("what", "value", "why"), *inferred]
        yield paint("Inferred", BOLD, is_colored=is_colored)
        yield from paint_rows(rows, lay_out(rows, width, indent=0), is_colored=is_colored)


def list_options(loaded: LoadedConfig, group: str) -> Iterator[Row]:
    """The options of a group with their values and where these come from."""
    described = loaded.as_dict()
    for option in options():
        if option.opt.group == group:
            value, origin = described[option.name]["value"], described[option.name]["origin"]
            is_unset = value is None and option.opt.unset
            yield option.flag, format_option(value), f"default: {option.opt.unset}" if is_unset else origin


def paint_rows(rows: Sequence[Row], laid_out: Sequence[Sequence[str]], *, is_colored: bool) -> Iterator[str]:
    """The lines of a table; its first row is the header."""
    for number, ((_, _, origin), lines) in enumerate(zip(rows, laid_out, strict=True)):
        is_dim = number == 0 or origin.startswith("default")
        for line in lines:
            yield paint(line, DIM, is_colored=is_colored and is_dim)


def format_option(value: Any) -> str:
    if value is None:
        return "-"
    return str(value).lower() if isinstance(value, bool) else str(value)
