"""Which files are imported, and which tests share a worker if there are several (`--dist loadfile`): those that share
something expensive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

MARKERS = {"serial", "acceptance"}
TOGETHER = ("gpu/", "models/test_native")  # groups that share the device or the ranks' processes


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import no file that lacks a marker which -m asks for: few files have one, and all take many seconds to import."""
    return lacks_marker(collection_path, config.getoption("markexpr")) or None


def lacks_marker(path: Path, expression: str) -> bool:
    """Whether no test of a file can have the markers that an expression like "not acceptance and serial" asks for."""
    required = set() if " or " in expression else MARKERS.intersection(expression.split(" and "))
    return path.suffix == ".py" and any(f"mark.{marker}" not in path.read_text() for marker in required)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Like ``loadfile``, with this module's groups. (``loadgroup`` of pytest-xdist 3.8 finds no marks in pytest 9.)"""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class LoadGroups(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return LoadGroups(config, log)


def group_of(nodeid: str) -> str:
    """The tests of a file form a group; those of the contract form one per server, and some files share one."""
    file, _, name = nodeid.partition("::")
    if "conformance/" in file:
        from contract_servers import VARIANTS

        return next((f"contract of {server}" for server in VARIANTS if f"[{server}-" in name), "contract")
    return next((group for group in TOGETHER if group in file), file)
