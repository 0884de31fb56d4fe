"""Verdicts as text and as JSON."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from tgis_cli.doctor.checks import GROUP_OF
from tgis_cli.doctor.verdict import Level, Subject, Verdict
from tgis_cli.machine.words import count
from tgis_server import __version__

MARKS = {Level.OK: "ok  ", Level.WARN: "warn", Level.FAIL: "FAIL"}
COLORS = {Level.OK: "32", Level.WARN: "33", Level.FAIL: "1;31"}  # ANSI
INDENT = " " * 8


def describe_verdicts(verdicts: Sequence[Verdict], width: int, *, is_colored: bool) -> Iterator[str]:
    """Yield lines: verdicts with their fixes by group, and a summary."""
    for group, members in itertools.groupby(verdicts, key=lambda verdict: GROUP_OF[verdict.check]):
        yield group
        for verdict in members:
            mark = MARKS[verdict.level]
            line = f"  {colored(mark, COLORS[verdict.level]) if is_colored else mark}  {verdict.sentence}"
            if len(f"  {mark}  {verdict}") <= width:
                yield f"{line} {verdict.fix}".rstrip()
            else:
                yield line
                if verdict.fix:
                    yield INDENT + verdict.fix
        yield ""
    yield summarize(verdicts)


def colored(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m"


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
