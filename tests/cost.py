"""The cost of tests: `pytest --cost=FILE` appends a line per phase of a test; `python tests/cost.py FILE` adds them up.

CPU seconds are those of the test process and of all processes below it, running or ended, so they tell what a test
costs even on a busy machine. A server that several tests share is paid for by the test that starts it.
"""

from __future__ import annotations

import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, TextIO

import psutil
import pytest

LAUNCHERS = ("launch", "text-generation-launcher", "serve")  # words of a command that starts a server


@dataclass
class Cost:
    """The cost of one phase of a test, or the sum of several."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    num_programs: int = 0  # started by the tests themselves
    num_servers: int = 0  # how many of these programs are servers

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: Cost) -> Cost:
        return Cost(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))


def cpu_seconds() -> float:
    """CPU seconds used so far by this process and everything it has started."""
    used = sum(os.times()[:4])
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.Error:
            continue
        used += times.user + times.system + times.children_user + times.children_system
    return used


class Meter:
    """Writes a line for each phase of a test: wall seconds, CPU seconds, programs, servers, phase, test."""

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.started = Cost()  # programs and servers so far
        sys.addaudithook(self.count)

    def count(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "subprocess.Popen":
            words = {Path(os.fsdecode(word)).name for word in arguments[1]}
            self.started += Cost(num_programs=1, num_servers=len(words & set(LAUNCHERS)) > 0)

    def now(self) -> Cost:
        return Cost(time.monotonic(), cpu_seconds(), self.started.num_programs, self.started.num_servers)

    def measured(self, item: pytest.Item, phase: str) -> Iterator[None]:
        before = self.now()
        try:
            return (yield)
        finally:
            cost = self.now() - before
            fields = (
                f"{cost.wall_s:.3f}",
                f"{cost.cpu_s:.2f}",
                cost.num_programs,
                cost.num_servers,
                phase,
                item.nodeid,
            )
            print(*fields, sep="\t", file=self.file, flush=True)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        return (yield from self.measured(item, "setup"))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        return (yield from self.measured(item, "call"))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Iterator[None]:
        return (yield from self.measured(item, "teardown"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cost", type=Path, metavar="FILE", help="append wall and CPU seconds of each test to FILE")


def pytest_configure(config: pytest.Config) -> None:
    if (path := config.getoption("--cost")) is not None:
        config.pluginmanager.register(Meter(path.open("a")))


# Sums


def read_costs(lines: Iterable[str]) -> dict[str, tuple[set[str], Cost, Cost]]:
    """For each file: its tests, its whole cost, and the cost of the phases in which servers were started."""
    files: dict[str, tuple[set[str], Cost, Cost]] = defaultdict(lambda: (set(), Cost(), Cost()))
    for line in lines:
        wall_s, cpu_s, num_programs, num_servers, _, test = line.rstrip("\n").split("\t", 5)
        name = test.split("::")[0]
        cost = Cost(float(wall_s), float(cpu_s), int(num_programs), int(num_servers))
        tests, whole, starting = files[name]
        files[name] = (tests | {test}, whole + cost, starting + cost if cost.num_servers else starting)
    return files


def print_table(files: dict[str, tuple[set[str], Cost, Cost]]) -> None:
    """Print folders and files, ordered by CPU seconds."""
    folders: dict[str, list[str]] = defaultdict(list)
    for name in files:
        folders[str(Path(name).parent)].append(name)

    def row(title: str, names: list[str]) -> None:
        whole = sum((files[name][1] for name in names), Cost())
        starting = sum((files[name][2] for name in names), Cost())
        num_tests = sum(len(files[name][0]) for name in names)
        numbers = (num_tests, round(whole.wall_s), round(whole.cpu_s), whole.num_programs, whole.num_servers)
        print("|", title, "|", *(f"{number} |" for number in (*numbers, round(starting.cpu_s))))

    print("| | tests | wall s | CPU s | programs | servers | CPU s of phases that start servers |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    row("all", list(files))
    for folder, names in sorted(folders.items()):
        row(folder, names)
        for name in sorted(names, key=lambda name: -files[name][1].cpu_s):
            row(Path(name).name, [name])


if __name__ == "__main__":
    print_table(read_costs(Path(sys.argv[1]).read_text().splitlines()))
