"""The scheduler: ``apply`` what arrived, ``plan`` the next step, ``commit`` what a step produced.

Order of a plan: decode rows first (a running answer never waits for somebody's prompt), then prefill chunks as far as
the budget reaches (``budget.py``). No sequence gets more than half of it beside others. The oldest of the long prompts
comes first; then prompts that this step can finish and newcomers, in order of arrival; then the other long ones, those
with the least left first. So a prompt waits for none that is longer, and yet every one goes on in the end.

A newcomer gets the KV blocks of its whole prompt at once; only decode rows ask for more later. When there are none, the
youngest sequence gives up its slot and blocks and is computed again when there is room.

Steps may be in flight: ``plan`` can be called before ``commit`` of the previous plan. Tokens of sequences that finished
meanwhile are dropped, tokens of preempted ones are kept.
"""

from __future__ import annotations

import heapq
import math
from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from operator import attrgetter

from tgis_server.scheduler.blocks import BlockPool, cache_root
from tgis_server.scheduler.budget import ALLOWANCE_FACTOR, PrefillBudget, StepLoad, StepTimes
from tgis_server.scheduler.sequence import Sequence, State
from tgis_server.scheduler.waiting import WaitingQueue, by_arrival
from tgis_server.wire.messages import (
    NO_TOKEN,
    Cancel,
    Failure,
    FinishReason,
    NewSequence,
    StepPlan,
    StepResult,
    StepStats,
    StepTokens,
    Submit,
    TokenDetail,
)

STEPS_PER_PROBE = 8  # of which one keeps to the target whatever reading keys takes

