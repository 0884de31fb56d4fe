"""What is shown on stderr while an own server starts: a line that changes on a terminal, elsewhere one now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TextIO

from tgis_cli.clients.server_status import Status, ask
from tgis_cli.runs.servers import RunningServer
from tgis_cli.terminal.capabilities import is_capable
from tgis_cli.terminal.status_line import StatusLine
from tgis_server.words.control_characters import escape_controls

DELAY_S = 1.0  # a faster start shows nothing
ASK_S = 0.5  # between questions about the progress
ANSWER_S = 0.2  # for an answer to one: longer would delay the first token
LINE_S = 5.0  # between lines where the line cannot change

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
        self._stream = stream
        self._line = StatusLine(stream, environ, is_silent_elsewhere=True)
        self._is_live = is_capable(stream, environ)
        self._clock = clock
        self._ask = ask
        self._started_at = clock()
        self._next_ask_at = self._started_at
        self._next_line_at = self._started_at + LINE_S
        self._phase = "looking at the model"

    def update(self, server: RunningServer | None) -> None:
        """
        Args:
            server: ``None``: the launcher is still looking at the machine and the model.
        """
        now = self._clock()
        if self._is_live and now - self._started_at >= DELAY_S:
            if server is not None and now >= self._next_ask_at:
                self._next_ask_at = now + ASK_S
                self._phase = self._describe_phase(server)
            self._line.show(self._describe)
        elif not self._is_live and now >= self._next_line_at:
            self._next_line_at = now + LINE_S
            if server is not None:
                self._phase = self._describe_phase(server)
            self._stream.write(f"{self._describe()}\n")
            self._stream.flush()

    def clear(self) -> None:
        self._line.clear()

    def _describe_phase(self, server: RunningServer) -> str:
        status = self._ask(server)
        share = f" {status.share:.0%}" if status.share is not None else ""
        return (status.phase or str(status.state)) + share

    def _describe(self) -> str:
        return escape_controls(f"Starting {self._model}: {self._phase}, {self._clock() - self._started_at:.0f} s")
