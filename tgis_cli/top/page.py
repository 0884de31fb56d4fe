"""The page that `tgis top` draws: lines of text for a terminal of a given size. Knows nothing of the terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from tgis_cli.clients.answer import format_latency, format_rate
from tgis_cli.clients.server_table import format_age
from tgis_cli.terminal.capabilities import BOLD, DIM, paint
from tgis_cli.top.glance import READY, Glance, Latency, format_share, or_dash
from tgis_cli.top.processes import ServerProcess
from tgis_server.words.control_characters import escape_controls
from tgis_server.words.layout import count_columns, wrap
from tgis_server.words.sizes import format_bytes, format_count

BARS = "▁▂▃▄▅▆▇█"
LABEL, VALUE = 15, 10  # columns
NAME = 24  # of a process
GREEN, YELLOW = "32", "33"
KEYS = "q: quit"
MAX_REASON = 4  # lines


@dataclass(frozen=True, slots=True)
class Style:
    """What a page may use."""

    is_colored: bool = False
    has_graphs: bool = False

    def paint(self, text: str, code: str) -> str:
        return paint(text, code, is_colored=self.is_colored)


def make_page(glance: Glance, columns: int, rows: int | None, style: Style) -> list[str]:
    """
    Args:
        rows: at most this many lines; ``None``: any number.
    """
    lines = [*make_head(glance, columns, style), "", *make_rates(glance, columns, style), ""]
    lines += [*make_latencies(glance, columns, style), *make_facts(glance, columns)]
    if glance.processes:
        free = None if rows is None else max(0, rows - len(lines) - 2)
        lines += ["", *make_processes(glance.processes, free, columns, style)]
    return lines if rows is None else lines[:rows]


def make_head(glance: Glance, columns: int, style: Style) -> list[str]:
    """Which server it is, and what it is doing."""
    mode = f" ({glance.mode})" if glance.mode and glance.mode != f"{glance.model} model" else ""
    clock = time.strftime("%H:%M:%S", time.localtime(glance.at))
    up = "" if glance.up_s is None else f", up {format_age(glance.up_s)}"
    again = ""
    if glance.restarted_at is not None:
        again = f", restarted at {time.strftime('%H:%M:%S', time.localtime(glance.restarted_at))}"
    title = spread(f"{glance.model}{mode}" or "unknown model", glance.url, columns)
    state = spread(f"{glance.state}{up}{again}", clock, columns)
    reason = wrap(glance.reason, columns)[:MAX_REASON] if glance.reason else []
    color = GREEN if glance.state == READY else YELLOW
    return [style.paint(title, BOLD), style.paint(state, color), *(crop(line, columns) for line in reason)]


def make_rates(glance: Glance, columns: int, style: Style) -> list[str]:
    """A row for each figure that changes constantly, with its graph."""
    rows = (
        ("requests/s", or_dash(glance.requests_per_s, format_rate), "requests_per_s"),
        ("tokens/s", or_dash(glance.output_tokens_per_s, format_rate), "output_tokens_per_s"),
        ("prompt tokens/s", or_dash(glance.prompt_tokens_per_s, format_rate), "prompt_tokens_per_s"),
        ("running", or_dash(glance.running, str), "running"),
        ("waiting", or_dash(glance.waiting, str), "waiting"),
        ("KV blocks used", or_dash(glance.kv_share, format_share), "kv_share"),
    )
    lines = []
    for label, value, name in rows:
        start = crop(f"{label:<{LABEL}}{value:>{VALUE}}", columns)
        points = glance.history[-(columns - len(start) - 2) :] if style.has_graphs and columns > len(start) + 2 else ()
        graph = draw_graph([getattr(point, name) for point in points], top=1 if name == "kv_share" else 0)
        lines.append(f"{start}  {graph}".rstrip())
    return lines


def make_latencies(glance: Glance, columns: int, style: Style) -> list[str]:
    title = f"last {format_age(glance.window_s)}" if glance.window_s is not None else "latencies"
    names = ("p50", "p95", "p99", "mean")
    head = crop(f"{title:<{LABEL}}" + "".join(f"{name:>{VALUE}}" for name in names), columns)
    rows = {"queue": glance.queue, "first token": glance.first_token, "between tokens": glance.inter_token}
    return [style.paint(head, DIM), *(crop(make_latency(label, row), columns) for label, row in rows.items())]


def make_latency(label: str, row: Latency) -> str:
    values = (row.p50_s, row.p95_s, row.p99_s, row.mean_s)
    return f"{label:<{LABEL}}" + "".join(f"{or_dash(value, format_latency):>{VALUE}}" for value in values)


def make_facts(glance: Glance, columns: int) -> list[str]:
    """What rarely matters, in as few lines as possible."""
    failures = None if glance.failures is None else sum(glance.failures.values())
    causes = f" ({', '.join(f'{number} {err}' for err, number in (glance.failures or {}).items())})" if failures else ""
    facts = [
        f"rows per step {or_dash(glance.rows_per_step, format_rate)}",
        f"step {or_dash(glance.step_s, format_latency)}",
        f"prefix cache hits {or_dash(glance.prefix_hit_share, format_share)}",
        f"preemptions {or_dash(glance.preemptions, str)}",
        f"KV blocks {or_dash(glance.kv_blocks_total, '{:,}'.format)}",
        f"requests in flight {or_dash(glance.calls_in_flight, str)}",
        f"failures {or_dash(failures, str)}{causes}",
    ]
    lines = [""]
    for fact in facts:
        longer = f"{lines[-1]}, {fact}" if lines[-1] else fact
        if len(longer) <= columns:
            lines[-1] = longer
        else:
            lines.append(fact)
    return [crop(line, columns) for line in lines]


def make_processes(processes: Sequence[ServerProcess], free: int | None, columns: int, style: Style) -> list[str]:
    """A row for each process; those without room are added up in the last row.

    Args:
        free: rows below the title; ``None``: as many as it takes.
    """
    head = f"{'process':<{NAME}}{'pid':>{VALUE}}{'memory':>{VALUE}}{'CPU':>{VALUE}}"
    shown, rest = list(processes), []
    if free is not None and len(shown) > free:
        shown, rest = shown[: max(0, free - 1)], shown[max(0, free - 1) :]
    lines = [make_process(process.name, str(process.pid), [process]) for process in shown]
    if rest:
        lines.append(make_process(format_count(len(rest), "other"), "", rest))
    return [style.paint(crop(head, columns), DIM), *(crop(line, columns) for line in lines)]


def make_process(name: str, pid: str, processes: Sequence[ServerProcess]) -> str:
    memory = format_bytes(sum(process.memory_bytes for process in processes))
    cpu = sum(process.cpu_share for process in processes)
    return f"{name:<{NAME}}{pid:>{VALUE}}{memory:>{VALUE}}{cpu:>{VALUE}.0%}"


def draw_graph(values: Sequence[float | None], top: float) -> str:
    """A bar for each value; a blank where it is unknown or 0.

    Args:
        top: the value of the highest bar, if no value is higher.
    """
    top = max([top, *(value for value in values if value is not None)])
    return "".join(BARS[min(7, int(value / top * 8))] if value and value > 0 else " " for value in values)


def spread(left: str, right: str, columns: int) -> str:
    """Two texts at the ends of a line; the left one is cut where it has no room, the right one disappears first."""
    right = clean(right)
    if count_columns(right) > columns // 2:
        return crop(left, columns)
    left = crop(left, columns - count_columns(right) - 2)
    return left + " " * (columns - count_columns(left) - count_columns(right)) + right


def crop(text: str, columns: int) -> str:
    """The part of a text that a line of a terminal can hold."""
    text = clean(text)
    if count_columns(text) <= columns:
        return text
    kept, used = 0, 1  # the ellipsis
    for char in text:
        used += count_columns(char)
        if used > columns:
            break
        kept += 1
    return f"{text[:kept]}…" if columns > 0 else ""


def clean(text: str) -> str:
    """Text from the server must not control the terminal."""
    return escape_controls(text).replace("\n", " ").replace("\t", " ")
