"""Verdicts as text and as JSON."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from tgis_cli.doctor.checks import GROUP_OF
from tgis_cli.doctor.verdict import Level, Subject, Verdict
from tgis_cli.machine.words import count
from tgis_cli.terminal.capabilities import paint
from tgis_server import __version__
from tgis_server.words.layout import wrap

MARKS = {Level.OK: "ok  ", Level.WARN: "warn", Level.FAIL: "FAIL"}
COLORS = {Level.OK: "32", Level.WARN: "33", Level.FAIL: "1;31"}  # ANSI
INDENT = " " * 8
LONG_LINE = 100  # columns beyond which a fix has its own line, where lines are not wrapped


def describe_verdicts(verdicts: Sequence[Verdict], width: int | None, *, is_colored: bool) -> Iterator[str]:
    """Yield lines: verdicts with their fixes by group, and a summary.

    Args:
        width: the terminal's width; ``None`` leaves each sentence on one line.
    """
    for group, members in itertools.groupby(verdicts, key=lambda verdict: GROUP_OF[verdict.check]):
        yield group
        for verdict in members:
            yield from describe_verdict(verdict, width, is_colored=is_colored)
        yield ""
    yield summarize(verdicts)


def describe_verdict(verdict: Verdict, width: int | None, *, is_colored: bool) -> Iterator[str]:
    """The lines of a verdict, hanging below the sentence; the fix has its own if both do not fit on one."""
    mark = MARKS[verdict.level]
    start = f"  {mark}  "
    is_short = len(start + str(verdict)) <= (width or LONG_LINE)
    first, *others = wrap(str(verdict) if is_short else verdict.sentence, width, first=start)
    first = first.replace(mark, paint(mark, COLORS[verdict.level], is_colored=is_colored), 1)
    yield from (first, *others)
    if verdict.fix and not is_short:
        yield from wrap(verdict.fix, width, first=INDENT)


def summarize(verdicts: Sequence[Verdict]) -> str:
    """``12 ok, 1 warning, no failures``."""
    levels = Counter(verdict.level for verdict in verdicts)
    return f"{levels[Level.OK]} ok, {count(levels[Level.WARN], 'warning')}, {count(levels[Level.FAIL], 'failure')}"


def verdicts_as_dict(subject: Subject, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    levels = Counter(verdict.level for verdict in verdicts)
    return {
        "tgis": __version__,
        "model": subject.config.model_name,
        "summary": {str(level): levels[level] for level in Level},
        "verdicts": [{"group": GROUP_OF[verdict.check], **verdict.as_dict()} for verdict in verdicts],
    }
