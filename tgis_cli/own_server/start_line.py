"""Shown on stderr while a command's own server starts: a changing line on a terminal, occasional lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TextIO

from tgis_cli.clients.server_status import Status, ask
from tgis_cli.runs.servers import RunningServer
from tgis_cli.terminal.status_line import StatusLine
from tgis_server.words.loading import INSPECTING

DELAY_S = 1.0  # a faster start shows nothing on a terminal
ASK_S = 0.5  # between queries about the progress
ANSWER_S = 0.2  # for the answer to one: a longer wait would delay the first token
LINE_S = 5.0  # before the first line and between lines where they cannot change

Ask = Callable[[RunningServer], Status]


def ask_briefly(server: RunningServer) -> Status:
    return ask(server, ANSWER_S)


class StartLine:
    """``Starting org/model: reading weights 45%, 12 s``."""

    def __init__(
        self,
        model: str,
        stream: TextIO,
        environ: Mapping[str, str],
        *,
        clock: Callable[[], float] = time.monotonic,
        ask: Ask = ask_briefly,
    ) -> None:
        self._model = model
        self._line = StatusLine(stream, environ, clock, elsewhere_every_s=LINE_S)
        self._clock = clock
        self._ask = ask
        self._started_at = clock()
        self._next_ask_at = self._started_at
        self._phase = INSPECTING

    def update(self, server: RunningServer | None) -> None:
        """
        Args:
            server: ``None``: the launcher has no run directory yet.
        """
        if self._clock() - self._started_at >= (DELAY_S if self._line.is_live else LINE_S):
            self._line.show(lambda: self._describe(server))

    def clear(self) -> None:
        self._line.clear()

    def _describe_phase(self, server: RunningServer) -> str:
        status = self._ask(server)
        share = f" {status.share:.0%}" if status.share is not None else ""
        return (status.phase or str(status.state)) + share

    def _describe(self, server: RunningServer | None) -> str:
        now = self._clock()
        if server is not None and now >= self._next_ask_at:
            self._next_ask_at = now + ASK_S
            self._phase = self._describe_phase(server)
        return f"Starting {self._model}: {self._phase}, {now - self._started_at:.0f} s"
