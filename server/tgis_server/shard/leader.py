"""The leader's step loop: it plans, tells the followers, runs the device, and publishes what came out.

Where the engine plans ahead, a step is launched before the one before it is collected. A step with guided rows is
finished after that only, as the tokens of the step before tell which may follow; the masks are computed meanwhile.
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
from tgis_server.shard.guides import Compiler, GuideError, Guides, refuse
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
from tgis_server.wire.messages import Cancel, Masks, Staged, StepPlan, StepResult, Submit
from tgis_server.wire.plans import PlanPublisher

logger = logging.getLogger(__name__)

QUICK_WARM_UP_S = 2.0  # beyond, what the first step does once hardly counts


@dataclass(frozen=True, slots=True)
class InFlight:
    """A step under way, and what is known of it before it ends."""

    launched: Launched
    plan_s: float
    started_at: float  # of its planning
    is_repeat: bool
    guided_rows: list[tuple[int, int]]  # rows that need masks, with their requests

    @property
    def plan(self) -> StepPlan:
        return self.launched.plan


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
        control: ControlPublisher | None = None,
        compile_grammar: Compiler = refuse,
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
        self._session = 0  # whose requests the scheduler has
        self._in_flight: InFlight | None = None
        self._ended_at = 0.0  # when the latest step was over
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
        self._take_in(wait=self._in_flight is None and self._scheduler.is_idle)
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
        """Run a prefill and a decode step through all ranks; what stays of it is how long they take.

        Raises:
            NotEnoughDevices: not even this fits beside the weights.
        """
        steps = list(self._run_warm_up(num_tokens))
        if sum(seconds for _, seconds in steps) < QUICK_WARM_UP_S:  # kernels were made: now it tells what steps take
            steps = list(self._run_warm_up(num_tokens))
        for load, seconds in steps:
            self._scheduler.times.observe(load, seconds)
        self._followers.publish(StepPlan(step=0))  # the warm-up is over

    def _run_warm_up(self, num_tokens: int) -> Iterator[tuple[StepLoad, float]]:
        """Yields what each step computed, and its seconds."""
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

    def _take_in(self, *, wait: bool) -> None:
        requests: list[Submit | Cancel] = []
        staged: list[Staged] = []
        has_tick = False
        for message in self._inbox.drain(wait=wait):
            match message:
                case Requests(session, items):
                    if session > self._session:
                        self._begin_session(session)
                        requests.clear()
                    if session == self._session:  # else late: its Session is over
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
                        logger.warning("a stop signal came: the shards end when the front-end does")
        self._status.answer_tick()
        if has_tick and wait:
            self._followers.publish(StepPlan(step=0))  # an empty plan: their tick
        self._scheduler.apply([*staged, *requests])
        for adapter in self._scheduler.take_staging_requests():
            self._stager.stage(adapter)

    def _release(self, compiled: Compiled) -> list[Submit]:
        """The request whose grammar has been compiled, unless it is over."""
        try:
            submit = self._guides.release(compiled)
        except GuideError as error:
            self._scheduler.fail(compiled.submit.request_id, "INVALID_ARGUMENT", str(error))
            return []
        return [submit] if submit else []

    def _begin_session(self, session: int) -> None:
        """Whatever belongs to an earlier Session is over, and nothing of it reaches this one."""
        self._session = session
        self._guides.forget_all()
        self._scheduler.cancel_all()

    def _publish(self, result: StepResult) -> None:
        """Tell the client, and the guides: who ends without a step has one, too."""
        self._guides.follow(result)
        self._outbox.put(self._session, result)

    def _launch(self, plan: StepPlan, started_at: float, *, is_repeat: bool) -> InFlight | None:
        """Start a step's forward on all ranks; ``None`` if it did not fit into memory."""
        guided_rows = self._scheduler.guided_rows(plan)
        plan_s = time.monotonic() - started_at
        self._check.apply(plan)
        if self._in_flight is None:
            self._status.begin_step(started_at, plan.allowance_s)
        self._followers.publish(plan)
        try:
            launched = self._runner.launch(plan)
        except OutOfMemory as error:
            self._give_up(plan, error, is_repeat=is_repeat)
            return None
        return InFlight(launched, plan_s, started_at, is_repeat, guided_rows)

    def _finish(self, step: InFlight, masks: Masks | None) -> InFlight | None:
        """Start a step's sampling; ``None`` if it did not fit into memory."""
        try:
            self._runner.finish(step.launched, masks)
        except OutOfMemory as error:
            self._give_up(step.plan, error, is_repeat=step.is_repeat)
            return None
        return step

    def _wait_for_masks(self, step: InFlight) -> Masks:
        """Of a step's guided rows. A request whose guide fails ends alone, and its row gets none."""
        masks, errors = self._guides.masks(step.guided_rows)
        for request_id, text in errors.items():
            self._scheduler.fail(request_id, "INTERNAL", text)
        return masks

    def _give_up(self, plan: StepPlan, error: OutOfMemory, *, is_repeat: bool) -> None:
        """Fail the prefill rows of a step that did not fit; its decode rows run once more, alone, in the next step."""
        if is_repeat or not self._is_alone:
            raise step_too_large(plan, error) from error
        if self._in_flight:
            self._commit(self._in_flight, None)
            self._in_flight = None
        result = self._scheduler.fail_prefills(plan, str(error))
        self._must_repeat = result.stats.decode_rows > 0
        self._publish(result)

    def _commit(self, step: InFlight, following: InFlight | None) -> None:
        """Take in a step that was finished. ``following`` is under way from now on, if there is one."""
        tokens = self._runner.collect(step.launched)
        now = time.monotonic()
        result = self._scheduler.commit(step.plan, tokens, now)
        self._status.executed_steps += 1
        if following:
            self._status.begin_step(now, following.plan.allowance_s)
        # One that was planned ahead began when the step before it was over.
        step_s = now - max(step.started_at, self._ended_at)
        self._ended_at = now
        self._publish(replace(result, stats=replace(result.stats, plan_s=step.plan_s, step_s=step_s)))


def warm_up_plans(num_tokens: int, capacity: Capacity) -> list[StepPlan]:
    """A sequence of ``num_tokens`` zeros, in the first blocks if there are any: prefill, one decode, forget."""
    from tgis_server.wire.messages import NewSequence, SamplingParams, Wanted, pack_ids

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
