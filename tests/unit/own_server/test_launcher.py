"""Which installation a server of one command is launched with."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from tgis_cli.own_server.launcher import Launcher, LaunchOptions
from tgis_cli.own_server.run_log import RunLog
from tgis_cli.runs.run_dir import RunDirLock, make_run_dir
from tgis_server.errors import GroupFailed
from tgis_server.options import ServeConfig
from tgis_server.run import save_unresolved


def test_another_interpreter_is_started_as_itself(tmp_path):
    """By its own name, as that decides which installation it finds."""
    interpreter = tmp_path / "python"
    interpreter.write_text('#!/bin/sh\necho "$0 $1 $2 $3 has no TGIS"\nexit 1\n')
    interpreter.chmod(0o755)
    environ = {"TMPDIR": str(tmp_path), "PATH": "/bin:/usr/bin"}
    log = RunLog.open(environ)

    with (
        Launcher.start(LaunchOptions({}, python=str(interpreter)), environ, log, None) as launcher,
        pytest.raises(GroupFailed) as error,
    ):
        launcher.check(within_s=60)

    log.close(is_wanted=False, is_needed=False)
    assert str(error.value) == (
        f"The launcher ended with exit code 1: {interpreter} -P -m tgis_cli.attached has no TGIS"
    )


def test_a_launcher_has_no_server_while_it_looks_at_the_model(tmp_path: Path):
    run_dir = make_run_dir(tmp_path)
    save_unresolved(run_dir, ServeConfig())

    with RunDirLock.take(run_dir):
        found = Launcher(SimpleNamespace(pid=os.getpid()), None, None).find_server()  # type: ignore[arg-type]

    assert found is None
