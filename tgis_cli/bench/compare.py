"""Two results of the same benchmark: by how much each figure has changed, and whether that is more than noise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from statistics import NormalDist
from typing import Any

from tgis_cli.bench.result import Estimate, Figure, Result
from tgis_cli.bench.shares import MAX_REGRESS
from tgis_cli.bench.statistics.distributions import TAIL, Z
from tgis_server.errors import UsageError
from tgis_server.words.sizes import format_count

MAX_NAMED = 6  # differences between the environments, in a note
MAX_EXPONENT = 300.0  # of e, from which an interval counts as unbounded
CHANGING = ("run.", "memory.free_bytes", "server.address")  # facts of a fingerprint that differ from run to run


class Judgment(StrEnum):
    REGRESSION = "regression"  # larger than allowed, and larger than noise
    WORSE = "worse"  # larger than noise, but allowed
    BETTER = "better"
    NOISE = "noise"  # no larger than chance explains
    UNKNOWN = "unknown"  # cannot be told from noise, without an interval


@dataclass(frozen=True, slots=True)
class Row:
    """One figure in both results."""

    group: str
    name: str
    unit: str
    better: str
    old: Estimate
    new: Estimate
    ratio: Estimate  # new / old; NaN if one of them is 0
    change: Judgment


@dataclass(slots=True)
class Table:
    """All figures that both results have and that can be better or worse."""

    rows: list[Row]
    notes: list[str] = field(default_factory=list)  # sentences: what to know before relying on it

    @property
    def regressions(self) -> list[Row]:
        return [row for row in self.rows if row.change is Judgment.REGRESSION]

    def as_dict(self) -> dict[str, Any]:
        return {
            "has_regressed": bool(self.regressions),
            "rows": [asdict(row) for row in self.rows],
            "notes": self.notes,
        }


def compare_results(old: Result, new: Result, *, max_regress: float = MAX_REGRESS, any_shape: bool = False) -> Table:
    """
    Args:
        max_regress: the share by which a figure may get worse, such as 0.05.
        any_shape: compare also if the loads differ.

    Raises:
        UsageError: they are of different kinds or loads, or have no figure in common.
    """
    check_comparable(old, new, any_shape=any_shape)
    pairs = list(pair_figures(old, new))
    if not pairs:
        titles = (", ".join(title for title, _ in result.groups()) for result in (old, new))
        raise UsageError("The results have no figure in common: the old one has {}, the new one {}.".format(*titles))
    num_judged = sum(bool(before.estimate.interval and after.estimate.interval) for before, after in pairs)
    widening = NormalDist().inv_cdf(1 - TAIL / max(1, num_judged)) / Z
    rows = [make_row(before, after, widening, max_regress) for before, after in pairs]
    return Table(rows, list(list_notes(old, new, rows)))


def check_comparable(old: Result, new: Result, *, any_shape: bool) -> None:
    if old.kind != new.kind:
        raise UsageError(
            f"The old result is from `tgis bench {old.kind}`, but the new one is from `tgis bench {new.kind}`."
        )
    differences = describe_differences(old.shape, new.shape)
    if differences and not any_shape:
        raise UsageError(
            f"The results are of different loads ({', '.join(differences)}): measure the same load again, or compare "
            "them anyway with --any-shape."
        )


def describe_differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """``output_tokens: 64, then 128``."""
    return [
        f"{name}: {old.get(name, 'none')}, then {new.get(name, 'none')}"
        for name in dict.fromkeys((*old, *new))
        if old.get(name) != new.get(name)
    ]


def pair_figures(old: Result, new: Result) -> Iterator[tuple[Figure, Figure]]:
    groups = dict(new.groups())
    for group, figures in old.groups():
        for name, figure in figures.items():
            if figure.better and name in groups.get(group, {}):
                yield figure, groups[group][name]


def make_row(old: Figure, new: Figure, widening: float, max_regress: float) -> Row:
    ratio = estimate_ratio(old.estimate, new.estimate, widening)
    change = judge(old, new, ratio, max_regress)
    return Row(old.group, old.name, old.unit, old.better, old.estimate, new.estimate, ratio, change)


def estimate_ratio(old: Estimate, new: Estimate, widening: float) -> Estimate:
    """The ratio with an interval from those of both figures; it has no upper end if the old one reaches down to 0.

    The distances from each value to the ends of its interval are combined as variances are, on a logarithmic scale
    (G. Y. Zou and A. Donner, "Construction of confidence limits about effect measures: a general approach", Statistics
    in Medicine 27, 2008).

    Args:
        widening: factor for the distances, so that many intervals hold at once (Bonferroni).
    """
    if not (old.value > 0 and new.value > 0):
        return Estimate(math.nan)
    ratio = new.value / old.value
    if not (old.interval and new.interval):
        return Estimate(ratio)
    (old_down, old_up), (new_down, new_up) = (
        [distance(each.value, end) for end in each.interval or ()] for each in (old, new)
    )
    down, up = widening * math.hypot(new_down, old_up), widening * math.hypot(new_up, old_down)
    return Estimate(ratio, ratio * math.exp(-down), ratio * math.exp(up) if up < MAX_EXPONENT else math.inf)


def distance(value: float, end: float) -> float:
    return abs(math.log(value / end)) if end > 0 else math.inf


def judge(old: Figure, new: Figure, ratio: Estimate, max_regress: float) -> Judgment:
    if math.isnan(ratio.value):
        return judge_zero(old, new)
    if not ratio.interval:
        return Judgment.UNKNOWN
    low, high = ratio.interval
    if low <= 1 <= high:
        return Judgment.NOISE
    if is_better(old, new):
        return Judgment.BETTER
    is_beyond = ratio.value > 1 + max_regress if old.better == "lower" else ratio.value < 1 - max_regress
    return Judgment.REGRESSION if is_beyond else Judgment.WORSE


def judge_zero(old: Figure, new: Figure) -> Judgment:
    """Where one value is 0, as shares of failures are, there is no ratio: the intervals must not touch."""
    before, after = find_ends(old), find_ends(new)
    if not (before and after):
        return Judgment.UNKNOWN
    if before[0] <= after[1] and after[0] <= before[1]:
        return Judgment.NOISE
    return Judgment.BETTER if is_better(old, new) else Judgment.REGRESSION


def is_better(old: Figure, new: Figure) -> bool:
    return (new.estimate.value > old.estimate.value) == (old.better == "higher")


def find_ends(figure: Figure) -> tuple[float, float] | None:
    """The interval of a figure that is 0 in one result. A throughput of 0 is exact: noise never stops all work."""
    value = figure.estimate.value
    return figure.estimate.interval or ((value, value) if figure.better == "higher" else None)


def list_notes(old: Result, new: Result, rows: list[Row]) -> Iterator[str]:
    for name, result in (("old", old), ("new", new)):
        if not result.is_valid:
            yield f"The {name} result is invalid: {result.problems[0]}"
        if result.is_cut:
            yield f"The {name} result is from a run that was stopped early."
    old_groups, new_groups = ([group for group, _ in result.groups()] for result in (old, new))
    if missing := [group for group in old_groups if group not in new_groups]:
        yield f"Only the old result has {', '.join(missing)}."
    if added := [group for group in new_groups if group not in old_groups]:
        yield f"Only the new result has {', '.join(added)}."
    if differences := describe_differences(old.shape, new.shape):
        yield f"The loads differ in {'; '.join(differences)}."
    if differences := describe_differences(flatten(old.fingerprint), flatten(new.fingerprint)):
        more = [f"{len(differences) - MAX_NAMED} more"] if len(differences) > MAX_NAMED else []
        yield f"The environments differ in {'; '.join(differences[:MAX_NAMED] + more)}."
    if unknown := sum(row.change is Judgment.UNKNOWN for row in rows):
        yield (
            f"Changes in {format_count(unknown, 'figure')} without an interval cannot be told from noise, so they "
            "never count as regressions."
        )


def flatten(facts: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Facts of a fingerprint by dotted names, without those that differ in each run: measurements, ports, options."""
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        elif not isinstance(value, float) and not (prefix + name).startswith(CHANGING):
            flat[prefix + name] = value
    return flat
