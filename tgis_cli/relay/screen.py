"""What people read on a terminal: which lines are shown, how they are shortened, and how they are wrapped.

Files, pipes and JSON get every line as ``lines.py`` makes it. This module writes nothing; ``terminal.py`` does.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tgis_cli.relay.lines import Line
from tgis_server.words.layout import wrap
from tgis_server.words.processes import LAUNCHER
from tgis_server.words.sizes import format_count

COLUMNS = re.compile(r".*\S {2,}(?=\S)")  # up to the last column of a row
MAX_HANGING = 0.7  # of the width, before a last column
CALM_LEVELS = ("debug", "info")  # without a name before the text


def select(line: Line, *, is_verbose: bool, is_detail: bool = False) -> Line | None:
    """The line as a terminal shows it; ``None`` for one that only ``--verbose`` shows.

    Without ``--verbose`` a terminal shows warnings and errors, requests in short, the launcher's own lines except
    for details, and events: changes in a running server that someone has requested or is waiting for.
    """
    if is_verbose:
        return line
    if request := read_request(line):
        return replace(line, text=describe_request(request))
    is_calm = line.level in CALM_LEVELS and not line.traceback
    if is_calm and (is_detail or (line.process != LAUNCHER and not is_event(line))):
        return None
    return line


def is_event(line: Line) -> bool:
    """Whether a line has a field ``event``, such as ``extra={"event": "certificate_reloaded"}`` adds to a record."""
    return '"event"' in line.as_json and "event" in json.loads(line.as_json)


def read_request(line: Line) -> Mapping[str, Any] | None:
    """The fields of the front-end's line about an input that has ended."""
    if "stop_reason=" not in line.text:
        return None
    fields: dict[str, Any] = json.loads(line.as_json)
    return fields if {"stop_reason", "generated_tokens", "total_s"} <= fields.keys() else None


def describe_request(fields: Mapping[str, Any]) -> str:
    """``12 tokens in, 80 out, 1.24 s (65/s), EOS_TOKEN``."""
    num_generated, inference_s = fields["generated_tokens"], fields.get("inference_s")
    rate = f" ({num_generated / inference_s:,.0f}/s)" if inference_s and num_generated > 1 else ""
    num_in = format_count(fields.get("input_tokens", 0), "token")
    counts = f"{num_in} in, {num_generated:,} out, {format_duration(fields['total_s'])}{rate}"
    if fields["stop_reason"] == "ERROR":
        return f"{fields['message']} ({counts})"
    return f"{counts}, {fields['stop_reason']}"


def format_duration(seconds: float) -> str:
    """``38 ms``, ``1.24 s``, ``124 s``."""
    if seconds < 0.1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"


def make_prefix(line: Line, name_width: int) -> tuple[str, str, str]:
    """Time, process and level, as the start of a line: ``12:30:01 ``, ``shard-0   ``, ``warning: ``."""
    clock = time.strftime("%H:%M:%S ", time.localtime(line.created))
    return clock, f"{line.process:<{name_width}}  ", "" if line.level in CALM_LEVELS else f"{line.level}: "


def wrap_line(line: Line, name_width: int, width: int) -> list[str]:
    """The rows of a line, each hanging below its text or, if that has columns, below the last one.

    A traceback follows.
    """
    clock, name, level = make_prefix(line, name_width)
    rest = " " * len(clock + name)
    columns = COLUMNS.match(line.text)
    is_table = columns is not None and len(rest + columns[0]) < width * MAX_HANGING
    hanging = " " * len(columns[0].lstrip()) if columns and is_table else ""
    rows = wrap(line.text, width, first=clock + name + level, rest=rest + hanging)
    return [*rows, *(row for text in line.traceback for row in wrap(text, width, first=rest))]
