"""The leader's step loop: plan, publish to the followers, run the device, publish the results.

If the engine can plan ahead, a step is launched before the previous one is collected. A step with guided rows is
finished only once the previous one is collected, because its masks depend on the previous step's tokens; the masks are
computed while the step runs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tgis_server.engines.api import Capacity, Launched, ModelRunner
from tgis_server.errors import OutOfMemory
from tgis_server.scheduler import Scheduler, StepLoad
from tgis_server.shard.adapters import Stager
from tgis_server.shard.guides import Compiler, GuideError, Guides, refuse_grammars
from tgis_server.shard.inbox import (
    Acknowledged,
    Compiled,
    Inbox,
    Requests,
    SessionEnded,
    SideFailure,
    Stop,
    Tick,
)
from tgis_server.shard.plan_check import PlanCheck
from tgis_server.shard.servicer import Outbox
from tgis_server.shard.status import ShardStatus
from tgis_server.shard.too_large import step_too_large
from tgis_server.wire.control import ControlPublisher
from tgis_server.wire.messages import (
    Cancel,
    Masks,
    NewSequence,
    SamplingParams,
    Staged,
    StepPlan,
    StepResult,
    Submit,
    Wanted,
    pack_ids,
)
from tgis_server.wire.plans import PlanPublisher

logger = logging.getLogger(__name__)

QUICK_WARM_UP_S = 2.0  # one-time work of the first step hardly distorts a longer warm-up


@dataclass(frozen=True, slots=True)
class InFlight:
    """A step in flight."""

    launched: Launched
    plan_s: float
    started_at: float  # when its planning started
    is_repeat: bool
    guided_rows: list[tuple[int, int]]  # rows that need masks, with their request ids

    @property
    def plan(self) -> StepPlan:
        return self.launched.plan


class Leader:
    """Runs in the main thread, which alone touches runner and scheduler."""

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
        control: ControlPublisher | None = None,
        compile_grammar: Compiler = refuse_grammars,
    ) -> None:
        self._runner = runner
        self._scheduler = scheduler
        self._status = status
        self._inbox = inbox
        self._outbox = outbox
        self._followers = followers
        self._is_alone = is_alone
        self._check = PlanCheck(runner.capacity)
        self._stager = Stager(runner, control, inbox)
        self._guides = Guides(compile_grammar, inbox)
        self._session = 0  # the Session whose requests the scheduler has
        self._in_flight: InFlight | None = None
        self._ended_at = 0.0  # when the latest step ended
        self._must_repeat = False  # the last step did not fit: repeat only its decode rows
        self._is_stopping = False

    def run(self) -> None:
        """Step until ``Stop`` has arrived and no Session is open: a draining front-end still needs its answers.

        Any exception ends the process and with it the group.
        """
        while not (self._is_stopping and not self._outbox.is_open):
            self.step()

    def step(self) -> None:
        """Apply the inbox's messages, start the next step, then publish the results of the previous one."""
        self._apply_inbox(wait=self._in_flight is None and self._scheduler.is_idle)
        started_at = time.monotonic()
        is_repeat, self._must_repeat = self._must_repeat, False
        plan = self._scheduler.plan(started_at, decode_only=is_repeat)
        step = self._launch(plan, started_at, is_repeat=is_repeat) if plan else None
        if step and not step.guided_rows:
            step = self._finish(step, None)
        if self._in_flight:
            self._commit(self._in_flight, step)
            self._in_flight = None
        if step and step.guided_rows:
            step = self._finish(step, self._wait_for_masks(step))
        if step and not self._runner.caps.plan_ahead:
            self._commit(step, None)
            step = None
        elif not plan and self._scheduler.has_news():
            self._publish(self._scheduler.take_result())
        self._in_flight = step
        if step is None:
            self._status.end_step()

    def warm_up(self, num_tokens: int) -> None:
        """Run a prefill and a decode step on all ranks, and observe their times.

        Raises:
            NotEnoughDevices: they do not fit into memory.
        """
        steps = list(self._run_warm_up(num_tokens))
        if sum(seconds for _, seconds in steps) < QUICK_WARM_UP_S:  # repeat without one-time work
            steps = list(self._run_warm_up(num_tokens))
        for load, seconds in steps:
            self._scheduler.times.observe(load, seconds)
        self._followers.publish(StepPlan(step=0))  # ends the warm-up

    def _run_warm_up(self, num_tokens: int) -> Iterator[tuple[StepLoad, float]]:
        """Yield each step's load and seconds."""
        position = 0
        for plan in warm_up_plans(num_tokens, self._runner.capacity):
            self._check.apply(plan)
            self._followers.publish(plan)
            started_at = time.monotonic()
            try:
                launched = self._runner.launch(plan)
                self._runner.finish(launched, None)
            except OutOfMemory as error:
                raise step_too_large(plan, error) from error
            if plan.slots:
                self._runner.collect(launched)
                load = StepLoad()
                load.add(position, plan.total_tokens)
                position += plan.total_tokens
                yield load, time.monotonic() - started_at

    def _apply_inbox(self, *, wait: bool) -> None:
        requests: list[Submit | Cancel] = []
        staged: list[Staged] = []
        has_tick = False
        for message in self._inbox.drain(wait=wait):
            match message:
                case Requests(session, items):
                    if session > self._session:
                        self._begin_session(session)
                        requests.clear()
                    if session == self._session:  # otherwise its Session has ended
                        requests += self._guides.hold_back(items)
                case Compiled():
                    requests += self._release(message)
                case Acknowledged(answer):
                    staged += self._stager.note(answer)
                case SideFailure(error):
                    raise error
                case Tick():
                    has_tick = True
                case SessionEnded(session):
                    if session >= self._session:
                        self._begin_session(session + 1)
                        requests.clear()
                case Stop():
                    self._is_stopping = True
                    if self._outbox.is_open:
                        logger.warning("received a stop signal: the shards end after the front-end")
        self._status.answer_tick()
        if has_tick and wait:
            self._followers.publish(StepPlan(step=0))  # an empty plan is the followers' tick
        self._scheduler.apply([*staged, *requests])
        for adapter in self._scheduler.take_staging_requests():
            self._stager.stage(adapter)

    def _release(self, compiled: Compiled) -> list[Submit]:
        """The request whose grammar has been compiled, unless it has ended."""
        try:
            submit = self._guides.release(compiled)
        except GuideError as error:
            self._scheduler.fail(compiled.submit.request_id, "INVALID_ARGUMENT", str(error))
            return []
        return [submit] if submit else []

    def _begin_session(self, session: int) -> None:
        """End all requests of earlier Sessions, so that none of their results reaches this one."""
        self._session = session
        self._guides.forget_all()
        self._scheduler.cancel_all()

    def _publish(self, result: StepResult) -> None:
        """Send a result to the front-end and the guides: even a request that ends without a step may have a guide."""
        self._guides.advance(result)
        self._outbox.put(self._session, result)

    def _launch(self, plan: StepPlan, started_at: float, *, is_repeat: bool) -> InFlight | None:
        """Start a step's forward pass on all ranks; ``None`` if it did not fit into memory."""
        guided_rows = self._scheduler.guided_rows(plan)
        plan_s = time.monotonic() - started_at
        self._check.apply(plan)
        if self._in_flight is None:
            self._status.begin_step(started_at, plan.allowance_s)
        self._followers.publish(plan)
        try:
            launched = self._runner.launch(plan)
        except OutOfMemory as error:
            self._drop_prefills(plan, error, is_repeat=is_repeat)
            return None
        return InFlight(launched, plan_s, started_at, is_repeat, guided_rows)

    def _finish(self, step: InFlight, masks: Masks | None) -> InFlight | None:
        """Start a step's sampling; ``None`` if it did not fit into memory."""
        try:
            self._runner.finish(step.launched, masks)
        except OutOfMemory as error:
            self._drop_prefills(step.plan, error, is_repeat=step.is_repeat)
            return None
        return step

    def _wait_for_masks(self, step: InFlight) -> Masks:
        """Wait for the masks of guided rows. If a guide fails, its request ends and its row gets no mask."""
        masks, errors = self._guides.masks(step.guided_rows)
        for request_id, text in errors.items():
            self._scheduler.fail(request_id, "INTERNAL", text)
        return masks

    def _drop_prefills(self, plan: StepPlan, error: OutOfMemory, *, is_repeat: bool) -> None:
        """Fail the prefill rows of a step that did not fit; the next step repeats only its decode rows."""
        if is_repeat or not self._is_alone:
            raise step_too_large(plan, error) from error
        if self._in_flight:
            self._commit(self._in_flight, None)
            self._in_flight = None
        result = self._scheduler.fail_prefills(plan, str(error))
        self._must_repeat = result.stats.decode_rows > 0
        self._publish(result)

    def _commit(self, step: InFlight, following: InFlight | None) -> None:
        """Commit a finished step. ``following``, if any, is the step now in flight."""
        tokens = self._runner.collect(step.launched)
        now = time.monotonic()
        result = self._scheduler.commit(step.plan, tokens, now)
        self._status.executed_steps += 1
        if following:
            self._status.begin_step(now, following.plan.allowance_s)
        # A step that was planned ahead began when the previous one ended.
        step_s = now - max(step.started_at, self._ended_at)
        self._ended_at = now
        self._publish(replace(result, stats=replace(result.stats, plan_s=step.plan_s, step_s=step_s)))


def warm_up_plans(num_tokens: int, capacity: Capacity) -> list[StepPlan]:
    """Plans for the prefill, decode and end of a sequence of ``num_tokens`` zeros, in the first KV blocks if any."""
    num_blocks = -(-(num_tokens + 1) // capacity.block_size) if capacity.num_blocks else 0
    sequence = NewSequence(
        slot=0,
        token_ids=pack_ids([0] * num_tokens),
        prompt_length=num_tokens,
        num_cached_tokens=0,
        sampling=SamplingParams(),
        wanted=Wanted(),
    )
    return [
        StepPlan(0, [sequence], [0], [num_tokens], [list(range(num_blocks))], [True]),
        StepPlan(0, [], [0], [1], [[]], [True]),
        StepPlan(0, free=[0]),
    ]
