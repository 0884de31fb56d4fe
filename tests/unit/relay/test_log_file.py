"""The file of --log-file: rotation, a full disk, and a removed file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tgis_cli.relay.log_file import LogFile, check_log_file
from tgis_server.errors import UsageError


def test_lines_are_appended_and_only_the_owner_may_read_them(tmp_path: Path):
    path = tmp_path / "log"
    LogFile(path).write("one\n")
    LogFile(path).write("two\n")

    assert path.read_text() == "one\ntwo\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_after_a_rotation_the_old_file_is_used_until_it_is_closed(tmp_path: Path):
    path = tmp_path / "log"
    file = LogFile(path)
    file.write("one\n")
    path.rename(tmp_path / "log.1")
    file.write("two\n")
    file.close()
    file.write("three\n")

    assert [(tmp_path / name).read_text() for name in ("log.1", "log")] == ["one\ntwo\n", "three\n"]


def test_a_removed_file_is_created_again(tmp_path: Path):
    path = tmp_path / "log"
    file = LogFile(path)
    file.write("one\n")
    path.unlink()
    file.write("two\n")

    assert path.read_text() == "two\n"


def test_lines_that_cannot_be_written_are_counted_and_reported_once(tmp_path: Path):
    folder = tmp_path / "folder"
    file = LogFile(folder / "log")

    warnings = [file.write("one\n"), file.write("two\n")]
    folder.mkdir()
    warnings += [file.write("three\n"), file.write("four\n")]

    assert warnings == [
        f"{folder / 'log'} cannot be written: No such file or directory; lines are dropped for now.",
        "",
        f"{folder / 'log'} lacks 2 lines that could not be written.",
        "",
    ]
    assert (folder / "log").read_text() == "three\nfour\n"


def test_an_error_while_closing_the_file_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def close_over_quota(fd: int) -> None:
        close(fd)
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    close = os.close
    file = LogFile(tmp_path / "log")
    file.write("one\n")
    with monkeypatch.context() as patched:
        patched.setattr(os, "close", close_over_quota)
        file.close()

    assert file.write("two\n") == ""
    assert (tmp_path / "log").read_text() == "one\ntwo\n"


def test_a_full_disk_is_reported():
    assert "No space left on device" in LogFile(Path("/dev/full")).write("one\n")


def test_a_partly_written_line_does_not_spoil_the_next_one(tmp_path: Path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    file = LogFile(path)
    first = b"x" * 100_000 + b"\n"

    warnings = file.write(first.decode())
    taken = os.read(reader, len(first))
    file.write("next\n")

    assert "cannot be written" in warnings
    assert first.startswith(taken)
    assert os.read(reader, 100) == b"\nnext\n"
    file.close()
    os.close(reader)


@pytest.mark.parametrize("name", ["no/such/log", "", "pipe"])
def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path, name: str):
    os.mkfifo(tmp_path / "pipe")  # without a reader

    with pytest.raises(UsageError, match=r"--log-file .* cannot be written: "):
        check_log_file(tmp_path / name)
