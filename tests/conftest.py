"""Shared by all tests: helper modules by name, which tests share a worker, and what signals mean to children.

Two markers decide where a test runs in `make test` and `make acceptance` (scripts/run_tests.py): ``serial`` and
``acceptance``, described in pyproject.toml. docs/testing.md tells more.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
for folder in ("", "unit", "integration", "models", "conformance"):
    sys.path.insert(0, str(HERE / folder))
pytest_plugins = ["cost"]

RESET = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
IGNORED = pytest.StashKey[list[int]]()


def pytest_configure(config: pytest.Config) -> None:
    """Let children start without the signals that nohup or a shell's background jobs ignore.

    A signal that is ignored stays so in children, and servers of tests would not hear it; one that is caught is the
    default there. Python restores SIGPIPE in children by itself.
    """
    ignored = [int(number) for number in RESET if signal.getsignal(number) is signal.SIG_IGN]
    config.stash[IGNORED] = getattr(config, "workerinput", {}).get("ignored_signals", ignored)
    for number in config.stash[IGNORED]:
        signal.signal(number, lambda *_: None)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """A worker is a child too, but lives as long as this process: tell it what to ignore."""
    node.workerinput["ignored_signals"] = node.config.stash[IGNORED]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``--dist loadfile`` tests share a worker by what they share besides: see ``group_of``."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class LoadGroups(LoadFileScheduling):  # loadgroup of pytest-xdist 3.8 does not reach pytest 9
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return LoadGroups(config, log)


def group_of(nodeid: str) -> str:
    """Tests of a file are a group; those of the contract are one by server, and some files are one together."""
    file, _, name = nodeid.partition("::")
    if "conformance/" in file:
        from contract_servers import VARIANTS

        return next((f"contract of {server}" for server in VARIANTS if f"[{server}-" in name), "contract")
    shared = ("gpu/", "models/test_native")  # the device; processes for ranks
    return next((group for group in shared if group in file), file)
