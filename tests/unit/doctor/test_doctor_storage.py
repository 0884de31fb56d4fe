"""The doctor's checks of the run directory, earlier runs, the model cache, and the user."""

from __future__ import annotations

import os
import pwd
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from doctor_subject import GIB, complaints, judge, make_subject, with_disk
from running import make_run
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
from tgis_cli.runs.run_dir import RunDirLock

# -- the run directory


def test_the_free_space_for_run_directories_is_reported():
    subject = make_subject(run_dir="/tmp", host=with_disk(5 * GIB))

    assert judge(check_run_dir, subject) == [("ok", "Run directories are created in /tmp: 5.0 GiB free.")]


def test_noexec_is_fine():
    subject = make_subject(run_dir="/tmp", host=with_disk(5 * GIB, flag=os.ST_NOEXEC))

    assert judge(check_run_dir, subject) == [
        ("ok", "Run directories are created in /tmp: 5.0 GiB free, mounted noexec, which is fine.")
    ]


@pytest.mark.parametrize(
    ("host", "numbers"),
    [
        (with_disk(4096), "4 KiB and 1000 inodes are free"),
        (with_disk(GIB, free_inodes=3), "1.0 GiB and 3 inodes are free"),
    ],
)
def test_a_full_file_system_is_a_failure(host: Host, numbers: str):
    assert complaints(check_run_dir, make_subject(run_dir="/tmp", host=host)) == [
        f"The run directory needs 1 MiB in /tmp, but {numbers}: free some space, or choose another "
        "directory with --run-dir."
    ]


def test_a_missing_directory_is_a_failure():
    assert complaints(check_run_dir, make_subject(run_dir="/nowhere")) == [
        "The run directory cannot be created in /nowhere: No such directory. "
        "Choose a writable directory with --run-dir."
    ]


def test_a_machine_without_any_writable_temporary_directory_is_a_failure(monkeypatch: pytest.MonkeyPatch):
    def fail() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", fail)

    assert complaints(check_run_dir, make_subject())[0].startswith("The run directory cannot be created in a temporary")


def test_a_path_too_long_for_sockets_is_a_failure(tmp_path: Path):
    deep = tmp_path / ("d" * 100)
    deep.mkdir()

    (failure,) = complaints(check_run_dir, make_subject(run_dir=str(deep)))

    assert "bytes too long for a Unix socket: choose a shorter --run-dir." in failure


def test_a_socket_of_a_running_server_is_a_failure(tmp_path: Path):
    subject = make_subject(run_dir="/tmp", rehearse=True, shard_uds_path=str(tmp_path / "tgis"))
    (tmp_path / "tgis-0").touch()

    (failure,) = complaints(check_run_dir, replace(subject, resolved=resolve(subject.loaded, {}, subject.machine)))

    assert failure.startswith(f"{tmp_path}/tgis-0 is a file and will not be replaced")


# -- the log file


def test_checking_a_log_file_does_not_create_it(tmp_path: Path):
    file = tmp_path / "log"

    assert judge(check_log_file, make_subject(log_file=str(file))) == [("ok", f"Logs are also written to {file}.")]
    assert not file.exists()


@pytest.mark.parametrize(("name", "reason"), [("missing/log", "No such file or directory"), ("", "Is a directory")])
def test_a_log_file_that_cannot_be_written_is_a_failure(tmp_path: Path, name: str, reason: str):
    file = tmp_path / name

    assert complaints(check_log_file, make_subject(log_file=str(file))) == [
        f"--log-file {file} cannot be written: {reason}. Choose a writable file in an existing directory."
    ]


def test_without_a_log_file_there_is_no_verdict():
    assert judge(check_log_file, make_subject()) == []


# -- runs


def test_running_servers_and_failed_runs_are_listed(tmp_path: Path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    starting, running, broken = make_run(elsewhere), make_run(elsewhere, ready={"grpc_port": 41000}), make_run(tmp_path)
    (broken / "errors/cause.txt").write_text("shard-0 was killed.\n")

    with RunDirLock.take(starting), RunDirLock.take(running):
        host = with_process(tmp_path / "root", starting, running)
        verdicts = judge(check_runs, make_subject(run_dir=str(tmp_path), host=host))

    assert sorted(verdicts) == [
        ("ok", f"1 failed run left a directory, the latest {broken}: shard-0 was killed. `rm -r {broken}` removes it."),
        ("ok", f"A server is running: org/name at 127.0.0.1:41000, in {running}."),
        ("ok", f"A server is starting: org/name at 127.0.0.1:8033, in {starting}."),
    ]


def test_the_directories_of_failed_runs_are_removed_by_the_command_that_is_shown(tmp_path: Path):
    parent = tmp_path / "two words"
    parent.mkdir()
    for _ in range(2):
        (make_run(parent) / "errors/cause.txt").write_text("shard-0 was killed.\n")
    running = make_run(parent)

    with RunDirLock.take(running):
        [verdict] = check_runs(make_subject(run_dir=str(parent), host=Host(root=tmp_path)))
        command, end = verdict.fix.split("`")[1:]
        subprocess.run(command, shell=True, check=True)

    assert end == " removes them."
    assert list(parent.iterdir()) == [running]


def with_process(root: Path, *held: Path) -> Host:
    """A host with a launcher, this process, for each of these open directories."""
    for pid, run_dir in enumerate(held, 1):
        process = root / "proc" / str(pid)
        for name in ("fd", "fdinfo"):
            (process / name).mkdir(parents=True)
        (process / "stat").write_text(Path("/proc/self/stat").read_text())
        (process / "fd/7").symlink_to(run_dir)
        (process / "fdinfo/7").write_text("pos:\t0\nlock:\t1: FLOCK  ADVISORY  WRITE 1 fe:00:1 0 EOF\n")
    return Host(root=root)


def test_without_runs_there_is_no_verdict(tmp_path: Path):
    assert judge(check_runs, make_subject(run_dir=str(tmp_path), host=Host(root=tmp_path))) == []


# -- the cache


def test_the_free_space_for_the_cache_is_reported(tmp_path: Path):
    subject = make_subject({"HF_HUB_CACHE": str(tmp_path)}, host=with_disk(5 * GIB))

    assert judge(check_cache, subject) == [("ok", f"The cache is {tmp_path} (from HF_HUB_CACHE): 5.0 GiB free.")]


def test_a_cache_that_does_not_exist_yet_is_fine():
    assert judge(check_cache, make_subject({"HF_HOME": "/nowhere"})) == [
        ("ok", "The cache is /nowhere/hub (from HF_HOME), which does not exist yet.")
    ]


def test_a_full_cache_disk_is_a_warning(tmp_path: Path):
    subject = make_subject({"HF_HUB_CACHE": str(tmp_path)}, host=with_disk(1 << 20, free_inodes=0))

    assert complaints(check_cache, subject) == [
        f"The cache is {tmp_path} (from HF_HUB_CACHE), where 1 MiB and 0 inodes are free. Free space for downloads "
        "(`tgis models rm`), or name another cache with HF_HUB_CACHE."
    ]


def test_a_cache_on_a_read_only_volume_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)

    assert judge(check_cache, make_subject({"HF_HUB_CACHE": str(tmp_path)})) == [
        ("ok", f"The cache is {tmp_path} (from HF_HUB_CACHE), read-only: enough for serving, not for downloads.")
    ]


