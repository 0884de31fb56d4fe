"""What the doctor says of the run directory, earlier runs, the cache of models, and the user."""

from __future__ import annotations

import json
import os
import pwd
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from doctor_context import GIB, complaints, make_context, say, with_disk
from tgis_cli.decide.resolve import resolve
from tgis_cli.doctor import storage
from tgis_cli.doctor.storage import (
    check_cache,
    check_cache_content,
    check_log_file,
    check_run_dir,
    check_runs,
    check_user,
)
from tgis_cli.doctor.verdict import Host
from tgis_cli.supervisor.run_dir import locked, make_run_dir

# -- the run directory


def test_the_run_directory_has_room(tmp_path: Path):
    context = make_context(run_dir="/tmp", host=with_disk(5 * GIB))

    assert say(check_run_dir, context) == [("ok", "Run directories are made in /tmp: 5.0 GiB free.")]


def test_noexec_is_fine():
    context = make_context(run_dir="/tmp", host=with_disk(5 * GIB, flag=os.ST_NOEXEC))

    assert say(check_run_dir, context) == [
        ("ok", "Run directories are made in /tmp: 5.0 GiB free, mounted noexec, which is fine.")
    ]


@pytest.mark.parametrize(
    ("host", "numbers"),
    [
        (with_disk(4096), "4 KiB and 1000 inodes are free"),
        (with_disk(GIB, free_inodes=3), "1.0 GiB and 3 inodes are free"),
    ],
)
def test_a_full_file_system_is_a_failure(host: Host, numbers: str):
    assert complaints(check_run_dir, make_context(run_dir="/tmp", host=host)) == [
        f"The run directory needs 1 MiB in /tmp, but {numbers}: free some space, or choose another with --run-dir."
    ]


def test_a_directory_that_is_not_there_is_a_failure():
    assert complaints(check_run_dir, make_context(run_dir="/nowhere")) == [
        "The run directory cannot be created in /nowhere: No such directory. Choose a writable one with --run-dir."
    ]


def test_a_machine_without_any_writable_temporary_directory_is_a_failure(monkeypatch: pytest.MonkeyPatch):
    def fail() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", fail)

    assert complaints(check_run_dir, make_context())[0].startswith("The run directory cannot be created in a temporary")


def test_a_path_too_long_for_sockets_is_a_failure(tmp_path: Path):
    deep = tmp_path / ("d" * 100)
    deep.mkdir()

    (failure,) = complaints(check_run_dir, make_context(run_dir=str(deep)))

    assert "bytes too long for a Unix socket: choose a shorter --run-dir." in failure


def test_a_socket_of_a_running_server_is_a_failure(tmp_path: Path):
    context = make_context(run_dir="/tmp", rehearse=True, shard_uds_path=str(tmp_path / "tgis"))
    (tmp_path / "tgis-0").touch()

    (failure,) = complaints(check_run_dir, replace(context, resolved=resolve(context.loaded, {}, context.machine)))

    assert failure.startswith(f"{tmp_path}/tgis-0 is a file and is not replaced")


# -- the log file


def test_a_log_file_that_can_be_written_is_not_made(tmp_path: Path):
    file = tmp_path / "log"

    assert say(check_log_file, make_context(log_file=str(file))) == [("ok", f"Logs are also written to {file}.")]
    assert not file.exists()


@pytest.mark.parametrize(("name", "reason"), [("missing/log", "No such file or directory"), ("", "Is a directory")])
def test_a_log_file_that_cannot_be_written_is_a_failure(tmp_path: Path, name: str, reason: str):
    file = tmp_path / name

    assert complaints(check_log_file, make_context(log_file=str(file))) == [
        f"--log-file {file} cannot be written: {reason}. Choose a writable one; its directory must exist."
    ]


def test_without_a_log_file_nothing_is_said_of_it():
    assert say(check_log_file, make_context()) == []


# -- runs


def test_running_servers_and_failed_runs_are_told(tmp_path: Path):
    running, broken = make_run_dir(tmp_path), make_run_dir(tmp_path)
    for run_dir in (running, broken):
        (run_dir / "serve.json").touch()
    (running / "ready.json").write_text(json.dumps({"model": "org/name", "grpc": "127.0.0.1:8033"}))
    (broken / "errors/cause.txt").write_text("shard-0 was killed.\n")

    with locked(running):
        said = say(check_runs, make_context(run_dir=str(tmp_path)))

    assert said == [
        ("ok", f"A server runs already: org/name at 127.0.0.1:8033, in {running}."),
        ("ok", f"1 failed run left a directory, the latest {broken}: shard-0 was killed."),
    ]


def test_where_nothing_ran_nothing_is_said(tmp_path: Path):
    assert say(check_runs, make_context(run_dir=str(tmp_path))) == []


# -- the cache


def test_a_cache_has_room(tmp_path: Path):
    context = make_context({"HF_HUB_CACHE": str(tmp_path)}, host=with_disk(5 * GIB))

    assert say(check_cache, context) == [("ok", f"The cache is {tmp_path} (from HF_HUB_CACHE): 5.0 GiB free.")]


def test_a_cache_that_is_not_there_yet_is_fine():
    assert say(check_cache, make_context({"HF_HOME": "/nowhere"})) == [
        ("ok", "The cache is /nowhere/hub (from HF_HOME), which is not there yet.")
    ]


