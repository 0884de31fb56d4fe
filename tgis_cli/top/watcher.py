"""Looks at a server again and again, and waits for it if it restarts or goes away."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tgis_cli.clients.address import HTTP
from tgis_cli.clients.connection import Connection
from tgis_cli.clients.metrics_source import MetricsSource, find_source
from tgis_cli.top.glance import NO_ANSWER, Glance, make_glance
from tgis_cli.top.processes import Processes, ServerProcess
from tgis_cli.top.window import Window
from tgis_server.errors import TgisError


@dataclass(slots=True)
class Watcher:
    """One server. Used by one thread."""

    connection: Connection
    source: MetricsSource
    processes: Processes
    window: Window = field(default_factory=Window)
    model: str = ""  # as in the server's last answer
    restarted_at: float | None = None  # since the epoch

    @classmethod
    def connect(cls, connection: Connection) -> Watcher:
        """
        Raises:
            UsageError: the options or the environment do not say which server.
            Unavailable: there is none, or it is no TGIS server.
        """
        source = find_source(connection, protocol=HTTP)
        source.read_health("live")
        return cls(connection, source, Processes.find(source.address))

    def look(self) -> Glance:
        """What is known about the server now. If it does not answer, the glance says so."""
        processes = self.processes.look()
        try:
            facts = self._read_facts()
        except TgisError as error:
            self.window.add_gap()
            self._find_again()
            return self._make_glance({"error": str(error), "status": NO_ANSWER}, None, processes)
        window, problem = self._read_metrics()
        return self._make_glance(facts, window, processes, problem)

    def _read_facts(self) -> dict[str, Any]:
        """What the live probe says, and why the server is not ready if it is not."""
        facts = self.source.read_health("live")
        self.model = str(facts.get("model", self.model))
        if "error" not in facts and facts.get("status") != "serving":
            facts["error"] = self.source.read_health("ready").get("error", "")
        return facts

    def _read_metrics(self) -> tuple[Window | None, str]:
        """The metrics, or ``None`` and why they cannot be read."""
        try:
            has_restarted = self.window.add(self.source.scrape())
        except TgisError as error:
            self.window.add_gap()
            return None, str(error)
        if has_restarted:
            self.restarted_at = time.time()
            self._find_again()
        return self.window, ""

    def _find_again(self) -> None:
        """A server that has been started again has other processes, and may have other ports."""
        if self.source.address.server is not None:
            with contextlib.suppress(TgisError):  # there is none now, or there are several
                source = find_source(self.connection, protocol=HTTP)
                self.source = source if source.address.server is not None else self.source
        self.processes = Processes.find(self.source.address)

    def _make_glance(
        self, facts: Mapping[str, Any], window: Window | None, processes: Sequence[ServerProcess], problem: str = ""
    ) -> Glance:
        return make_glance(
            str(self.source.address),
            {"model": self.model, **facts},
            window,
            processes,
            history=tuple(self.window.points),
            restarted_at=self.restarted_at,
            reason=str(facts.get("error") or problem),
        )
