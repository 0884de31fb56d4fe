"""How a command gets its client: for a server that is already running, or for one that the command starts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from tgis_cli.clients.connection import Connection
from tgis_cli.clients.grpc_client import Client
from tgis_cli.clients.presenter import Presenter
from tgis_server.errors import Unavailable
from tgis_server.words.loading import STILL_LOADING


class Connector(Protocol):
    """Gives one command its connections to its server."""

    def connect(self) -> AbstractContextManager[Client]:
        """Open the first connection. The server may end with it.

        Raises:
            TgisError: there is none.
        """

    def reconnect(self) -> AbstractContextManager[Client]:
        """Open another connection after one has broken.

        Raises:
            TgisError: there is none.
        """

    def check(self) -> None:
        """Called when the server has become unavailable.

        Raises:
            TgisError: the server will not come back.
        """


@dataclass(frozen=True, slots=True)
class RemoteConnector:
    """Connects to a server that others start and stop."""

    connection: Connection
    presenter: Presenter
    wait_s: float | None = None  # how long to wait for a server that is not ready; None: not at all

    @contextmanager
    def connect(self) -> Iterator[Client]:
        if self.wait_s is not None:
            from tgis_cli.clients.waiting import connect_when_ready

            with connect_when_ready(self.connection, self.wait_s, self.presenter) as client:
                yield client
            return
        try:
            with Client.connect(self.connection) as client:
                yield client
        except Unavailable as error:
            raise Unavailable(
                f"{error} `--wait` waits for it." if STILL_LOADING in str(error) else str(error)
            ) from None

    def reconnect(self) -> AbstractContextManager[Client]:
        return Client.connect(self.connection)

    def check(self) -> None:
        """Raise nothing: the server may come back at any time."""
