"""Runs the steps of a work on a loaded engine, as a shard's leader does: publish, launch, finish, collect.

Sequences start with a context that counts as computed, without computing it: the blocks are as large and as far apart
as after a real prefill, and times do not depend on the numbers in them. Imports no torch, and is tested with the fake
engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tgis_cli.bench.engine.work import MAX_STEPS, VARIANTS, Work
from tgis_server.engines.api import ModelRunner
from tgis_server.wire.messages import NewSequence, StepPlan, pack_ids

ROUND_S = 0.5  # of decode steps of one work in one round
MIN_STEPS = 3


class Stepper:
    """Measures pieces of work one after another. Between them the engine holds no sequence."""

    def __init__(
        self,
        runner: ModelRunner,
        publish: Callable[[StepPlan], None],
        max_batch_tokens: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """
        Args:
            publish: sends a plan to the followers.
        """
        self._runner = runner
        self._publish = publish
        self._max_batch_tokens = max_batch_tokens
        self._clock = clock
        self._step = 0
        self._seed = 0  # of the prompts' ids, so that no prompt repeats another

    def find_num_steps(self, work: Work) -> int:
        """Run a work once to warm up; returns how many decode steps a round should have."""
        self.measure(work, MIN_STEPS)  # one-time work: kernels, memory
        if work.kind == "prefill":
            return 1
        step_s = min(self.measure(work, MIN_STEPS))
        return max(MIN_STEPS, min(MAX_STEPS, round(ROUND_S / max(step_s, 1e-9))))

    def measure(self, work: Work, num_steps: int) -> list[float]:
        """The seconds of each decode step, or of one whole prefill."""
        if work.kind == "prefill":
            times = [sum(self._run(self._prefill(work)))]
        else:
            times = list(self._run(self._decode(work, num_steps)))[1:]  # the first one also starts the sequences
        self._finish(StepPlan(self._next_step(), free=list(range(work.rows))))
        return times

    def _run(self, plans: Iterable[StepPlan]) -> Iterator[float]:
        """The time between the results of consecutive steps; that of the first counts from its plan.

        If the engine plans ahead, each step is launched before the previous one is collected.
        """
        previous: Any = None
        started_at = self._clock()
        for plan in plans:
            launched = self._launch(plan)
            waited_for = previous if self._runner.caps.plan_ahead else launched
            previous = launched
            if waited_for is None:
                continue
            self._runner.collect(waited_for)
            ended_at = self._clock()
            yield ended_at - started_at
            started_at = ended_at
        if self._runner.caps.plan_ahead and previous is not None:
            self._runner.collect(previous)
            yield self._clock() - started_at

    def _launch(self, plan: StepPlan) -> Any:
        self._publish(plan)
        launched = self._runner.launch(plan)
        self._runner.finish(launched, None)
        return launched

    def _finish(self, plan: StepPlan) -> None:
        """Apply a plan without rows, which has no result."""
        self._publish(plan)
        self._runner.finish(self._runner.launch(plan), None)

    def _decode(self, work: Work, num_steps: int) -> Iterator[StepPlan]:
        rows = range(work.rows)
        for index in range(num_steps + 1):
            start = work.tokens + index
            yield StepPlan(
                self._next_step(),
                new=[self._start(work, row, work.tokens + 1, work.tokens) for row in rows] if index == 0 else [],
                slots=list(rows),
                num_tokens=[1] * work.rows,
                new_blocks=[self._blocks(work, row, start if index else 0, start + 1) for row in rows],
                sample=[True] * work.rows,
            )

    def _prefill(self, work: Work) -> Iterator[StepPlan]:
        """In chunks, as the scheduler computes a long prompt."""
        for start in range(0, work.tokens, self._max_batch_tokens):
            end = min(start + self._max_batch_tokens, work.tokens)
            yield StepPlan(
                self._next_step(),
                new=[self._start(work, 0, work.tokens, 0)] if start == 0 else [],
                slots=[0],
                num_tokens=[end - start],
                new_blocks=[self._blocks(work, 0, start, end)],
                sample=[end == work.tokens],
            )

    def _start(self, work: Work, row: int, num_tokens: int, num_cached: int) -> NewSequence:
        sampling, wanted = VARIANTS[work.variant]
        self._seed += 1
        num_ids = self._runner.facts.vocab_size
        ids = ((7919 * self._seed + 31 * i) % num_ids for i in range(num_tokens))
        border = self._runner.caps.rope_border
        return NewSequence(
            slot=row,
            token_ids=pack_ids(ids),
            prompt_length=num_tokens,
            num_cached_tokens=num_cached,
            sampling=sampling,
            wanted=wanted,
            seed=self._seed,
            is_rope_long=border is not None and work.length > border,
        )

    def _blocks(self, work: Work, row: int, start: int, end: int) -> list[int]:
        """The blocks that a row needs for positions up to ``end`` and did not have for those up to ``start``."""
        capacity = self._runner.capacity
        if not capacity.num_blocks:
            return []
        first = row * -(-work.length // capacity.block_size)
        held, needed = (-(-position // capacity.block_size) for position in (start, end))
        return list(range(first + held, first + needed))

    def _next_step(self) -> int:
        self._step += 1
        return self._step