NOT_FINITE = (
    "the model computed NaN or infinity for this request; if it does so often, its weights may be damaged, or its "
    "values exceed the range of float16 (use --dtype bfloat16 or float32)"
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the scheduler may use."""

    num_blocks: int
    block_size: int
    max_batch_size: int  # sequences with a slot
    max_batch_tokens: int  # tokens per step
    prefix_cache: bool = True
    target_s: float = math.inf  # longest that a step should take: the time between two tokens of an answer
    rope_border: int | None = None  # sequences of more tokens are rotated otherwise (LongRoPE)


@dataclass(frozen=True, slots=True)
class _Row:
    """What the scheduler remembers of a planned row until its commit."""

    sequence: Sequence
    residence: int
    start: int  # num_planned before this row
    end: int  # and after it
    is_prefill: bool
    sample: bool


@dataclass(slots=True)
class _PlanBuilder:
    plan: StepPlan
    planned_at: float = 0.0
    rows: list[_Row] = field(default_factory=list)
    load: StepLoad = field(default_factory=StepLoad)
    num_started: int = 0
    cached_tokens: int = 0
    preemptions: int = 0


class Scheduler:
    """All state of all requests. One thread; every method is fast and none blocks."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.pool = BlockPool(limits.num_blocks, limits.block_size)
        self._sequences: dict[int, Sequence] = {}  # everything not finished
        self._waiting = WaitingQueue()
        self._running: list[Sequence] = []  # has a slot; by arrival
        self._free_slots = list(range(limits.max_batch_size))
        self._slots_to_forget: list[int] = []
        self._in_flight: dict[int, _PlanBuilder] = {}  # by step
        self.times = StepTimes()  # public: whoever runs a step beside plans can add what it took
        self._ended_at = -math.inf  # when the latest step was over
        self._step = 0
        self._arrivals = 0
        self._result = StepResult()  # what happened since the last result was taken
        self._has_changed = False  # since then somebody left: gauges are no longer true

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def is_idle(self) -> bool:
        return not self._sequences and not self._in_flight

    # What arrived

    def apply(self, messages: Iterable[Submit | Cancel]) -> None:
        """Take in new requests and cancellations, in the order in which they came."""
        for message in messages:
            if isinstance(message, Submit):
                self._accept(message)
            elif sequence := self._sequences.get(message.request_id):
                self._leave(sequence)

    def cancel_all(self) -> None:
        """The only client is gone: so are its requests, and what there was to tell it of them."""
        for sequence in list(self._sequences.values()):
            self._leave(sequence)
        self._result = StepResult()

    def _accept(self, submit: Submit) -> None:
        # The last generated token is never computed, so it needs no room.
        needed = self.pool.blocks_for(len(submit.prompt_ids) + submit.max_new_tokens - 1)
        if needed > self.pool.num_blocks:
            text = (
                f"{len(submit.prompt_ids)} input and {submit.max_new_tokens} new tokens need {needed} KV blocks, "
                f"but the server has {self.pool.num_blocks}"
            )
            self._result.failures.append(Failure(submit.request_id, "RESOURCE_EXHAUSTED", text))
            return
        root = cache_root(submit, is_rope_long=False)
        sequence = Sequence(submit, self._arrivals, root, needed, submit.prompt_ids[:])
        self._arrivals += 1
        self._sequences[submit.request_id] = sequence
        self._waiting.add(sequence)

    # The next step

    def plan(self, now: float, *, decode_only: bool = False) -> StepPlan | None:
        """The next step, or ``None`` when there is nothing to compute. The caller must run it and commit it.

        ``decode_only`` repeats the decode rows of a step that did not fit into memory, without company.
        """
        builder = _PlanBuilder(StepPlan(self._step + 1), now)
        for sequence in [s for s in self._running if s.state is State.RUNNING]:
            if len(builder.rows) == self.limits.max_batch_tokens:
                break
            self._plan_decode(builder, sequence)
        builder.load.add_decodes(len(builder.rows), sum([row.end for row in builder.rows]))
        if not decode_only:
            self._plan_prefill(builder, now)
        if not builder.rows:
            return None
        builder.plan.free.extend(self._slots_to_forget)
        self._slots_to_forget.clear()
        self._step += 1
        self._in_flight[self._step] = builder
        return replace(builder.plan, allowance_s=ALLOWANCE_FACTOR * self.times.predict(builder.load))

    def _plan_decode(self, builder: _PlanBuilder, sequence: Sequence) -> None:
        """Add one token of a running sequence, making room for it if need be."""
        if sequence.state is not State.RUNNING or sequence.remaining_tokens <= 0:
            return  # preempted by an older one just now, or its last token is in flight
        if not sequence.is_rope_long and sequence.exceeds(self.limits.rope_border):
            if not sequence.num_in_flight:  # else in the next step: its newest token is not known here
                self._preempt(sequence)
            return
        missing = self.pool.blocks_for(sequence.num_known) - len(sequence.blocks)
        while missing > self.pool.num_free:
            # The youngest is behind this one in arrival order or is this one, so it is not in the plan yet.
            youngest = self._running[-1]
            self._preempt(youngest)
            builder.preemptions += 1
            if youngest is sequence:
                return
        sequence.blocks += self.pool.allocate(missing)
        self._add_row(builder, sequence, 1)

    def _plan_prefill(self, builder: _PlanBuilder, now: float) -> None:
        """Add chunks of prompts; see the module for their order."""
        prefilling = [s for s in self._running if s.state is State.PREFILLING]
        if not prefilling and not (self._waiting and self._free_slots):
            return
        limits = self.limits
        budget = PrefillBudget.beside(
            self.times,
            builder.load,
            limits.max_batch_tokens,
            limits.target_s,
            has_others=len(self._sequences) > 1,
            may_exceed=builder.plan.step % STEPS_PER_PROBE != 0,
        )
        long = [s for s in prefilling if s.num_to_compute > budget.max_share]
        short = [s for s in prefilling if s.num_to_compute <= budget.max_share]
        later = sorted(long[1:], key=attrgetter("num_to_compute"))
        for sequence in (*long[:1], *short):
            self._plan_chunk(builder, budget, sequence)
        if self._free_slots and not builder.preemptions:
            self._admit_waiting(builder, budget, now, later[0].num_to_compute if later else math.inf)
        for sequence in later:
            self._plan_chunk(builder, budget, sequence)

    def _plan_chunk(self, builder: _PlanBuilder, budget: PrefillBudget, sequence: Sequence) -> None:
        if num_tokens := budget.take(sequence.num_planned, sequence.num_to_compute):
            self._add_chunk(builder, sequence, num_tokens)

    def _add_chunk(self, builder: _PlanBuilder, sequence: Sequence, num_tokens: int) -> None:
        builder.load.add(sequence.num_planned, num_tokens)
        self._add_row(builder, sequence, num_tokens)

    def _add_row(self, builder: _PlanBuilder, sequence: Sequence, num_tokens: int) -> None:
        plan = builder.plan
        start = sequence.num_planned
        is_prefill = start < sequence.prefill_end
        sequence.num_planned += num_tokens
        sample = sequence.num_planned == sequence.num_known
        plan.slots.append(sequence.slot)
        plan.num_tokens.append(num_tokens)
        plan.new_blocks.append(sequence.blocks[sequence.num_sent_blocks :])
        plan.sample.append(sample)
        builder.rows.append(_Row(sequence, sequence.residence, start, sequence.num_planned, is_prefill, sample))
        sequence.num_sent_blocks = len(sequence.blocks)
        if sample:
            sequence.num_in_flight += 1
            sequence.state = State.RUNNING

    def _admit_waiting(self, builder: _PlanBuilder, budget: PrefillBudget, now: float, longest: float) -> None:
        """Start newcomers while there are slots, blocks and budget for them.

        ``longest``: what the next long prompt under way has left. It goes on before newcomers that are longer: many
        prompts computed by turns would all be late.
        """
        # Running sequences grow: without a block in reserve for each, a newcomer would be preempted in the next step.
        reserve = sum(sequence.will_grow for sequence in self._running)
        for sequence in self._waiting.candidates():
            cached = self._find_cached(sequence)
            needed = self.pool.blocks_for(sequence.num_known) - len(cached)
            if needed + reserve > self.pool.num_obtainable(cached):
                continue
            num_cached = len(cached) * self.limits.block_size
            remaining = sequence.num_known - num_cached
            if remaining > longest and not self._waiting.is_due(sequence):
                continue
            num_tokens = budget.take(num_cached, remaining)
            if not num_tokens:
                return
            self._admit(builder, sequence, cached, needed, now)
            self._add_chunk(builder, sequence, num_tokens)
            reserve += sequence.will_grow
            if not self._free_slots:
                return

    def _admit(self, builder: _PlanBuilder, sequence: Sequence, cached: list[int], needed: int, now: float) -> None:
        """Give a newcomer a slot, and the blocks of all its known tokens."""
        self._waiting.start(sequence)
        self.pool.acquire(cached)
        sequence.blocks = cached + self.pool.allocate(needed)
        sequence.num_published = len(cached)
        sequence.num_planned = len(cached) * self.limits.block_size
        sequence.prefill_end = sequence.num_known
        sequence.slot = heapq.heappop(self._free_slots)
        sequence.state = State.PREFILLING
        insort(self._running, sequence, key=by_arrival)
        if not sequence.has_started:
            sequence.has_started = True
            self._result.started.append((sequence.submit.request_id, now))
            builder.num_started += 1
        builder.cached_tokens += sequence.num_planned
        builder.plan.new.append(
            NewSequence(
                slot=sequence.slot,
                token_ids=sequence.token_ids[:],
                prompt_length=len(sequence.submit.prompt_ids),
                num_cached_tokens=sequence.num_planned,
                sampling=sequence.submit.sampling,
                wanted=sequence.submit.wanted,
                seed=sequence.submit.seed,
                end_ids=sequence.submit.end_ids,
                is_rope_long=sequence.is_rope_long,
            )
        )

    def _find_cached(self, sequence: Sequence) -> list[int]:
        """Cached blocks of a sequence's beginning; the last token is always left to compute."""
        sequence.choose_rope(self.limits.rope_border)
        wanted = sequence.submit.wanted
        if not self.limits.prefix_cache or (wanted.input_tokens and wanted.any):  # facts need every position
            return []
        size = self.limits.block_size
        return self.pool.find_cached(sequence.get_keys((len(sequence.token_ids) - 1) // size, size))

    def _preempt(self, sequence: Sequence) -> None:
        """Take slot and blocks away; the sequence returns to its place in the queue and is recomputed later."""
        self._take_slot(sequence)
        sequence.state = State.WAITING
        self._waiting.add(sequence)

    def _take_slot(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.num_sent_blocks = 0
        sequence.num_planned = 0
        sequence.residence += 1
        self._slots_to_forget.append(sequence.slot)
        heapq.heappush(self._free_slots, sequence.slot)
        sequence.slot = -1

    # What a step produced

    def commit(self, plan: StepPlan, tokens: StepTokens, now: float) -> StepResult:
        """Take in a step's tokens; returns everything that happened since the last result."""
        builder = self._in_flight.pop(plan.step)
        # A step that was planned ahead began when the one before it was over.
        self.times.observe(builder.load, now - max(builder.planned_at, self._ended_at))
        self._ended_at = now
        not_finite = frozenset(tokens.not_finite)
        for index, row in enumerate(builder.rows):
            sequence = row.sequence
            if row.sample:
                sequence.num_in_flight -= 1
            if sequence.state is State.FINISHED:
                continue
            if index in not_finite:  # what it computed must not be found by others
                self._fail(sequence, "INTERNAL", NOT_FINITE)
                continue
            if row.residence == sequence.residence:
                self._publish(sequence, row.end)
            if prompt_details := tokens.prompt_details.get(index):
                self._report_prompt(sequence, row, prompt_details)
            details = tokens.details.get(index)
            for position, token_id in enumerate(tokens.token_ids[index]):
                if self._append_token(sequence, token_id, details[position] if details else None, now):
                    break
        self._expire(now)
        return self.take_result(builder, tokens.forward_s)

    def _expire(self, now: float) -> None:
        """End those that waited too long for a slot or for the next chunk of their prompt.

        Only steps do this: on an idle server a request whose prompt takes one step gets at least one token.
        """
        prefilling = (s for s in self._running if s.state is State.PREFILLING)
        for sequence in [
            s for s in (*self._waiting, *prefilling) if s.submit.deadline is not None and now > s.submit.deadline
        ]:
            self._report(sequence, NO_TOKEN, FinishReason.TIME_LIMIT)
            self._leave(sequence)

    def _publish(self, sequence: Sequence, num_computed: int) -> None:
        """Make the full blocks up to ``num_computed`` findable for other sequences."""
        size = self.limits.block_size
        num_full = num_computed // size
        if not self.limits.prefix_cache or num_full <= sequence.num_published:
            return
        keys = sequence.get_keys(num_full, size)
        for i in range(sequence.num_published, num_full):
            self.pool.publish(sequence.blocks[i], keys[i])
        sequence.num_published = num_full

    def _report_prompt(self, sequence: Sequence, row: _Row, details: list[TokenDetail]) -> None:
        """Pass on facts about prompt tokens; those that an earlier stay in a slot has reported are dropped."""
        new = details[max(0, sequence.num_described - row.start) :]
        if new:
            sequence.num_described += len(new)
            self._result.prompt_details.append((sequence.submit.request_id, new))

    def _append_token(self, sequence: Sequence, token_id: int, detail: TokenDetail | None, now: float) -> bool:
        """Take in one token; returns whether it was the sequence's last."""
        sequence.token_ids.append(token_id)
        reason = self._finish_reason(sequence, token_id, now)
        self._report(sequence, token_id, reason, detail)
        if reason is FinishReason.NOT_FINISHED:
            return False
        self._leave(sequence)
        return True

    def _finish_reason(self, sequence: Sequence, token_id: int, now: float) -> FinishReason:
        submit = sequence.submit
        if submit.deadline is not None and now > submit.deadline:
            return FinishReason.TIME_LIMIT
        if token_id in submit.end_ids and sequence.num_generated >= submit.sampling.min_new_tokens:
            return FinishReason.EOS_TOKEN
        if sequence.num_generated >= submit.max_new_tokens:
            return FinishReason.MAX_TOKENS
        return FinishReason.NOT_FINISHED

    def _report(
        self, sequence: Sequence, token_id: int, reason: FinishReason, detail: TokenDetail | None = None
    ) -> None:
        if detail is not None:
            self._result.details[len(self._result.request_ids)] = detail
        self._result.request_ids.append(sequence.submit.request_id)
        self._result.token_ids.append(token_id)
        self._result.finish_reasons.append(reason)

    def _fail(self, sequence: Sequence, status: str, text: str) -> None:
        self._result.failures.append(Failure(sequence.submit.request_id, status, text))
        self._leave(sequence)

    def _leave(self, sequence: Sequence) -> None:
        """A sequence is over: whatever it holds is free."""
        if sequence.state is State.WAITING:
            self._waiting.remove(sequence)
        else:
            self._take_slot(sequence)
        sequence.state = State.FINISHED
        self._has_changed = True
        del self._sequences[sequence.submit.request_id]

    def fail_prefills(self, plan: StepPlan, text: str) -> StepResult:
        """A step did not fit into memory: its prefill rows fail, its decode rows are as if it had not been planned."""
        builder = self._in_flight.pop(plan.step)
        for row in builder.rows:
            sequence = row.sequence
            if row.sample:
                sequence.num_in_flight -= 1
            if sequence.state is State.FINISHED:
                continue
            if row.is_prefill:
                self._fail(sequence, "RESOURCE_EXHAUSTED", text)
            elif row.residence == sequence.residence:
                sequence.num_planned -= 1
        result = self.take_result(builder, 0.0)
        return replace(result, stats=replace(result.stats, out_of_memory=True))

    def has_news(self) -> bool:
        """Whether something ended, failed or was cancelled without a step."""
        return self._has_changed or bool(self._result.failures)

    def take_result(self, builder: _PlanBuilder | None = None, forward_s: float = 0.0) -> StepResult:
        """Everything that happened since the last result, with the statistics of a step if there was one."""
        result = replace(self._result, stats=self._stats(builder or _PlanBuilder(StepPlan(self._step)), forward_s))
        self._result = StepResult()
        self._has_changed = False
        return result

    def _stats(self, builder: _PlanBuilder, forward_s: float) -> StepStats:
        counts = list(zip(builder.rows, builder.plan.num_tokens, strict=True))
        prefill = [num_tokens for row, num_tokens in counts if row.is_prefill]
        return StepStats(
            decode_rows=len(counts) - len(prefill),
            prefill_rows=len(prefill),
            prefill_tokens=sum(prefill),
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            running_tokens=sum(len(s.token_ids) for s in self._running),
            remaining_tokens=max((s.submit.max_new_tokens - s.num_generated for s in self._running), default=0),
            used_blocks=self.pool.num_used,
            num_started=builder.num_started,
            preemptions=builder.preemptions,
            cached_tokens=builder.cached_tokens,
            forward_s=forward_s,
        )
