"""Shared by all tests: the import of helper modules, options, the garbage collector, and the signals of children.

Two markers decide where a test runs in `make test` and `make acceptance` (scripts/run_tests.py): ``serial`` and
``acceptance``, described in pyproject.toml. docs/testing.md has the details.
"""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
for folder in (
    "",
    "unit",
    *(f"unit/{room.name}" for room in HERE.glob("unit/*/")),
    "integration",
    "models",
    "conformance",
):
    sys.path.insert(0, str(HERE / folder))
pytest_plugins = ["cost", "groups"]

RESET = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
IGNORED = pytest.StashKey[list[int]]()

# If jsonschema can import this, it compiles 38 grammars, of addresses that no schema here has: seconds in every worker.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """Never search what has been imported for garbage: there are a million objects, and all of them stay."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_configure(config: pytest.Config) -> None:
    """Let children start without the signals that nohup or a shell's background jobs ignore.

    A signal that this process ignores stays ignored in its children, so the servers that tests start would not receive
    it; one that it catches is reset to the default there. Python restores SIGPIPE in children by itself.
    """
    ignored = [int(number) for number in RESET if signal.getsignal(number) is signal.SIG_IGN]
    config.stash[IGNORED] = getattr(config, "workerinput", {}).get("ignored_signals", ignored)
    for number in config.stash[IGNORED]:
        signal.signal(number, lambda *_: None)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker what to ignore: it is a child too, but lives as long as this process."""
    node.workerinput["ignored_signals"] = node.config.stash[IGNORED]
