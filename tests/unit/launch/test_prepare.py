"""The survey that a launcher makes before it starts processes is watched, and never delays the launcher's end."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import re
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest

from tgis_cli.launch import prepare
from tgis_cli.launch.forked_work import Activity, Forked, Place
from tgis_cli.runs.run_dir import RunDirLock
from tgis_server.errors import GroupFailed, ModelError
from tgis_server.host.ports import listen
from tgis_server.options import load_config


def run_forked(work: Callable[[], Any]) -> Any:
    async def run() -> Any:
        async with Forked.start(work) as forked:
            while not await forked.wait(1.0):
                pass
            return forked.result()

    return asyncio.run(run())


def fail() -> NoReturn:
    raise ModelError("no such model")


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """A path on which opening a file blocks forever, like storage that does not answer."""
    os.mkfifo(tmp_path / "config.json")
    return tmp_path / "config.json"


def test_forked_work_returns_its_result_and_logs_in_the_parent(caplog: pytest.LogCaptureFixture):
    def work() -> tuple[int, str]:
        logging.getLogger("of.work").warning("%s is slow", "it")
        print("is not shown")
        return os.getpid(), "x" * 300_000

    pid, text = run_forked(work)

    assert pid != os.getpid()
    assert len(text) == 300_000
    assert caplog.record_tuples == [("of.work", logging.WARNING, "it is slow")]


def test_an_error_is_raised_with_the_place_where_it_occurred():
    with pytest.raises(ModelError, match="no such model") as raised:
        run_forked(fail)

    assert "in fail" in raised.value.__notes__[0]


def test_an_error_that_cannot_be_pickled_keeps_its_text():
    class Local(Exception):
        pass

    def work() -> NoReturn:
        raise Local("of a library")

    with pytest.raises(RuntimeError, match="Local: of a library"):
        run_forked(work)


def test_a_killed_process_is_a_group_failure():
    with pytest.raises(GroupFailed, match=r"machine was ended by SIGKILL: if this was not .* out-of-memory killer"):
        run_forked(lambda: os.kill(os.getpid(), signal.SIGKILL))


def test_an_exit_without_an_answer_reports_its_code():
    with pytest.raises(GroupFailed, match=r"machine ended with exit code 7: start again"):
        run_forked(lambda: os._exit(7))


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (lambda: sys.exit(3), "SystemExit: 3"),
        (lambda: (_ for _ in ()).throw(KeyboardInterrupt), "KeyboardInterrupt"),
        (lambda: threading.Lock(), "cannot pickle"),
    ],
)
def test_other_ways_to_end_are_reported_as_errors(end: Callable[[], object], words: str):
    with pytest.raises((RuntimeError, TypeError), match=words):
        run_forked(end)


def test_a_path_among_the_arguments_is_not_taken_for_the_one_waited_for(tmp_path: Path):
    activity = Activity("querying the driver")

    def work(run_dir: Path) -> None:
        time.sleep(30)

    async def run() -> Place:
        async with Forked.start(functools.partial(work, tmp_path), activity) as forked:
            async with asyncio.timeout(10):
                while forked.place is None:
                    await forked.wait(0.05)
            return forked.place

    place = asyncio.run(run())

    assert (place.path, place.doing, str(place)) == ("", "querying the driver", "querying the driver")
    assert "in work" in place.code


def test_a_standstill_without_a_file_is_not_blamed_on_storage():
    place = Place("", "querying the GPU driver", "gpus.py:1 in find_gpus", 0)

    sentences = [str(prepare.explain_standstill(where, 5)) for where in (place, None)]

    assert sentences[0].startswith("The launcher has made no progress for 5 s while it was querying the GPU driver:")
    assert sentences[1].startswith("The launcher has made no progress for 5 s while it was inspecting the model")


def test_forked_work_ignores_stop_signals():
    def work() -> str:
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        return "goes on"

    assert run_forked(work) == "goes on"


def survey(pipe: Path, patch: pytest.MonkeyPatch, ask: Callable[[int], None], **flags: str) -> None:
    """Survey on storage that hangs, while ``ask`` is called with the HTTP port, which it probes."""
    with listen("127.0.0.1", 0, "--port") as free:
        port = free.getsockname()[1]
    loaded = load_config({"host": "127.0.0.1", "port": str(port), **flags}, {})
    patch.setattr(prepare, "survey", lambda *_: pipe.open())
    patch.setattr(prepare, "PROBES_AFTER_S", 0.3)
    patch.setattr(prepare, "FIRST_LINE_S", 0.3)

    async def run() -> None:
        with RunDirLock.take(pipe.parent) as lock:
            async with asyncio.TaskGroup() as group:
                group.create_task(prepare.survey_patiently(loaded, {}, lock))
                await asyncio.to_thread(ask, port)

    asyncio.run(run())


def get(port: int, path: str) -> tuple[int, str]:
    deadline = time.monotonic() + 10
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            assert time.monotonic() < deadline, "no answer"
            time.sleep(0.02)


def test_hanging_storage_is_reported_promptly_and_ends_the_start_in_time(
    pipe: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    before = set(psutil.Process().children())  # children that other tests have left
    answers: dict[str, tuple[int, str]] = {}

    def ask(port: int) -> None:
        while str(pipe) not in get(port, "/health")[1]:  # until the forked process has reported what it waits for
            time.sleep(0.02)
        for path in ("/health/live", "/health/ready", "/health", "/elsewhere"):
            answers[path] = get(port, path)

    with pytest.raises(ExceptionGroup) as raised:
        survey(pipe, monkeypatch, ask, startup_timeout="1.5")

    [error] = raised.value.exceptions
    assert isinstance(error, GroupFailed)
    assert str(error).startswith(f"The launcher has waited for {pipe} for 1.5 s: its storage does not answer.")
    [message] = caplog.messages
    assert re.fullmatch(rf"waiting for {pipe}; no progress for [01] s", message)
    assert {path: status for path, (status, _) in answers.items()} == {
        "/health/live": 200,
        "/health/ready": 503,
        "/health": 503,
        "/elsewhere": 404,
    }
    assert f"The model is still loading; the launcher has been waiting for {pipe} for" in answers["/health"][1]
    left = set(psutil.Process().children()) - before
    assert [each for each in left if each.status() != psutil.STATUS_ZOMBIE] == []  # its end may come after the error


def test_a_port_in_use_does_not_stop_the_survey(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with listen("127.0.0.1", 0, "--port") as taken, RunDirLock.take(tmp_path) as lock:
        loaded = load_config({"host": "127.0.0.1", "port": str(taken.getsockname()[1])}, {})
        monkeypatch.setattr(prepare, "survey", lambda *_: time.sleep(0.5) or "examined")
        monkeypatch.setattr(prepare, "PROBES_AFTER_S", 0.0)

        assert asyncio.run(prepare.survey_patiently(loaded, {}, lock)) == "examined"
