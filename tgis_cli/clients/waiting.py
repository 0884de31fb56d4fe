"""``--wait``: connect to a server once it is ready, and show what it is doing until then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tgis_cli.clients.connection import Connection
from tgis_cli.clients.grpc_client import UNAVAILABLE, Client
from tgis_cli.clients.no_connection import NO_SERVER
from tgis_cli.clients.presenter import Presenter
from tgis_cli.terminal.capabilities import get_width
from tgis_cli.terminal.spinner import Spinner
from tgis_server.errors import Unavailable
from tgis_server.words.control_characters import escape_controls

POLL_S = 0.25
NO_SERVER_YET = "Waiting for a server at "


@dataclass(slots=True)
class Wait:
    """Repeated attempts until one succeeds. ``reason`` says why the last one failed."""

    limit_s: float  # may be infinite
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    reason: str = ""

    def connect(self, attempt: Callable[[], Client], tell: Callable[[str], None]) -> Client:
        """
        Args:
            tell: called with the first reason.

        Raises:
            Unavailable: the time is over; the message gives the last reason.
        """
        started_at = self.clock()
        while True:
            try:
                return attempt()
            except Unavailable as error:
                if not self.reason:
                    tell(shorten(str(error)))
                self.reason = shorten(str(error))
                if self.clock() - started_at >= self.limit_s:
                    raise Unavailable(f"Not ready within {self.limit_s:g} s. {error}") from None
            self.sleep(POLL_S)


@contextmanager
def connect_when_ready(connection: Connection, limit_s: float, presenter: Presenter) -> Iterator[Client]:
    """Like ``Client.connect``, but wait until a server is there and has loaded its model.

    Raises:
        UsageError: the options cannot be used.
        Unavailable: the server is not ready within the limit.
    """
    with ExitStack() as stack:

        def attempt() -> Client:
            with ExitStack() as opened:
                client = opened.enter_context(Client.connect(connection))
                client.model_info()  # refused until the model is loaded
                stack.push(opened.pop_all())
                return client

        def tell(reason: str) -> None:
            if not presenter.has_spinner:
                presenter.say(reason if reason.startswith(NO_SERVER_YET) else f"Waiting: {reason}")

        wait = Wait(limit_s)
        num_free = get_width(presenter.err) if presenter.has_spinner else 0
        with Spinner(presenter.err, 0, num_free, lambda: wait.reason):
            client = wait.connect(attempt, tell)
        yield client


def shorten(reason: str) -> str:
    """The first sentence of a reason, which is short enough for one line."""
    if reason.startswith(NO_SERVER):
        return f"{NO_SERVER_YET}{reason.removeprefix(NO_SERVER).partition(': ')[0]}"
    text = reason.partition(UNAVAILABLE)[2] or reason
    return escape_controls(text.partition(". ")[0].removesuffix(".")).replace("\n", " ")