def test_a_full_disk_of_the_cache_is_warned_of(tmp_path: Path):
    context = make_context({"HF_HUB_CACHE": str(tmp_path)}, host=with_disk(1 << 20, free_inodes=0))

    assert complaints(check_cache, context) == [
        f"The cache is {tmp_path} (from HF_HUB_CACHE), where 1 MiB and 0 inodes are free. Make room for downloads "
        "(`tgis models rm`), or name another with HF_HUB_CACHE."
    ]


def test_a_cache_on_a_read_only_volume_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)

    assert say(check_cache, make_context({"HF_HUB_CACHE": str(tmp_path)})) == [
        ("ok", f"The cache is {tmp_path} (from HF_HUB_CACHE), read-only: enough for serving, not for downloads.")
    ]


def test_a_cache_that_may_not_be_read_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    context = make_context({"HF_HUB_CACHE": str(tmp_path)}, host=Host(uid=lambda: 1234))

    (warning,) = complaints(check_cache, context)

    assert warning.startswith(f"The cache is {tmp_path} (from HF_HUB_CACHE), but user 1234 may not read it. Give")


def test_variables_that_name_different_caches_are_a_failure():
    assert complaints(check_cache, make_context({"HF_HUB_CACHE": "/a", "TRANSFORMERS_CACHE": "/b"})) == [
        "TRANSFORMERS_CACHE and HF_HUB_CACHE env vars can't be set to different values Unset one of them."
    ]


def test_the_place_of_the_cache_is_told_as_it_is_expanded():
    assert say(check_cache, make_context({"HOME": "/nowhere", "HF_HUB_CACHE": "~/cache"})) == [
        ("ok", "The cache is /nowhere/cache (from HF_HUB_CACHE), which is not there yet.")
    ]


def test_a_variable_that_is_set_to_nothing_is_warned_of():
    (warning,) = complaints(check_cache, make_context({"HF_HUB_CACHE": ""}))

    assert warning.startswith(f"The cache is {Path.cwd()} (from HF_HUB_CACHE), the current directory, as HF_HUB_CACHE")


def test_a_user_without_a_home_is_told_to_name_a_cache(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)

    (warning,) = complaints(check_cache, make_context(host=Host(uid=lambda: 1000730000)))

    assert warning == (
        "There is no cache: HOME is not set, and user 1000730000 has no other. Name it with HF_HUB_CACHE to serve "
        "models by hub id."
    )


# -- what is in the cache


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """The folder of a model with one revision of one file."""
    root = tmp_path / "models--org--name"
    for folder in ("refs", "blobs", "snapshots/c0ffee"):
        (root / folder).mkdir(parents=True)
    (root / "refs/main").write_text("c0ffee")
    for digest, name, text in (("1", "config.json", "{}"), ("2", "model.bin", "x")):
        (root / "blobs" / digest).write_text(text)
        (root / "snapshots/c0ffee" / name).symlink_to(f"../../blobs/{digest}")
    return root


def look(root: Path) -> list[tuple[str, str]]:
    return say(check_cache_content, make_context({"HF_HUB_CACHE": str(root.parent)}))


def test_a_whole_model_is_fine(cached: Path):
    assert look(cached) == [("ok", "1 of 1 cached model looked at: nothing is missing or damaged.")]


def test_a_cache_that_is_no_directory_is_warned_of(tmp_path: Path):
    (tmp_path / "file").touch()
    for place, words in (("file", "which is no directory"), ("file/x", "which cannot be reached: Not a directory")):
        (warning,) = complaints(check_cache, make_context({"HF_HUB_CACHE": str(tmp_path / place)}))

        assert words in warning


def test_a_reference_to_a_snapshot_that_is_gone_is_warned_of(cached: Path):
    (cached / "refs/main").write_text("badc0de")

    assert ("warn", "org/name: config.json is missing; `tgis download-weights org/name` completes it.") in look(cached)


def test_unfinished_downloads_are_warned_of_with_their_size(cached: Path):
    (cached / "blobs/3.incomplete").write_bytes(b"x" * 2048)

    assert look(cached)[0] == (
        "warn",
        "The cache has 1 unfinished file with 2 KiB, of org/name. `tgis download-weights MODEL` goes on with them, "
        "`tgis models rm MODEL` removes them.",
    )


def test_of_many_problems_the_first_are_told(cached: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(storage, "MAX_PROBLEMS", 1)
    for name in ("config.json", "model.bin"):
        (cached / "snapshots/c0ffee" / name).unlink()

    assert look(cached)[1] == ("warn", "The cache has 1 more problem. `tgis models` lists all.")


def test_a_slow_cache_is_looked_at_in_part(cached: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(storage, "CACHE_PATIENCE_S", -1.0)

    assert look(cached) == [("ok", "0 of 1 cached model looked at: nothing is missing or damaged.")]


# -- the user


def test_a_user_without_a_name_or_a_home_on_a_read_only_root_is_fine():
    host = replace(with_disk(0, flag=os.ST_RDONLY), uid=lambda: 1000730000)

    assert say(check_user, make_context(host=host)) == [
        (
            "ok",
            "User 1000730000, who is in no user database; HOME is not set; the root file system is read-only: all of "
            "it is fine.",
        )
    ]
