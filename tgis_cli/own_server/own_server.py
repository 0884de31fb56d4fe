"""A server for one command: it starts with the first connection and ends with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from tgis_cli.clients.connection import Connection
from tgis_cli.clients.grpc_client import Client
from tgis_cli.own_server.launcher import Launcher, LaunchOptions
from tgis_cli.own_server.run_log import RunLog
from tgis_cli.own_server.start_line import StartLine
from tgis_cli.runs.servers import RunningServer
from tgis_server.errors import ModelError, TgisError, Unavailable, UsageError

END_S = 3.0  # for a launcher to end after its server has become unavailable


@dataclass(slots=True)
class OwnServer:
    """A ``Connector`` to a server that it launches."""

    model: str  # as shown while the server starts
    options: LaunchOptions
    environ: Mapping[str, str]
    err: TextIO
    shows_log: bool  # all lines of the launcher, instead of one line of progress
    explain_model: Callable[[str], str] = str  # improves the sentence for a model that cannot be served
    launcher: Launcher | None = None
    log: RunLog | None = None
    has_processes: bool = False  # then the log says more than the launcher's last sentence
    is_log_known: bool = False  # to the user
    is_log_needed: bool = True

    @contextmanager
    def connect(self) -> Iterator[Client]:
        """
        Raises:
            TgisError: the server could not start, or ended early; the message names the log.
        """
        self.log = RunLog.open(self.environ)
        echo = self.err if self.shows_log else None
        try:
            with (
                Launcher.start(self.options, self.environ, self.log, echo) as self.launcher,
                self._open_client(self._wait_until_ready(self.launcher)) as client,
            ):
                yield client
        finally:
            self.log.close(is_wanted=self.is_log_known, is_needed=self.is_log_needed)

    @contextmanager
    def reconnect(self) -> Iterator[Client]:
        self._check_launcher()
        assert self.launcher is not None, "the first connection has started it"
        server = self.launcher.find_server()
        if server is None or server.is_obscure:  # without it, the client would look for another server
            raise Unavailable("The server is ending.")
        with self._open_client(server) as client:
            yield client

    def check(self) -> None:
        self._check_launcher(END_S)

    def _check_launcher(self, within_s: float = 0.0) -> None:
        """
        Args:
            within_s: how long to wait for the launcher to end.

        Raises:
            TgisError: it has ended.
        """
        assert self.launcher is not None, "the first connection has started it"
        with self._explained():
            self.launcher.check(within_s)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Errors of the launcher, with the place of the log where it says more."""
        assert self.log is not None, "the first connection has made it"
        try:
            yield
        except TgisError as error:
            self.is_log_needed = self.has_processes or not isinstance(error, UsageError | ModelError)
            self.is_log_known = self.is_log_needed and self.log.path is not None and not self.shows_log
            where = f" The log is in {self.log.path}." if self.is_log_known else ""
            sentence = self.explain_model(str(error)) if isinstance(error, ModelError) else str(error)
            raise type(error)(f"{sentence}{where}") from None

    @contextmanager
    def _open_client(self, server: RunningServer) -> Iterator[Client]:
        try:
            with Client.connect(Connection(server=server)) as client:
                yield client
        except Unavailable:  # because the launcher ends? then its reason is better
            self.check()
            raise

    def _wait_until_ready(self, launcher: Launcher) -> RunningServer:
        """
        Raises:
            TgisError: it has ended.
        """
        # This import takes a tenth of a second; the launcher does its own imports meanwhile.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        from tgis_server.wire import generation_pb2_grpc as generation_pb2_grpc

        line = StartLine(self.model, self.err, self.environ)
        server: RunningServer | None = None
        try:
            with self._explained():
                for server in launcher.until_ready():
                    self.has_processes = self.has_processes or server is not None
                    is_ready = server is not None and server.has_been_ready
                    if not (is_ready or self.shows_log):
                        line.update(server)
        finally:
            line.clear()
        assert server is not None, "the last one is ready"
        return server
