"""Remarks on a result, the most important ones first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tgis_cli.bench.load.detail import Level
from tgis_cli.bench.report.grids import find_detail
from tgis_cli.bench.result import Result
from tgis_server.errors import Overloaded
from tgis_server.words.sizes import format_count


@dataclass(frozen=True, slots=True)
class Remark:
    label: str  # "problem", "failed", "cut", "note"
    sentence: str


def make_remarks(result: Result) -> list[Remark]:
    """Problems, failures by status, and notes."""
    detail = find_detail(result)
    remarks = [Remark("problem", sentence) for sentence in result.problems]
    if result.is_cut:
        remarks.append(Remark("cut", "The run was stopped early: the figures cover what was measured until then."))
    for level in detail.levels if detail else ():
        remarks += describe_failures(level)
    return remarks + [Remark("note", sentence) for sentence in result.notes]


def describe_failures(level: Level) -> Iterator[Remark]:
    for status, number in level.failures.items():
        text = level.failure_texts.get(status, "")
        text = "" if text == status else text
        if text == str(Overloaded()):
            text += ": lower the load, or raise the server's --max-concurrent-requests."
        sentence = f"{format_count(number, 'request')} of {level.title}: {status}"
        yield Remark("failed", f"{sentence}. {text}" if text else f"{sentence}.")
