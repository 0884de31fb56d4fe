"""A server for one command: it starts with the first connection and ends with it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from tgis_cli.clients.connection import Connection
from tgis_cli.clients.grpc_client import Client
from tgis_cli.own_server.launcher import Launcher
from tgis_cli.own_server.run_log import RunLog
from tgis_cli.own_server.start_line import StartLine
from tgis_cli.runs.servers import RunningServer
from tgis_server.errors import Unavailable

POLL_S = 0.02
END_S = 3.0  # for a launcher to end after its server has become unavailable


@dataclass(slots=True)
class OwnServer:
    """A ``Connector`` to a server that it launches."""

    model: str  # as it is shown while it starts
    arguments: Sequence[str]  # of `tgis launch`
    environ: Mapping[str, str]
    err: TextIO
    shows_log: bool  # all lines of the launcher, instead of one line of progress
    launcher: Launcher | None = None

    @contextmanager
    def connect(self) -> Iterator[Client]:
        """
        Raises:
            TgisError: the server could not start, or has ended before its time; the sentence names the log.
        """
        log = RunLog.open(self.environ)
        try:
            with Launcher.start(self.arguments, self.environ, log, self.err if self.shows_log else None) as launcher:
                self.launcher = launcher
                with self._open_client(self._wait_until_ready(launcher)) as client:
                    yield client
        finally:
            log.close(is_wanted=self.launcher is not None and self.launcher.has_failed)

    @contextmanager
    def reconnect(self) -> Iterator[Client]:
        assert self.launcher is not None, "the first connection has started it"
        self.launcher.check()
        with self._open_client(self.launcher.find_server()) as client:
            yield client

    def check(self) -> None:
        assert self.launcher is not None, "the first connection has started it"
        self.launcher.check(END_S)

    @contextmanager
    def _open_client(self, server: RunningServer | None) -> Iterator[Client]:
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
        # The import takes a tenth of a second, in which the launcher imports as well.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        from tgis_server.wire import generation_pb2_grpc as generation_pb2_grpc

        line = StartLine(self.model, self.err, self.environ)
        try:
            while True:
                launcher.check()
                server = launcher.find_server()
                if server is not None and server.has_been_ready:
                    return server
                if not self.shows_log:
                    line.update(server)
                time.sleep(POLL_S)
        finally:
            line.clear()