def test_an_unreadable_cache_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    subject = make_subject({"HF_HUB_CACHE": str(tmp_path)}, host=Host(uid=lambda: 1234))

    (warning,) = complaints(check_cache, subject)

    assert warning.startswith(f"The cache is {tmp_path} (from HF_HUB_CACHE), but user 1234 may not read it. Grant")


def test_variables_that_name_different_caches_are_a_failure():
    assert complaints(check_cache, make_subject({"HF_HUB_CACHE": "/a", "TRANSFORMERS_CACHE": "/b"})) == [
        "TRANSFORMERS_CACHE and HF_HUB_CACHE env vars can't be set to different values Unset one of them."
    ]


def test_the_caches_path_is_shown_expanded():
    assert judge(check_cache, make_subject({"HOME": "/nowhere", "HF_HUB_CACHE": "~/cache"})) == [
        ("ok", "The cache is /nowhere/cache (from HF_HUB_CACHE), which does not exist yet.")
    ]


def test_an_empty_variable_is_a_warning():
    (warning,) = complaints(check_cache, make_subject({"HF_HUB_CACHE": ""}))

    assert warning.startswith(f"The cache is {Path.cwd()} (from HF_HUB_CACHE), the current directory, as HF_HUB_CACHE")


def test_a_user_without_a_home_is_advised_to_set_a_cache(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)

    (warning,) = complaints(check_cache, make_subject(host=Host(uid=lambda: 1000730000)))

    assert warning == (
        "There is no cache: HOME is not set, and user 1000730000 has no home directory. Set HF_HUB_CACHE to serve "
        "models by hub id."
    )


# -- the cache's content


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


def check_content(root: Path) -> list[tuple[str, str]]:
    return judge(check_cache_content, make_subject({"HF_HUB_CACHE": str(root.parent)}))


def test_a_complete_model_is_fine(cached: Path):
    assert check_content(cached) == [("ok", "1 of 1 cached model checked: nothing is missing or damaged.")]


def test_a_cache_that_is_not_a_directory_is_a_warning(tmp_path: Path):
    (tmp_path / "file").touch()
    for place, words in (("file", "which is not a directory"), ("file/x", "which cannot be reached: Not a directory")):
        (warning,) = complaints(check_cache, make_subject({"HF_HUB_CACHE": str(tmp_path / place)}))

        assert words in warning


def test_a_reference_to_a_missing_snapshot_is_a_warning(cached: Path):
    (cached / "refs/main").write_text("badc0de")

    assert (
        "warn",
        "org/name: config.json is missing; `tgis download-weights org/name` completes it.",
    ) in check_content(cached)


def test_unfinished_downloads_are_a_warning_with_their_size(cached: Path):
    (cached / "blobs/3.incomplete").write_bytes(b"x" * 2048)

    assert check_content(cached)[0] == (
        "warn",
        "The cache has 1 unfinished file with 2 KiB, of org/name. `tgis download-weights MODEL` resumes them, "
        "`tgis models rm MODEL` removes them.",
    )


def test_only_the_first_of_many_problems_are_listed(cached: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(storage, "MAX_PROBLEMS", 1)
    for name in ("config.json", "model.bin"):
        (cached / "snapshots/c0ffee" / name).unlink()

    assert check_content(cached)[1] == ("warn", "The cache has 1 more problem. `tgis models` lists all.")


def test_a_slow_cache_is_checked_in_part(cached: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(storage, "CACHE_PATIENCE_S", -1.0)

    assert check_content(cached) == [("ok", "0 of 1 cached model checked: nothing is missing or damaged.")]


# -- the user


def test_a_user_without_a_name_or_a_home_on_a_read_only_root_is_fine():
    host = replace(with_disk(0, flag=os.ST_RDONLY), uid=lambda: 1000730000)

    assert judge(check_user, make_subject(host=host)) == [
        (
            "ok",
            "User 1000730000 (no name); HOME is not set; the root file system is read-only.",
        )
    ]
