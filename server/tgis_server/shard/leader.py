"""The leader's step loop: it plans, tells the followers, runs the device, and publishes what came out."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from tgis_server.engines.api import Launched, ModelRunner
from tgis_server.errors import OutOfMemory
from tgis_server.scheduler import Scheduler
from tgis_server.shard.inbox import Inbox, SessionEnded, Stop, Tick
from tgis_server.shard.servicer import Outbox
from tgis_server.shard.status import ShardStatus
from tgis_server.shard.too_large import step_too_large
from tgis_server.wire.messages import Cancel, StepPlan, Submit
from tgis_server.wire.plans import PlanPublisher

logger = logging.getLogger(__name__)


class Leader:
    """Runs in the main thread; the only one to touch runner and scheduler."""

    def __init__(
        self,
        runner: ModelRunner,
        scheduler: Scheduler,
        status: ShardStatus,
        inbox: Inbox,
        outbox: Outbox,
        followers: PlanPublisher,
        *,
        is_alone: bool,
    ) -> None:
        self._runner = runner
        self._scheduler = scheduler
        self._status = status
        self._inbox = inbox
        self._outbox = outbox
        self._followers = followers
        self._is_alone = is_alone
        self._in_flight: Launched | None = None
        self._must_repeat = False  # the last step did not fit: repeat its decode rows alone
        self._is_stopping = False

    def run(self) -> None:
        """Step until ``Stop`` has arrived and no Session is open: a front-end that drains still needs its answers.

        Any exception ends the process and with it the group.
        """
        while not (self._is_stopping and not self._outbox.is_open):
            self.step()

    def step(self) -> None:
        """Take in what arrived, start the next step, then publish what the previous one produced."""
        started_at = time.monotonic()
        self._take_in(wait=self._in_flight is None and self._scheduler.is_idle)
        plan_started_at = time.monotonic()
        is_repeat, self._must_repeat = self._must_repeat, False
        plan = self._scheduler.plan(plan_started_at, decode_only=is_repeat)
        plan_s = time.monotonic() - plan_started_at
        launched = self._launch(plan, is_repeat=is_repeat) if plan else None
        if self._in_flight:
            self._finish(self._in_flight, plan_s, started_at)
        self._in_flight = launched
        if launched and not self._runner.caps.plan_ahead:
            self._finish(launched, plan_s, plan_started_at)
            self._in_flight = None
        elif not plan and self._scheduler.has_news():
            self._outbox.put(self._scheduler.take_result())
        if self._in_flight is None:
            self._status.step_started_at = None

    def warm_up(self, num_tokens: int) -> None:
        """Run a prefill and a decode step through all ranks; nothing of it stays.

        Raises:
            NotEnoughDevices: not even this fits beside the weights.
        """
        for plan in warm_up_plans(num_tokens, self._runner.capacity.block_size):
            self._followers.publish(plan)
            try:
                launched = self._runner.launch(plan)
            except OutOfMemory as error:
                raise step_too_large(plan, error) from error
            if plan.slots:
                self._runner.collect(launched)
        self._followers.publish(StepPlan(step=0))  # the warm-up is over

    def _take_in(self, *, wait: bool) -> None:
        requests: list[Submit | Cancel] = []
        has_tick = False
        for message in self._inbox.drain(wait=wait):
            match message:
                case Submit() | Cancel():
                    requests.append(message)
                case Tick():
                    has_tick = True
                case SessionEnded():
                    requests.clear()
                    self._scheduler.cancel_all()
                case Stop():
                    self._is_stopping = True
                    if self._outbox.is_open:
                        logger.warning("a stop signal came: the shards end when the front-end does")
        self._status.answer_tick()
        if has_tick and wait:
            self._followers.publish(StepPlan(step=0))  # an empty plan: their tick
        self._scheduler.apply(requests)

    def _launch(self, plan: StepPlan, *, is_repeat: bool) -> Launched | None:
        """Start a step on all ranks; ``None`` if it did not fit into memory."""
        if self._status.step_started_at is None:
            self._status.step_started_at = time.monotonic()
        self._followers.publish(plan)
        try:
            return self._runner.launch(plan)
        except OutOfMemory as error:
            if is_repeat or not self._is_alone:
                raise step_too_large(plan, error) from error
            self._give_up(plan, error)
            return None

    def _give_up(self, plan: StepPlan, error: OutOfMemory) -> None:
        """Fail the prefill rows of a step that did not fit; its decode rows run once more, alone, in the next step."""
        if self._in_flight:
            self._finish(self._in_flight, 0.0, time.monotonic())
            self._in_flight = None
        result = self._scheduler.fail_prefills(plan, str(error))
        self._must_repeat = result.stats.decode_rows > 0
        self._outbox.put(result)

    def _finish(self, launched: Launched, plan_s: float, started_at: float) -> None:
        tokens = self._runner.collect(launched)
        now = time.monotonic()
        result = self._scheduler.commit(launched.plan, tokens, now)
        self._status.executed_steps += 1
        self._status.step_started_at = now  # the next step, if there is one, is under way
        self._outbox.put(replace(result, stats=replace(result.stats, plan_s=plan_s, step_s=now - started_at)))


def warm_up_plans(num_tokens: int, block_size: int) -> list[StepPlan]:
    """A sequence of ``num_tokens`` zeros in the first blocks: prefill, one decode, forget."""
    from tgis_server.wire.messages import Details, NewSequence, SamplingParams

    num_blocks = -(-(num_tokens + 1) // block_size)
    sequence = NewSequence(
        slot=0,
        token_ids=[0] * num_tokens,
        prompt_length=num_tokens,
        num_cached_tokens=0,
        sampling=SamplingParams(),
        details=Details(),
    )
    return [
        StepPlan(0, [sequence], [0], [num_tokens], [list(range(num_blocks))], [True]),
        StepPlan(0, [], [0], [1], [[]], [True]),
        StepPlan(0, free=[0]),
    ]
