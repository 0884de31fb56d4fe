"""Shared by all tests: the import of helper modules, options, and the signals that children receive.

Two markers decide where a test runs in `make test` and `make acceptance` (scripts/run_tests.py): ``serial`` and
``acceptance``, described in pyproject.toml. docs/testing.md has the details.
"""

from __future__ import annotations

import signal
import sys
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

# If jsonschema can import this, it compiles 38 grammars, of addresses that no schema here has: seconds in every worker.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

RESET = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
IGNORED = pytest.StashKey[list[int]]()


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
