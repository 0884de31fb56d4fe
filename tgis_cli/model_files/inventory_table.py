"""Cached models as the table of ``tgis models``."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from tgis_cli.model_files.inventory import CachedModel
from tgis_cli.terminal.progress import format_seconds
from tgis_cli.terminal.sentences import print_sentence
from tgis_cli.terminal.tables import make_table, open_console
from tgis_server.words.sizes import format_bytes

DISPENSABLE = ("architecture", "format", "last used", "engine", "revision")  # dropped in this order to fit the width
SPACING = 2


def print_models(found: Sequence[CachedModel]) -> None:
    """Print a table, and each model's problems below it."""
    rows = [describe_model(model) for model in found]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    console = open_console()
    for column in DISPENSABLE:
        if sum(widths.values()) + SPACING * len(widths) > console.width:
            del widths[column]
    table = make_table()
    for column in widths:
        table.add_column(column, header_style="dim", justify="right" if column == "size" else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(row[column] for column in widths))
    console.print(table)
    for model in found:
        for problem in model.problems:
            print_sentence(f"{model.model}: {problem}", sys.stdout)
        if not model.engine and model.is_complete:
            print_sentence(f"{model.model}: {model.why_no_engine}", sys.stdout)


def describe_model(model: CachedModel) -> dict[str, str]:
    """Cells by column."""
    return {
        "model": model.model,
        "revision": ", ".join((*model.revisions, model.commit[:8])) or "-",
        "size": format_bytes(model.num_bytes),
        "format": model.format or "-",
        "architecture": model.architecture or "-",
        "engine": model.engine or "none",
        "complete": "yes" if model.is_complete else "no",
        "last used": format_age(model.last_used),
    }


def format_age(when: float) -> str:
    """``3 h ago``; ``-`` for 0."""
    if not when:
        return "-"
    days = (time.time() - when) / 86_400
    return f"{days:.0f} days ago" if days >= 2 else f"{format_seconds(max(0, days * 86_400))} ago"
