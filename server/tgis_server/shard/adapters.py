"""Stages adapters while steps run: a side thread of each rank reads them, and the leader collects the answers.

The step loop neither reads nor sends weights. If a rank cannot use an adapter, only the adapter's requests fail.
"""

from __future__ import annotations

import logging
import threading

from tgis_server import failures
from tgis_server.engines.api import ModelRunner
from tgis_server.errors import PeerLost, TgisError
from tgis_server.shard.inbox import Acknowledged, Inbox, SideFailure
from tgis_server.shard.worker import Worker
from tgis_server.wire.control import MESSAGE, Acknowledgement, ControlPublisher, ControlSubscriber
from tgis_server.wire.messages import Adapter, Staged

logger = logging.getLogger(__name__)


def stage_on(runner: ModelRunner, adapter: Adapter, rank: int) -> Acknowledgement:
    """Read an adapter on one rank; any error becomes part of the answer."""
    try:
        runner.stage(adapter)
    except TgisError as error:
        return Acknowledgement(adapter.digest, rank, str(error))
    except Exception as error:  # its requests fail, but this rank continues
        logger.exception("the adapter %s cannot be read", adapter.id)
        text = f"the adapter {adapter.id} cannot be read on shard {rank}: {type(error).__name__}: {error}"
        return Acknowledgement(adapter.digest, rank, text)
    return Acknowledgement(adapter.digest, rank)


class Stager:
    """The leader's part, owned by its main thread. No method blocks."""

    def __init__(self, runner: ModelRunner, control: ControlPublisher | None, inbox: Inbox) -> None:
        self._runner = runner
        self._control = control  # None, or no followers: only rank 0 stages
        self._inbox = inbox
        self._worker = Worker("adapters")
        self._reader: threading.Thread | None = None
        self._missing: dict[bytes, set[int]] = {}  # ranks that have not answered, by digest
        self._errors: dict[bytes, str] = {}  # the first error, by digest

    def stage(self, adapter: Adapter) -> None:
        """Ask all ranks to read an adapter; their answers arrive in the inbox."""
        self._missing[adapter.digest] = {0}
        if self._control and self._control.num_followers:
            self._missing[adapter.digest].update(range(1, 1 + self._control.num_followers))
            self._start_reading(self._control)
        self._worker.run(lambda: self._request(adapter))

    def note(self, answer: Acknowledgement) -> list[Staged]:
        """Record an answer; return the outcome if it was the last one.

        Raises:
            GroupFailed: the answer was not requested.
        """
        missing = self._missing.get(answer.digest)
        if missing is None:
            problem = f"is {answer.digest.hex()}, which was not requested from any rank"
            raise failures.MESSAGE_UNUSABLE.error(message=MESSAGE, field="digest", problem=problem)
        if answer.rank not in missing:
            problem = f"is {answer.rank}, which does not exist or has already answered"
            raise failures.MESSAGE_UNUSABLE.error(message=MESSAGE, field="rank", problem=problem)
        missing.remove(answer.rank)
        if answer.error:
            self._errors.setdefault(answer.digest, answer.error)
        if missing:
            return []
        del self._missing[answer.digest]
        return [Staged(answer.digest, self._errors.pop(answer.digest, ""))]

    def _request(self, adapter: Adapter) -> None:
        """Runs in the worker."""
        try:
            if self._control:
                self._control.stage(adapter)
            self._inbox.put(Acknowledged(stage_on(self._runner, adapter, 0)))
        except Exception as error:  # noqa: BLE001  a side thread's error ends the main thread
            self._inbox.put(SideFailure(error))

    def _start_reading(self, control: ControlPublisher) -> None:
        if self._reader is None:
            self._reader = threading.Thread(target=self._read_answers, args=[control], name="control", daemon=True)
            self._reader.start()

    def _read_answers(self, control: ControlPublisher) -> None:
        """Runs in a thread."""
        try:
            while True:
                self._inbox.put(Acknowledged(control.receive()))
        except Exception as error:  # noqa: BLE001  as above
            self._inbox.put(SideFailure(error))


class StagingFollower:
    """A follower's part: a thread that serves the control channel."""

    def __init__(self, runner: ModelRunner, control: ControlSubscriber, rank: int) -> None:
        self._runner = runner
        self._control = control
        self._rank = rank
        self._error: Exception | None = None

    def start(self) -> None:
        threading.Thread(target=self._answer, name="control", daemon=True).start()

    def check(self) -> None:
        """Raise the error that ended the thread, if any. Called by the main thread before each step."""
        if self._error:
            raise self._error

    def _answer(self) -> None:
        try:
            while (adapter := self._control.receive()) is not None:
                self._control.acknowledge(stage_on(self._runner, adapter, self._rank))
        except PeerLost:
            pass  # the main thread sees this, or an orderly end, on the plan channel
        except Exception as error:  # noqa: BLE001  the main thread raises it
            self._error = error
