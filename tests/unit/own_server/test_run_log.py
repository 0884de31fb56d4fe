"""The logs of `tgis run`: where they are, who may read them, and which are kept."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from tgis_cli.own_server.run_log import MAX_LOGS, RunLog


def test_only_this_user_can_read_a_log_and_its_last_line_is_known(tmp_path: Path):
    log = RunLog.open({"XDG_STATE_HOME": str(tmp_path)})
    log.file.write(b"one\nthe last\n\n")

    assert log.path.parent == tmp_path / "tgis" / "run-logs"
    assert log.path.stat().st_mode & 0o777 == 0o600
    assert log.path.parent.stat().st_mode & 0o777 == 0o700
    assert log.read_last_line() == "the last"
    log.close(is_wanted=False)
    assert log.path.exists()


def test_the_last_few_are_kept_and_those_in_use(tmp_path: Path):
    folder = tmp_path / "logs"
    folder.mkdir()
    for number in range(MAX_LOGS + 2):
        (folder / f"20000101-00000{number}-1.log").touch()
    first = RunLog.create(folder)
    first.path.rename(folder / "19990101-000000-1.log")

    newest = RunLog.create(folder)
    newest.close(is_wanted=True)

    left = sorted(path.name for path in folder.iterdir())
    assert (len(left), left[0], left[-1]) == (MAX_LOGS + 1, "19990101-000000-1.log", newest.path.name)
    first.close(is_wanted=True)


def test_a_log_that_is_not_needed_is_removed_and_displaces_no_other(tmp_path: Path):
    for number in range(MAX_LOGS):
        (tmp_path / f"20000101-00000{number}-1.log").touch()
    log = RunLog.create(tmp_path)

    log.close(is_wanted=False, is_needed=False)

    assert len(list(tmp_path.iterdir())) == MAX_LOGS
    assert not log.path.exists()


def test_without_a_state_directory_a_log_is_temporary_and_removed_unless_it_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "file").touch()
    environ = {"XDG_STATE_HOME": str(tmp_path / "file")}

    for is_wanted in (False, True):
        log = RunLog.open(environ)
        assert log.path.parent == tmp_path
        log.close(is_wanted=is_wanted)
        assert log.path.exists() == is_wanted


def test_without_any_place_lines_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    (tmp_path / "file").touch()

    log = RunLog.open({"XDG_STATE_HOME": str(tmp_path / "file")})

    assert log.path is None
    assert os.write(log.file.fileno(), b"line\n") == 5
    assert log.read_last_line() == ""
    log.close(is_wanted=True)
