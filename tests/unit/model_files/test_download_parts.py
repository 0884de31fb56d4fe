"""Locks, retries on a bad network, and explanations of the hub's errors."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from in_process import run_in_process
from tgis_cli.model_files.cache.listing import RemoteFile
from tgis_cli.model_files.cache.locks import lock
from tgis_cli.model_files.download import fetch_worker
from tgis_cli.model_files.download.digest import has_digest
from tgis_cli.model_files.download.fetch_worker import XetFailed, translate_xet_error
from tgis_cli.model_files.download.hub import explain_hub_error, is_temporary, retry_after_s
from tgis_cli.model_files.download.hub_token import HubToken, export_token, find_token, inherited_token
from tgis_cli.model_files.download.transfers import MAX_FUTILE_ATTEMPTS, Problem, RetryPolicy
from tgis_server.errors import HubError, ModelError, NotEnoughDevices, UsageError

# -- Locks ------------------------------------------------------------------------------------------------------------


def hold(directory: Path, is_held: multiprocessing.Event, may_end: multiprocessing.Event) -> None:
    with lock(directory, lambda: None):
        is_held.set()
        may_end.wait(20)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[multiprocessing.Event]:
    """Another process that holds the lock of ``tmp_path`` until the event is set."""
    context = multiprocessing.get_context("spawn")
    is_held, may_end = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path, is_held, may_end))
    process.start()
    assert is_held.wait(20)
    yield may_end
    may_end.set()
    process.join(20)
    process.close()


def test_waiting_for_a_lock_is_reported_once_and_ends_with_its_holder(holder, tmp_path: Path):
    told = []

    def tell() -> None:
        told.append("waiting")
        holder.set()

    with lock(tmp_path, tell) as is_exclusive:
        assert (told, is_exclusive) == (["waiting"], True)


def test_a_wait_can_be_refused(holder, tmp_path: Path):
    def refuse() -> None:
        raise ModelError("busy")

    with pytest.raises(ModelError, match="busy"), lock(tmp_path, refuse):
        pass


def test_a_lock_leaves_nothing_behind(tmp_path: Path):
    for _ in range(2):
        with lock(tmp_path, lambda: pytest.fail("the lock is free")):
            assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_tolerated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)

    with lock(tmp_path, lambda: None) as is_exclusive:
        assert is_exclusive is False


# -- Retries -----------------------------------------------------------------------------------------------------------

BROKEN = Problem("the response was cut off")
DAMAGED = Problem("the content does not match its checksum", is_damaged=True)


def test_an_attempt_with_progress_is_retried_at_once():
    assert RetryPolicy("f").wait_after(BROKEN, moved_bytes=1) == 0


def test_waits_grow_without_progress_and_start_over_after_progress():
    retries = RetryPolicy("f")

    waits = [retries.wait_after(BROKEN, moved_bytes=moved) for moved in (0, 0, 0, 5, 0)]

    assert waits == [1, 2, 4, 0, 1]


def test_the_hub_may_request_a_longer_wait():
    assert RetryPolicy("f").wait_after(Problem("slow down", wait_s=20), moved_bytes=0) == 20


def test_attempts_without_progress_are_limited():
    retries = RetryPolicy("f")
    for _ in range(MAX_FUTILE_ATTEMPTS - 1):
        retries.wait_after(BROKEN, moved_bytes=0)

    with pytest.raises(HubError, match=r"f failed 6 times without progress \(last: the response was cut off\)"):
        retries.wait_after(BROKEN, moved_bytes=0)


def test_damaged_content_is_retried_only_once():
    retries = RetryPolicy("f")
    retries.wait_after(DAMAGED, moved_bytes=100)

    with pytest.raises(ModelError, match="f arrived 2 times, never with the checksum"):
        retries.wait_after(DAMAGED, moved_bytes=100)


@pytest.mark.parametrize("kind", [ModelError, HubError, NotEnoughDevices])
def test_a_permanent_error_keeps_its_exit_code(kind: type[Exception]):
    problem = Problem("no", exit_code=kind.exit_code)

    with pytest.raises(kind, match="no"):
        RetryPolicy("f").wait_after(problem, moved_bytes=0)


# -- The hub's errors -------------------------------------------------------------------------------------------------


class Answer(Exception):
    def __init__(self, status: int, **headers: str) -> None:
        super().__init__("no")
        self.response = SimpleNamespace(status_code=status, headers=headers)


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({}, 0),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "100000"}, 120),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"ratelimit": '"api";r=0;t=55'}, 55),
    ],
)
def test_the_hubs_requested_wait_is_read_from_headers(headers: dict[str, str], wait_s: float):
    assert retry_after_s(Answer(429, **headers)) == wait_s


@pytest.mark.parametrize(
    ("error", "expected", "kind", "words"),
    [
        (Answer(503), True, HubError, "HTTP 503, even after several attempts"),
        (Answer(429), True, HubError, r"request rate \(HTTP 429\), even"),
        (Answer(401), False, ModelError, "HTTP 401.*Check the token"),
        (Answer(418), False, ModelError, "HTTP 418.*check the name, the revision and HF_ENDPOINT"),
        (ConnectionRefusedError("refused"), True, HubError, r"does not respond \(refused\): check the network"),
        (TimeoutError(), True, HubError, r"does not respond \(TimeoutError\)"),
        (ValueError("<html>"), False, HubError, r"no usable response \(ValueError: <html>\): check HF_ENDPOINT"),
    ],
)
def test_errors_are_explained_and_only_temporary_ones_are_retried(
    error: Exception, expected: bool, kind: type[Exception], words: str
):
    explained = explain_hub_error(error, "org/m", "main", None)

    assert is_temporary(error) is expected
    with pytest.raises(kind, match=words):
        raise explained


@pytest.mark.parametrize("text", ["hf_a\nb", "hf_\u00fc", "hf a"])
def test_an_invalid_token_is_refused_without_being_shown(text: str):
    with pytest.raises(UsageError, match="--token is not a hub token") as refused:
        find_token(text, {}, print)
    assert text not in str(refused.value)


def test_white_space_around_a_token_is_stripped():
    assert find_token("hf_abc\n", {}, print) == "hf_abc"
    assert find_token(" ", {"HF_TOKEN": "hf_abc\n"}, print) is None  # the library strips its own token


def test_an_unreadable_token_file_means_no_token(monkeypatch: pytest.MonkeyPatch):
    def get_token() -> str:
        raise PermissionError(13, "Permission denied", "/home/other/token")

    monkeypatch.setattr("huggingface_hub.get_token", get_token)
    said: list[str] = []

    assert find_token(None, {}, said.append) is False
    assert said == ["/home/other/token cannot be read (Permission denied): continuing without a token"]


def test_a_token_that_the_library_fails_to_get_is_an_error(monkeypatch: pytest.MonkeyPatch):
    def get_token() -> str:
        raise OSError("the exchange was refused")

    monkeypatch.setattr("huggingface_hub.get_token", get_token)

    with pytest.raises(HubError, match="finds no token"):
        find_token(None, {}, print)


@pytest.mark.parametrize("token", [None, False, "hf_abc"])
def test_a_worker_gets_the_token_unchanged(token: HubToken, monkeypatch: pytest.MonkeyPatch):
    for name, value in export_token(token).items():
        monkeypatch.setenv(name, value)

    assert inherited_token() == token


@pytest.mark.parametrize(
    ("text", "kind"),
    [("No space left (os error 28)", OSError), ("CAS answers 403\nmore", XetFailed), ("", XetFailed)],
)
def test_xet_errors_are_local_disk_errors_or_failures_of_xet(text: str, kind: type[Exception]):
    assert type(translate_xet_error(RuntimeError(text))) is kind


def test_a_slow_disk_does_not_look_like_a_stall(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    events: list[dict[str, Any]] = []
    may_end = threading.Event()
    monkeypatch.setattr(fetch_worker, "EMIT_EVERY_S", 0.01)
    monkeypatch.setattr(os, "fsync", lambda descriptor: may_end.wait(30))

    def emit(**event: Any) -> None:
        events.append(event)
        may_end.set()

    fetch_worker.sync(0, emit)

    assert events[0] == {"syncing": True}


# -- Checksums --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("digest", "is_right"),
    [
        ("ce013625030ba8dba906f756967f9e9ca394464a", True),  # what `git hash-object` says of "hello\n"
        ("5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03", True),  # what `sha256sum` says
        ("0" * 40, False),
        ("0" * 64, False),
        ("W_etag-of-a-mirror", True),  # cannot be computed from the content
    ],
)
def test_content_is_compared_with_either_kind_of_digest(digest: str, is_right: bool, tmp_path: Path):
    (tmp_path / "file").write_bytes(b"hello\n")

    assert has_digest(tmp_path / "file", digest) is is_right
    assert RemoteFile("file", 6, digest).is_verifiable is not digest.startswith("W")


# -- The command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "exit_code", "sentence"),
    [
        (["org/m", "--extension", ","], 2, "--extension is empty"),
        (["org/m", "--revision", "../x"], 2, "is not a valid name of a branch, tag or commit"),
        (["no such name"], 2, "is neither a directory nor a valid name on the hub"),
        (["./nowhere"], 2, "./nowhere is not a directory"),
        ([""], 2, "The model's name is empty"),
        (["org/m", "--dry-run", "--verify"], 2, "cannot be used together"),
        (["org/m", "--parallel", "0"], 2, "--parallel must be an integer from 1 to 64"),
    ],
)
def test_invalid_arguments_are_refused_in_one_sentence(
    arguments: list[str], exit_code: int, sentence: str, tmp_path: Path
):
    result = run_in_process("download-weights", *arguments, environ={"HF_HUB_CACHE": str(tmp_path / "cache")})

    assert (result.returncode, result.stderr.count(b"\n")) == (exit_code, 1)
    assert sentence in result.stderr.decode()
    assert list(tmp_path.iterdir()) == []
