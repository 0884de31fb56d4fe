"""A launch after its group has ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import pytest

from test_supervisor_progress import make_run
from tgis_cli.launch.prepare import Prepared
from tgis_cli.launch.restarts import RestartPolicy
from tgis_cli.launch.serve import Launch
from tgis_cli.runs.run_dir import RunDirLock
from tgis_cli.supervisor.supervisor import Outcome
from tgis_server.options import load_config


def test_a_failure_while_stopping_is_final_and_nothing_is_said_of_restarts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
):
    """Also after a restart that succeeded."""
    policy = RestartPolicy("on-failure", 1)
    policy.delay_after(5)

    async def supervise() -> Outcome:
        launch = Launch(load_config({}, {}), None, {}, policy)  # type: ignore[arg-type]

        async def fail_while_stopping(run: object) -> Outcome:
            os.kill(os.getpid(), signal.SIGTERM)
            await launch._signals.wait_first()
            return Outcome(5, "The drain hung.")

        monkeypatch.setattr(launch, "_supervise_once", fail_while_stopping)
        prepared = Prepared(None, make_run(run_dir=tmp_path), RunDirLock.take(tmp_path))  # type: ignore[arg-type]
        return await launch.supervise(prepared, contextlib.ExitStack())

    assert asyncio.run(supervise()) == Outcome(5, "The drain hung.")
    assert caplog.messages == []
