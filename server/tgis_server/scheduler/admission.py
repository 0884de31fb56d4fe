"""Fills a step with prefill rows after its decode rows: chunks of prompts in progress, and new sequences.

While there are other sequences, no sequence gets more than half of a step. The oldest of the long prompts comes first;
then, in order of arrival, prompts that this step can finish and new sequences; then the other long prompts, shortest
remainder first. So no prompt waits for a longer one, and every prompt makes progress.

Some tokens cannot be split: those of an encoder, and whole prompts if the engine computes them in one step. If there
are more of them than fit into a step, they are computed alone; if only decode rows are in the way, they are computed in
the next step.
"""

from __future__ import annotations

import math
from operator import attrgetter

from tgis_server.scheduler.budget import PrefillBudget, StepTimes
from tgis_server.scheduler.limits import SchedulerLimits
from tgis_server.scheduler.memory import Offer
from tgis_server.scheduler.report import StepReport
from tgis_server.scheduler.sequence import Sequence, State
from tgis_server.scheduler.slots import Slots
from tgis_server.scheduler.steps import Draft
from tgis_server.scheduler.waiting import WaitingQueue

STEPS_PER_PROBE = 8  # one step in this many keeps to the target, however long reading keys takes


class Admission:
    """Decides which sequences get prefill rows; ``Slots`` carries out the decision."""

    def __init__(
        self, limits: SchedulerLimits, slots: Slots, waiting: WaitingQueue, times: StepTimes, report: StepReport
    ) -> None:
        self._limits = limits
        self._slots = slots
        self._waiting = waiting
        self._times = times
        self._report = report

    def add_prefill(self, draft: Draft) -> None:
        """Add prefill rows in the order that this module's docstring describes."""
        running = self._slots.running
        prefilling = [s for s in running if s.state is State.PREFILLING]
        may_admit = len(self._waiting) > 0 and self._slots.num_free > 0 and not draft.preemptions
        if not prefilling and not may_admit:
            return
        budget = PrefillBudget.after_decodes(
            self._times,
            draft.load,
            self._limits.max_batch_tokens,
            self._limits.target_s,
            has_others=len(running) + len(self._waiting) > 1,
            may_exceed=draft.plan.step % STEPS_PER_PROBE != 0,
        )
        long = [s for s in prefilling if s.num_to_compute > budget.max_share]
        short = [s for s in prefilling if s.num_to_compute <= budget.max_share]
        later = sorted(long[1:], key=attrgetter("num_to_compute"))
        for sequence in (*long[:1], *short):
            self._continue(draft, budget, sequence)
        if may_admit:
            self._admit_waiting(draft, budget, later[0].num_to_compute if later else math.inf)
        for sequence in later:
            self._continue(draft, budget, sequence)

    def _continue(self, draft: Draft, budget: PrefillBudget, sequence: Sequence) -> None:
        if num_tokens := budget.take(sequence.num_planned, sequence.num_to_compute):
            self._add_chunk(draft, sequence, num_tokens)

    def _add_chunk(self, draft: Draft, sequence: Sequence, num_tokens: int) -> None:
        draft.load.add(sequence.num_planned, num_tokens)
        draft.add_row(sequence, num_tokens)

    def _admit_waiting(self, draft: Draft, budget: PrefillBudget, longest: float) -> None:
        """Start new sequences while there are slots, memory and budget.

        ``longest``: remaining tokens of the next long prompt in progress. That prompt comes before new sequences that
        are longer: prompts that take turns would all be late.
        """
        for sequence in self._waiting.candidates():
            if not self._slots.num_free:
                return
            offer = self._slots.offer(sequence)
            if offer is None:
                continue
            remaining = sequence.num_known - offer.num_cached_tokens
            if remaining > longest and not self._waiting.is_due(sequence):
                continue
            if self._limits.chunked_prefill and not offer.num_to_encode:
                num_tokens = budget.take(offer.num_cached_tokens, remaining)
                if not num_tokens:
                    return
            else:
                num_tokens = self._take_whole(draft, budget, offer, remaining)
                if not num_tokens:
                    continue
            self._admit(draft, sequence, offer)
            self._add_chunk(draft, sequence, num_tokens)

    def _take_whole(self, draft: Draft, budget: PrefillBudget, offer: Offer, remaining: int) -> int:
        """Tokens of the first row if the encoder or whole prompt must be computed at once; 0 if this step cannot."""
        num_tokens = remaining
        if self._limits.chunked_prefill and offer.num_to_encode + remaining > budget.tokens:
            num_tokens = 1  # the step is for the encoder, with as few other tokens as possible
        at_once = offer.num_to_encode + num_tokens
        if budget.take_whole(offer.num_cached_tokens, at_once):
            return num_tokens
        draft.needs_prefill_step = draft.needs_prefill_step or budget.needs_step(at_once)
        return 0

    def _admit(self, draft: Draft, sequence: Sequence, offer: Offer) -> None:
        self._waiting.start(sequence)
        activation = self._slots.take(sequence, offer)
        sequence.state = State.PREFILLING
        if not sequence.has_started:
            sequence.has_started = True
            self._report.add_start(sequence, draft.planned_at)
            draft.num_started += 1
        draft.add_new(sequence, offer, activation)
