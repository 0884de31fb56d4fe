"""``--wait``: attempts until the server is ready."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest

from tgis_cli.clients.waiting import Wait, shorten
from tgis_server.errors import Unavailable, UsageError

LOADING = (
    "The server at 127.0.0.1:8033 is unavailable: The model is still loading; shard-0 reads weights, 1.5 GiB of "
    "3.0 GiB. Try again when the health service says SERVING."
)


@dataclass
class Server:
    """A server that is missing, then loading, then ready."""

    errors: list[Exception] = field(default_factory=lambda: [Unavailable("No server."), Unavailable(LOADING)])
    now: float = 0.0

    def attempt(self) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return "client"

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def wait(self, limit_s: float, told: list[str]) -> object:
        return Wait(limit_s, self.sleep, lambda: self.now).connect(self.attempt, told.append)  # type: ignore[arg-type]


def test_wait_lasts_until_a_server_has_loaded_and_shows_the_first_reason():
    told: list[str] = []

    assert Server().wait(math.inf, told) == "client"
    assert told == ["No server"]


def test_after_the_limit_the_last_reason_is_the_error():
    server = Server([Unavailable(LOADING)] * 100)

    with pytest.raises(Unavailable, match=r"^Not ready within 2 s\. .* still loading"):
        server.wait(2, [])

    assert server.now == pytest.approx(2, abs=0.3)


def test_options_that_cannot_be_used_end_the_wait_at_once():
    with pytest.raises(UsageError, match="wrong"):
        Server([UsageError("wrong")]).wait(math.inf, [])


def test_the_reason_is_the_first_sentence_from_the_server():
    assert shorten("No server at h:1 (from TGIS_URL): start one.") == "Waiting for a server at h:1 (from TGIS_URL)"
    assert shorten(LOADING) == "The model is still loading; shard-0 reads weights, 1.5 GiB of 3.0 GiB"
