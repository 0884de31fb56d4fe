"""What a launcher reads before it has processes: it is watched, and never holds up the end."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest

from tgis_cli import prepare
from tgis_cli.forked_work import Forked
from tgis_server.config import load_config
from tgis_server.errors import GroupFailed, ModelError
from tgis_server.ports import listen


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
    """Whoever opens it as a file waits for ever, as on storage that does not answer."""
    os.mkfifo(tmp_path / "config.json")
    return tmp_path / "config.json"


def test_work_in_another_process_gives_its_result_and_its_log(caplog: pytest.LogCaptureFixture):
    def work() -> tuple[int, str]:
        logging.getLogger("of.work").warning("%s is slow", "it")
        print("which nobody wants to see")
        return os.getpid(), "x" * 300_000

    pid, text = run_forked(work)

    assert pid != os.getpid()
    assert len(text) == 300_000
    assert caplog.record_tuples == [("of.work", logging.WARNING, "it is slow")]


def test_its_error_is_raised_with_the_place_where_it_happened():
    with pytest.raises(ModelError, match="no such model") as raised:
        run_forked(fail)

    assert "in fail" in raised.value.__notes__[0]


def test_an_error_that_cannot_cross_keeps_its_text():
    class Local(Exception):
        pass

    def work() -> NoReturn:
        raise Local("of a library")

    with pytest.raises(RuntimeError, match="Local: of a library"):
        run_forked(work)


def test_its_death_is_an_error_of_the_group():
    with pytest.raises(GroupFailed, match=r"was killed by SIGKILL \(at"):
        run_forked(lambda: os.kill(os.getpid(), signal.SIGKILL))


def test_stop_signals_are_the_affair_of_the_process_that_waits():
    def work() -> str:
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        return "goes on"

    assert run_forked(work) == "goes on"


def examine(pipe: Path, patch: pytest.MonkeyPatch, ask: Callable[[int], None], **flags: str) -> None:
    """A start on storage that hangs; ``ask`` gets the HTTP port once probes may be answered."""
    with listen("127.0.0.1", 0, "--port") as free:
        port = free.getsockname()[1]
    loaded = load_config({"host": "127.0.0.1", "port": str(port), **flags}, {})
    patch.setattr(prepare, "examine", lambda *_: pipe.open())
    patch.setattr(prepare, "PROBES_AFTER_S", 0.3)
    patch.setattr(prepare, "FIRST_LINE_S", 0.3)

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(prepare.examine_patiently(loaded, {}, pipe.parent))
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
            assert time.monotonic() < deadline, "nobody answers"
            time.sleep(0.02)


def test_storage_that_hangs_is_named_at_once_and_ends_a_start_in_time(
    pipe: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    before = set(psutil.Process().children())  # of other tests, in this process
    answers: dict[str, tuple[int, str]] = {}

    def ask(port: int) -> None:
        for path in ("/health/live", "/health/ready", "/health", "/elsewhere"):
            answers[path] = get(port, path)

    with pytest.raises(ExceptionGroup) as raised:
        examine(pipe, monkeypatch, ask, startup_timeout="1.5")

    [error] = raised.value.exceptions
    assert isinstance(error, GroupFailed)
    assert str(error).startswith(f"The launcher has waited for {pipe} for 1.5 s: its storage does not answer.")
    [message] = caplog.messages
    assert re.fullmatch(rf"waiting for {pipe}, which has not answered for [01] s", message)
    assert {path: status for path, (status, _) in answers.items()} == {
        "/health/live": 200,
        "/health/ready": 503,
        "/health": 503,
        "/elsewhere": 404,
    }
    assert f"The model is still loading; the launcher reads {pipe} for" in answers["/health"][1]
    assert set(psutil.Process().children()) <= before


def test_a_port_that_is_taken_is_no_obstacle_to_reading(monkeypatch: pytest.MonkeyPatch):
    with listen("127.0.0.1", 0, "--port") as taken:
        loaded = load_config({"host": "127.0.0.1", "port": str(taken.getsockname()[1])}, {})
        monkeypatch.setattr(prepare, "examine", lambda *_: time.sleep(0.5) or "examined")
        monkeypatch.setattr(prepare, "PROBES_AFTER_S", 0.0)

        assert asyncio.run(prepare.examine_patiently(loaded, {}, Path())) == "examined"
