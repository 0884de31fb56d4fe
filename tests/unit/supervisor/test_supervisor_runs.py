"""The runs of one launcher: restarts, run directories, drains and timelines."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tgis_cli.launch import prepare, restarts
from tgis_cli.launch.restarts import RestartPolicy
from tgis_cli.runs.run_dir import MAX_FAILED_RUNS, RunDirLock, make_run_dir, remove_leftovers
from tgis_cli.runs.servers import find_running
from tgis_cli.supervisor.timeline import PhaseTime, Timeline
from tgis_cli.supervisor.watching import describe_drain
from tgis_server.errors import GroupFailed, UsageError
from tgis_server.options import load_config
from tgis_server.wire import shard_pb2 as pb


def make_left_run(parent: Path, *, failed: bool = False, age_s: float = 0.0) -> Path:
    run_dir = make_run_dir(parent)
    (run_dir / "serve.json").write_text("{}")
    if failed:
        (run_dir / "errors/shard-0.json").write_text("{}")
    changed_at = run_dir.stat().st_mtime - age_s
    os.utime(run_dir, (changed_at, changed_at))
    return run_dir


def test_by_default_there_are_no_restarts():
    assert RestartPolicy("none", 5).delay_after(5) is None


def test_delays_double_up_to_the_limit():
    policy = RestartPolicy("on-failure", 8)

    assert [policy.delay_after(5) for _ in range(9)] == [1, 2, 4, 8, 16, 32, 60, 60, None]


def test_a_good_run_resets_the_count_of_restarts():
    policy = RestartPolicy("on-failure", 2)
    policy.delay_after(5)
    policy.delay_after(5)

    assert policy.delay_after(5, served_s=601.0) == 1
    assert policy.record == "restart 1 of 2"


@pytest.mark.parametrize("exit_code", [0, 2, 3, 4])
def test_only_a_failed_process_is_restarted(exit_code: int):
    assert RestartPolicy("on-failure", 5).delay_after(exit_code) is None


@pytest.mark.parametrize(("exit_code", "messages"), [(0, []), (5, ["giving up after restart 1 of 1"])])
def test_giving_up_is_logged_only_for_a_failure_after_a_restart(
    exit_code: int, messages: list[str], caplog: pytest.LogCaptureFixture
):
    policy = RestartPolicy("on-failure", 1)
    policy.delay_after(5)

    assert policy.delay_after(exit_code) is None
    assert caplog.messages == messages


@pytest.mark.parametrize("max_restarts", [1, 3])
def test_a_failed_preparation_is_retried_as_the_policy_says(
    max_restarts: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    attempts: list[Path] = []

    async def prepare_third_time(loaded: object, environ: object, phases: object, lock: RunDirLock) -> str:
        attempts.append(lock.run_dir)
        if len(attempts) < 3:
            raise GroupFailed("storage hangs")
        return "prepared"

    monkeypatch.setattr(prepare, "prepare", prepare_third_time)
    monkeypatch.setattr(restarts, "FIRST_DELAY_S", 0.0)
    loaded, policy = load_config({"run_dir": str(tmp_path)}, {}), RestartPolicy("on-failure", max_restarts)

    with ExitStack() as undo:
        prepared = attempt(lambda: asyncio.run(prepare.prepare_or_retry(loaded, {}, [], undo, policy)))
        [server] = [each for each in find_running() if each.pid == os.getpid()]  # as during the attempts

    assert prepared == {1: "storage hangs", 3: "prepared"}[max_restarts]
    assert {str(path) for path in attempts} == {server.run_dir}
    assert list(tmp_path.iterdir()) == []


def attempt(work: Callable[[], object]) -> object:
    try:
        return work()
    except GroupFailed as error:
        return str(error)


def test_each_run_directory_is_new_and_private(tmp_path: Path):
    first, second = make_run_dir(tmp_path), make_run_dir(tmp_path)

    assert first != second
    assert stat.S_IMODE(first.stat().st_mode) == 0o700
    assert (first / "errors").is_dir()


def test_no_writable_temporary_directory_is_a_usage_error(tmp_path: Path):
    with pytest.raises(UsageError, match=r"cannot be created in .*missing.*--run-dir"):
        make_run_dir(tmp_path / "missing")


def test_the_directory_of_a_killed_launcher_is_removed(tmp_path: Path):
    left = make_left_run(tmp_path)

    assert remove_leftovers(tmp_path) == [left]
    assert not left.exists()


def test_the_directory_of_a_running_launcher_stays(tmp_path: Path):
    run_dir = make_left_run(tmp_path)

    with RunDirLock.take(run_dir):
        assert remove_leftovers(tmp_path) == []


def test_a_directory_that_is_still_being_made_stays(tmp_path: Path):
    make_run_dir(tmp_path)

    assert remove_leftovers(tmp_path) == []


def test_the_latest_failed_runs_are_kept(tmp_path: Path):
    runs = [make_left_run(tmp_path, failed=True, age_s=age_s) for age_s in range(MAX_FAILED_RUNS + 2)]

    assert sorted(remove_leftovers(tmp_path)) == sorted(runs[MAX_FAILED_RUNS:])


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, lambda path: path.symlink_to("/etc")])
def test_other_files_and_directories_stay(tmp_path: Path, make):
    make(tmp_path / "tgis-other")

    assert remove_leftovers(tmp_path) == []


def test_the_directory_of_another_user_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    left = make_left_run(tmp_path)
    monkeypatch.setattr(os, "getuid", lambda: left.stat().st_uid + 1)

    assert remove_leftovers(tmp_path) == []


def test_a_directory_that_vanishes_during_the_removal_does_not_harm_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make_left_run(tmp_path)
    monkeypatch.setattr(Path, "iterdir", lambda path: (_ for _ in ()).throw(FileNotFoundError(path)))

    assert len(remove_leftovers(tmp_path)) == 1


def test_a_drain_counts_down():
    messages = [describe_drain(in_flight, at, 10.0, 90.0) for in_flight, at in [(3, 4.0), (1, 10.0), (0, 101.0)]]

    assert messages == [
        "draining: 3 calls in flight; new ones are accepted for 6 s more",
        "draining: 1 call in flight, 90 s left",
        "draining: 0 calls in flight, 0 s left",
    ]


def phases(*starts: tuple[str, float], num_bytes: int = 0) -> list[pb.Phase]:
    return [
        pb.Phase(name=name, started_at_s=at, bytes=num_bytes if name == "reading weights" else 0) for name, at in starts
    ]


def make_timeline(frontend_waits_at: float) -> Timeline:
    return Timeline.make(
        [("starting", 100.0), ("spawning", 100.5)],
        {
            "shard-0": pb.HealthReply(phases=phases(("starting", 100.5), ("serving", 101.0))),
            "shard-1": pb.HealthReply(
                phases=phases(("starting", 100.5), ("reading weights", 101.0), ("serving", 103.0), num_bytes=3 << 30)
            ),
            "frontend": pb.FrontendHealth(
                phases=phases(
                    ("starting", 100.5),
                    ("waiting for the shards", frontend_waits_at),
                    ("serving", max(103.2, frontend_waits_at)),
                )
            ),
        },
    )


def test_the_timeline_names_the_shard_that_the_start_waited_for():
    timeline = make_timeline(frontend_waits_at=101.0)

    assert timeline.total_s == pytest.approx(3.2)
    assert timeline.describe() == (
        "launcher 0.5 s (starting 0.5), shard-1 2.5 s (starting 0.5, reading weights 2.0 (3.0 GiB)), frontend 0.2 s"
    )


def test_the_timeline_names_the_front_end_if_it_was_the_last_to_load():
    assert (
        make_timeline(frontend_waits_at=105.0).describe()
        == "launcher 0.5 s (starting 0.5), frontend 4.5 s (starting 4.5)"
    )


def test_the_timeline_has_every_phase_of_every_process():
    assert make_timeline(frontend_waits_at=101.0).phases == [
        PhaseTime("launcher", "starting", 0.5),
        PhaseTime("launcher", "spawning", 0.0),
        PhaseTime("shard-0", "starting", 0.5),
        PhaseTime("shard-1", "starting", 0.5),
        PhaseTime("shard-1", "reading weights", 2.0, 3 << 30),
        PhaseTime("frontend", "starting", 0.5),
        PhaseTime("frontend", "waiting for the shards", pytest.approx(2.2)),
    ]
