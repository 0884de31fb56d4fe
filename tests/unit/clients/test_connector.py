"""The connection of a command to a server that others start."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator

import pytest

from tgis_cli.clients.connection import Connection
from tgis_cli.clients.connector import RemoteConnector
from tgis_cli.clients.grpc_client import Client, to_request_error
from tgis_cli.clients.presenter import Presenter
from tgis_server.errors import Unavailable
from tgis_server.frontend.state import ServerState
from tgis_server.run.phases import Phases

TARGET = "127.0.0.1:8033"


def connect(monkeypatch: pytest.MonkeyPatch, details: str) -> None:
    """Connect to a server that refuses the first call."""

    @contextlib.contextmanager
    def refuse(connection: Connection) -> Iterator[Client]:
        raise to_request_error("UNAVAILABLE", details, TARGET)
        yield

    monkeypatch.setattr(Client, "connect", refuse)
    with RemoteConnector(Connection(), Presenter.open({}, out=io.StringIO(), err=io.StringIO())).connect():
        pass


def test_while_the_server_loads_its_model_the_error_ends_with_the_option_that_waits(monkeypatch: pytest.MonkeyPatch):
    loading = ServerState(Phases(), lambda: "shard-0: reading weights").text

    with pytest.raises(Unavailable, match=r"The model is still loading; .* SERVING\. `--wait` waits for it\.$"):
        connect(monkeypatch, loading)


def test_waiting_does_not_help_with_other_reasons(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(Unavailable, match=r"is unavailable: The server is shutting down; use another one\.$"):
        connect(monkeypatch, "The server is shutting down; use another one.")
