"""Whether to restart a group that failed, on machines without an orchestrator that would do it.

Only the failure of a process is retried: a wrong option or a broken model would fail again.
"""

from __future__ import annotations

import logging

from tgis_server.errors import GroupFailed

logger = logging.getLogger(__name__)

FIRST_DELAY_S = 1.0
MAX_DELAY_S = 60.0
GOOD_RUN_S = 600.0  # once a group has served for this long, earlier restarts no longer count


class RestartPolicy:
    """``--restart`` and ``--max-restarts``: a delay that doubles, up to a number of restarts."""

    def __init__(self, restart: str, max_restarts: int) -> None:
        """
        Args:
            restart: "none" or "on-failure".
            max_restarts: in a row, without a good run in between.
        """
        self._max_restarts = max_restarts if restart == "on-failure" else 0
        self.num_restarts = 0

    def delay_after(self, exit_code: int, served_s: float = 0.0) -> float | None:
        """Seconds to wait before the next start; ``None`` if the launcher should exit instead."""
        if served_s >= GOOD_RUN_S:
            self.num_restarts = 0
        if exit_code != GroupFailed.exit_code or self.num_restarts >= self._max_restarts:
            if exit_code and self.num_restarts:
                logger.error("giving up after %s", self.record)
            return None
        self.num_restarts += 1
        return float(min(FIRST_DELAY_S * 2 ** (self.num_restarts - 1), MAX_DELAY_S))

    def announce(self, sentence: str, delay_s: float) -> None:
        """Log why the last run ended, and when the next one starts."""
        logger.error("%s", sentence)
        logger.warning("starting again in %.0f s (%s); a stop signal cancels the restart", delay_s, self.record)

    @property
    def record(self) -> str:
        """``restart 2 of 5``."""
        return f"restart {self.num_restarts} of {self._max_restarts}"
