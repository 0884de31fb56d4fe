"""The history of prompts: which entries come back, and who may read them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tgis_cli.clients.prompt_history import MAX_BYTES, MAX_ENTRIES, MAX_ENTRY_CHARS, PromptHistory


def test_entries_come_back_in_order_whatever_is_in_them(tmp_path: Path):
    entries = ["Once", "two\nlines", r"a \n that is no line end", "\\", "\x1b[2J", "é漢"]
    history = PromptHistory(tmp_path / "new" / "history")

    assert all(history.add(entry) for entry in entries)

    assert PromptHistory(tmp_path / "new" / "history").load() == entries


def test_only_this_user_can_read_it(tmp_path: Path):
    history = PromptHistory.find({"XDG_STATE_HOME": str(tmp_path)})

    history.add("Once")

    assert (tmp_path / "tgis" / "history").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "tgis").stat().st_mode & 0o777 == 0o700


def test_repeated_and_very_long_entries_are_left_out(tmp_path: Path):
    history = PromptHistory(tmp_path / "history")

    assert [history.add(entry) for entry in ("Once", "Once", "x" * (MAX_ENTRY_CHARS + 1))] == [True, False, False]

    assert PromptHistory(tmp_path / "history").load() == ["Once"]


def test_a_long_file_is_shortened_to_the_latest_entries(tmp_path: Path):
    path = tmp_path / "history"
    path.write_text("".join(f"entry {number}\n" for number in range(2 * MAX_ENTRIES + 1)))

    entries = PromptHistory(path).load()

    assert (len(entries), entries[-1]) == (MAX_ENTRIES, f"entry {2 * MAX_ENTRIES}")
    assert path.read_text().splitlines() == entries
    assert path.stat().st_mode & 0o777 == 0o600


def test_without_a_writable_place_there_is_no_history_and_no_error(tmp_path: Path):
    (tmp_path / "file").touch()

    for history in (PromptHistory(None), PromptHistory.find({"XDG_STATE_HOME": str(tmp_path / "file")})):
        assert history.add("Once")
        assert history.load() == []


def test_lines_that_nobody_can_have_typed_are_skipped(tmp_path: Path):
    path = tmp_path / "history"
    path.write_bytes(b"one\na\0b\n" + b"x" * 100_000 + b"\ntwo\n")

    assert PromptHistory(path).load() == ["one", "two"]


def test_only_the_end_of_a_huge_file_is_read_and_kept(tmp_path: Path):
    path = tmp_path / "history"
    path.write_bytes(b"x" * MAX_BYTES + b"\nlast\n")

    assert PromptHistory(path).load() == ["last"]
    assert path.read_bytes() == b"last\n"


@pytest.mark.parametrize("kind", ["fifo", "device", "directory"])
def test_only_a_regular_file_is_opened(tmp_path: Path, kind: str):
    path = tmp_path / "history"
    {"fifo": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "directory": Path.mkdir}[kind](path)
    history = PromptHistory(path)

    assert history.load() == []
    assert history.add("Once")
