"""What every benchmark writes: a file of one format, and the figures in it.

The kinds of results differ in their details, but each has a flat list of figures. Tables, CSV and comparisons read
only that list, so they serve all kinds.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import UnionType
from typing import Any

from tgis_server.errors import UsageError

FORMAT = "tgis-bench"
VERSION = 1
PERCENTILES = {"50": 0.5, "90": 0.9, "95": 0.95, "99": 0.99, "99.9": 0.999}  # of latencies, as shares
BETTER = ("lower", "higher", "")
PARTS: dict[str, type[Any]] = {  # of a result, besides its figures
    "kind": str,
    "created_at": str,
    "command": str,
    "options": dict,
    "shape": dict,
    "fingerprint": dict,
    "problems": list,
    "notes": list,
    "is_cut": bool,
    "detail": dict,
}


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % confidence interval; ``low`` and ``high`` are ``None`` where none can be given."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        return None if self.low is None or self.high is None else (self.low, self.high)


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a result."""

    group: str  # what was measured: "8 streams", "decode, 32 rows at 128", "cold start"
    name: str  # "ttft_p50", "output_tokens_per_s"
    unit: str  # "s", "tokens/s", "requests/s", "bytes", "" for shares and counts
    better: str  # "lower", "higher", or "" for figures that are neither
    estimate: Estimate
    count: int = 0  # of samples behind it


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def name_command() -> str:
    return shlex.join(["tgis", *sys.argv[1:]])


@dataclass(slots=True, kw_only=True)
class Result:
    """One run of one benchmark."""

    kind: str  # "load", "engine", "start", "ab", "self"
    created_at: str = field(default_factory=now)  # ISO 8601, UTC
    command: str = field(default_factory=name_command)  # as typed
    options: dict[str, Any]  # of the benchmark
    shape: dict[str, Any]  # what has to be equal for two results to be comparable
    fingerprint: dict[str, Any]  # of machine, versions, model and server
    figures: list[Figure] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # sentences: why the figures cannot be trusted
    notes: list[str] = field(default_factory=list)  # sentences that do not cast doubt: saturation, the knee
    is_cut: bool = False  # ended before its time, by Ctrl-C or because the server went away
    detail: dict[str, Any] = field(default_factory=dict)  # of the kind; for "load": LoadDetail

    @property
    def is_valid(self) -> bool:
        return not self.problems

    def groups(self) -> Iterator[tuple[str, dict[str, Figure]]]:
        """The figures by group, in order."""
        groups: dict[str, dict[str, Figure]] = {}
        for figure in self.figures:
            groups.setdefault(figure.group, {})[figure.name] = figure
        yield from groups.items()

    def to_json(self) -> str:
        """One JSON object, without figures that have no value. Other numbers that are not finite become null."""
        figures = [asdict(figure) for figure in self.figures if math.isfinite(figure.estimate.value)]
        facts = {"format": FORMAT, "version": VERSION, "is_valid": self.is_valid, **asdict(self), "figures": figures}
        return json.dumps(drop_nonfinite(facts), indent=1, allow_nan=False)


def drop_nonfinite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: drop_nonfinite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [drop_nonfinite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_result(path: Path) -> Result:
    """Read a result file. Figures without a value, which earlier versions wrote, are left out.

    Raises:
        UsageError: it cannot be read, is not a result, is damaged, or has another version.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse_constant)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError:
        raise UsageError(f"{path} is not a result of `tgis bench --json`: it is not JSON.") from None
    except RecursionError:
        raise UsageError(f"{path} is damaged: it is nested too deeply.") from None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise UsageError(f"{path} is not a result of `tgis bench --json`.")
    try:
        version = take(facts, "version", int)
        if version == VERSION:
            return read_facts(facts)
    except Damage as damage:
        raise UsageError(f"{path} is damaged: {damage}.") from None
    raise UsageError(
        f"{path} is in version {version} of the result format, but this tgis reads version {VERSION}: measure again, "
        "or use the tgis that wrote the file."
    )


class Damage(Exception):
    """A clause that says which part of a result is missing or wrong."""


def refuse_constant(name: str) -> None:
    """JSON has no NaN and no infinity, but Python's reader takes them."""
    raise ValueError(name)


def read_facts(facts: dict[str, Any]) -> Result:
    fields = {name: take(facts, name, kind) for name, kind in PARTS.items()}
    for name in ("problems", "notes"):
        if not all(isinstance(each, str) for each in fields[name]):
            raise Damage(f"{name} contains something other than sentences")
    figures = [read_figure(each) for each in take(facts, "figures", list)]
    return Result(**fields, figures=[figure for figure in figures if figure is not None])


def read_figure(facts: Any) -> Figure | None:
    """``None`` if it has no value."""
    words = {name: take(facts, name, str) for name in ("group", "name", "unit", "better")}
    if words["better"] not in BETTER:
        raise Damage(f"better is {words['better']!r} in a figure")
    found = take(facts, "estimate", dict)
    value, low, high = (read_number(found, name) for name in ("value", "low", "high"))
    count = take(facts, "count", int)
    return None if value is None else Figure(**words, estimate=Estimate(value, low, high), count=count)


def read_number(facts: dict[str, Any], name: str) -> float | None:
    """
    Raises:
        Damage: it is missing, or neither a finite number nor null.
    """
    number: float | None = take(facts, name, int | float | None)
    if number is not None and not abs(number) <= sys.float_info.max:
        raise Damage(f"{name} is not finite")
    return number


def take(facts: Any, name: str, kind: type[Any] | UnionType) -> Any:
    """
    Raises:
        Damage: the part is missing, or of another kind.
    """
    if not isinstance(facts, dict):
        raise Damage(f"{name} is not part of an object")
    if name not in facts:
        raise Damage(f"{name} is missing")
    part = facts[name]
    if not isinstance(part, kind) or (isinstance(part, bool) and kind is not bool):
        raise Damage(f"{name} is {type(part).__name__ if part is not None else 'null'}")
    return part
