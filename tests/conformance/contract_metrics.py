"""Prometheus text as a map, and what changed between two readings of it."""

from __future__ import annotations

import re
import urllib.request
from dataclasses import dataclass

LINE = re.compile(r"(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Key = tuple[str, frozenset[tuple[str, str]]]


@dataclass(frozen=True)
class Samples:
    """Values by name and labels; a series that never appeared is 0."""

    values: dict[Key, float]

    def get(self, name: str, **labels: str) -> float:
        return self.values.get((name, frozenset(labels.items())), 0.0)

    def has(self, name: str) -> bool:
        return any(known == name for known, _ in self.values)

    def labels_of(self, name: str) -> list[dict[str, str]]:
        """The labels of every series of this name."""
        return [dict(labels) for known, labels in self.values if known == name]

    def buckets(self, name: str, **labels: str) -> list[float]:
        """The upper bounds of a histogram, without the infinite one."""
        found = [series for series in self.labels_of(f"{name}_bucket") if labels.items() <= series.items()]
        return sorted({float(series["le"]) for series in found if series["le"] != "+Inf"})

    def since(self, before: Samples) -> Samples:
        """How much each value has grown."""
        return Samples({key: value - before.values.get(key, 0.0) for key, value in self.values.items()})

    def without_processes(self) -> Samples:
        """What calls change: the memory and CPU time of the server's processes never rest."""
        return Samples({key: value for key, value in self.values.items() if not key[0].startswith("tgi_process_")})


def fetch_text(http: str) -> str:
    with urllib.request.urlopen(f"{http}/metrics", timeout=10) as response:
        return str(response.read().decode())


def fetch(http: str) -> Samples:
    return parse(fetch_text(http))


def parse(text: str) -> Samples:
    values: dict[Key, float] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            match = LINE.fullmatch(line)
            assert match, f"not a sample: {line}"
            labels = frozenset(LABEL.findall(match["labels"] or ""))
            values[match["name"], labels] = float(match["value"])
    return Samples(values)
