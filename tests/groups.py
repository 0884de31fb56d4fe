"""Which tests share a worker if there are several (`--dist loadfile`): those that share something expensive."""

from __future__ import annotations

from typing import Any

import pytest

TOGETHER = ("gpu/", "models/test_native")  # groups that share the device or the ranks' processes


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
