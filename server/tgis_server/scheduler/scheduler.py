"""The scheduler: ``apply`` what arrived, ``plan`` the next step, ``commit`` what a step produced.

Order of a plan: decode rows first (a running answer never waits for somebody's prompt), then prefill as far as the
budget reaches (``admission.py``). Where steps cannot have both, or somebody's prefill needs a step of its own, steps of
either kind take turns.

A newcomer gets the memory of its whole prompt at once; only decode rows ask for more later. When there is none, the
youngest sequence gives up its slot and is computed again when there is room.

Steps may be in flight: ``plan`` can be called before ``commit`` of the previous plan. Tokens of sequences that finished
meanwhile are dropped, tokens of preempted ones are kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from tgis_server.scheduler.admission import Admission
from tgis_server.scheduler.budget import ALLOWANCE_FACTOR, StepTimes
from tgis_server.scheduler.deadlines import Deadlines
from tgis_server.scheduler.limits import SchedulerLimits
from tgis_server.scheduler.report import StepReport
from tgis_server.scheduler.sequence import Sequence, State
from tgis_server.scheduler.slots import Slots
from tgis_server.scheduler.steps import Draft
from tgis_server.scheduler.waiting import WaitingQueue
from tgis_server.wire.messages import (
    NO_TOKEN,
    Adapter,
    Cancel,
    FinishReason,
    Staged,
    StepPlan,
    StepResult,
    StepStats,
    StepTokens,
    Submit,
    TokenDetail,
)

NOT_FINITE = (
    "the model computed NaN or infinity for this request; if it does so often, its weights may be damaged, or its "
    "values exceed the range of float16 (use --dtype bfloat16 or float32)"
)


class Scheduler:
    """All state of all requests. One thread; every method is fast and none blocks."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self.limits = limits
        self.times = StepTimes()  # public: whoever runs a step beside plans can add what it took
        self._sequences: dict[int, Sequence] = {}  # everything not finished
        self._waiting = WaitingQueue()
        self._slots = Slots(limits)
        self._deadlines = Deadlines()
        self._report = StepReport()
        self._admission = Admission(limits, self._slots, self._waiting, self.times, self._report)
        self._in_flight: dict[int, Draft] = {}  # by step
        self._ended_at = -math.inf  # when the latest step was over
        self._step = 0
        self._arrivals = 0
        self._prefill_is_next = False  # the next step has prefill rows alone, if there are any

    @property
    def num_waiting(self) -> int:
        return len(self._waiting) + self._slots.adapters.num_held

    @property
    def num_running(self) -> int:
        return len(self._slots.running)

    @property
    def num_used_blocks(self) -> int:
        return self._slots.memory.num_used

    @property
    def is_idle(self) -> bool:
        """Whether nothing is to be done until a message arrives."""
        return not self._in_flight and len(self._sequences) == self._slots.adapters.num_held

    # What arrived

    def apply(self, messages: Iterable[Submit | Cancel | Staged]) -> None:
        """Take in requests, cancellations and what became of adapters, in the order in which they came."""
        for message in messages:
            match message:
                case Submit():
                    self._accept(message)
                case Staged():
                    self._settle(message)
                case Cancel(request_id) if sequence := self._sequences.get(request_id):
                    self._leave(sequence)

    def take_to_stage(self) -> list[Adapter]:
        """Adapters that somebody needs and nobody asked for yet. Answer each with ``Staged``, in :meth:`apply`."""
        return self._slots.adapters.take_to_stage()

    def fail(self, request_id: int, status: str, text: str) -> None:
        """Something that this request alone needs cannot be had. It need not have been taken in yet."""
        if sequence := self._sequences.get(request_id):
            self._fail(sequence, status, text)
        else:
            self._report.fail(request_id, status, text)

    def cancel_all(self) -> None:
        """The only client is gone: so are its requests, and what there was to tell it of them."""
        for sequence in list(self._sequences.values()):
            self._leave(sequence)
        self._report.clear()

    def _accept(self, submit: Submit) -> None:
        if text := self._slots.memory.refusal(submit):
            self._report.fail(submit.request_id, "RESOURCE_EXHAUSTED", text)
            return
        sequence = Sequence.of(submit, self._arrivals)
        self._arrivals += 1
        self._sequences[submit.request_id] = sequence
        self._deadlines.add(sequence, self._sequences)
        if self._slots.adapters.hold(sequence):
            sequence.state = State.STAGING
        else:
            self._waiting.add(sequence)

    def _settle(self, staged: Staged) -> None:
        """Those that waited for an adapter join the queue, or fail."""
        for sequence in self._slots.adapters.settle(staged):
            sequence.state = State.WAITING
            self._waiting.add(sequence)
            if staged.error:
                self._fail(sequence, "INVALID_ARGUMENT", staged.error)

    # The next step

    def plan(self, now: float, *, decode_only: bool = False) -> StepPlan | None:
        """The next step, or ``None`` when there is nothing to compute. The caller must run it and commit it.

        ``decode_only`` repeats the decode rows of a step that did not fit into memory, without company.
        """
        draft = Draft(StepPlan(self._step + 1), now)
        self._add_rows(draft, decode_only=decode_only)
        if not draft.rows:
            self._expire(now)  # whoever is left waits for what no step brings
            return None
        draft.plan.free.extend(self._slots.take_forgotten())
        self._step += 1
        self._in_flight[self._step] = draft
        return replace(draft.plan, allowance_s=ALLOWANCE_FACTOR * self.times.predict(draft.load))

    def guided_rows(self, plan: StepPlan) -> list[tuple[int, int]]:
        """Rows of a launched plan whose token has to match a grammar, each with its request; in batch order.

        Their masks need the tokens of the step before. Until that is committed, some of the requests may end.
        """
        return [
            (index, row.sequence.submit.request_id)
            for index, row in enumerate(self._in_flight[plan.step].rows)
            if row.sample and row.sequence.submit.grammar
        ]

    def _add_rows(self, draft: Draft, *, decode_only: bool) -> None:
        """Decode rows and prefill, as far as they may be in one step; or prefill alone, when its turn has come."""
        is_mixed = self.limits.mixed_steps
        prefill_first, self._prefill_is_next = self._prefill_is_next and not decode_only, False
        if prefill_first:
            self._admission.plan(draft)
            if draft.rows:
                return
        self._plan_decodes(draft)
        has_decodes = bool(draft.rows)
        if not (decode_only or prefill_first) and (is_mixed or not has_decodes):
            self._admission.plan(draft)
        self._prefill_is_next = has_decodes and (not is_mixed or draft.needs_prefill_step)

    def _plan_decodes(self, draft: Draft) -> None:
        for sequence in [s for s in self._slots.running if s.state is State.RUNNING]:
            if len(draft.rows) == self.limits.max_batch_tokens:
                break
            self._plan_decode(draft, sequence)
        num_keys = sum([row.end + row.sequence.num_encoder_tokens for row in draft.rows])
        draft.load.add_decodes(len(draft.rows), num_keys)

    def _plan_decode(self, draft: Draft, sequence: Sequence) -> None:
        """Add one token of a running sequence, making room for it if need be."""
        if sequence.state is not State.RUNNING or sequence.num_known >= sequence.max_tokens:
            return  # preempted by an older one just now, or its last token is in flight
        if not sequence.is_rope_long and sequence.exceeds(self.limits.rope_border):
            if not sequence.num_in_flight:  # else in the next step: its newest token is not known here
                self._preempt(sequence)
            return
        while not self._slots.memory.grow(sequence):
            # The youngest is behind this one in arrival order or is this one, so it is not in the plan yet.
            youngest = self._slots.running[-1]
            self._preempt(youngest)
            draft.preemptions += 1
            if youngest is sequence:
                return
        draft.add_row(sequence, 1)

    def _preempt(self, sequence: Sequence) -> None:
        """Take its slot away; it returns to its place in the queue and is recomputed later."""
        self._slots.give_up(sequence)
        sequence.state = State.WAITING
        self._waiting.add(sequence)
        self._deadlines.add(sequence, self._sequences)

    # What a step produced

    def commit(self, plan: StepPlan, tokens: StepTokens, now: float) -> StepResult:
        """Take in a step's tokens; returns everything that happened since the last result."""
        draft = self._in_flight.pop(plan.step)
        # A step that was planned ahead began when the one before it was over.
        self.times.observe(draft.load, now - max(draft.planned_at, self._ended_at))
        self._ended_at = now
        not_finite = frozenset(tokens.not_finite)
        encoding = frozenset(plan.encode)
        memory = self._slots.memory
        for index, row in enumerate(draft.rows):
            sequence = row.sequence
            if row.sample:
                sequence.num_in_flight -= 1
            if sequence.state is State.FINISHED:
                continue
            if index in not_finite:  # what it computed must not be found by others
                self._fail(sequence, "INTERNAL", NOT_FINITE)
                continue
            if row.is_current:
                memory.commit(sequence, row.end, encoded=sequence.slot in encoding)
            if prompt_details := tokens.prompt_details.get(index):
                self._report.prompt(row, prompt_details)
            details = tokens.details.get(index)
            for position, token_id in enumerate(tokens.token_ids[index]):
                if self._append_token(sequence, token_id, details[position] if details else None, now):
                    break
        self._expire(now)
        return self.take_result(draft, tokens.forward_s)

    def _expire(self, now: float) -> None:
        """End those that waited too long for an adapter, for a slot or for the next chunk of their prompt.

        Only after what could be computed: on an idle server a request whose prompt takes one step gets a token.
        """
        for sequence in self._deadlines.pop(now, self._sequences):
            if sequence.state not in (State.RUNNING, State.FINISHED):  # a running one ends with its next token
                self._report.token(sequence, NO_TOKEN, FinishReason.TIME_LIMIT)
                self._leave(sequence)

    def _append_token(self, sequence: Sequence, token_id: int, detail: TokenDetail | None, now: float) -> bool:
        """Take in one token; returns whether it was the sequence's last."""
        sequence.token_ids.append(token_id)
        reason = self._finish_reason(sequence, token_id, now)
        self._report.token(sequence, token_id, reason, detail)
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
        if len(sequence.token_ids) >= sequence.max_tokens:
            return FinishReason.MAX_TOKENS
        return FinishReason.NOT_FINISHED

    def _fail(self, sequence: Sequence, status: str, text: str) -> None:
        self._report.fail(sequence.submit.request_id, status, text)
        self._leave(sequence)

    def _leave(self, sequence: Sequence) -> None:
        """A sequence is over: whatever it holds is free."""
        match sequence.state:
            case State.STAGING:
                self._slots.adapters.drop(sequence)
            case State.WAITING:
                self._waiting.remove(sequence)
            case _:
                self._slots.give_up(sequence)
        sequence.state = State.FINISHED
        self._report.leave()
        del self._sequences[sequence.submit.request_id]

    def fail_prefills(self, plan: StepPlan, text: str) -> StepResult:
        """A step did not fit into memory: its prefill rows fail, its decode rows are as if it had not been planned."""
        draft = self._in_flight.pop(plan.step)
        for row in draft.rows:
            sequence = row.sequence
            if row.sample:
                sequence.num_in_flight -= 1
            if sequence.state is State.FINISHED:
                continue
            if row.is_prefill:
                self._fail(sequence, "RESOURCE_EXHAUSTED", text)
            else:
                sequence.num_planned -= 1
        result = self.take_result(draft, 0.0)
        return replace(result, stats=replace(result.stats, out_of_memory=True))

    def has_news(self) -> bool:
        """Whether something ended, failed or was cancelled without a step."""
        return self._report.has_news

    def take_result(self, draft: Draft | None = None, forward_s: float = 0.0) -> StepResult:
        """Everything that happened since the last result, with the statistics of a step if there was one."""
        return self._report.take(self._stats(draft or Draft(StepPlan(self._step)), forward_s))

    def _stats(self, draft: Draft, forward_s: float) -> StepStats:
        running = self._slots.running
        counts = list(zip(draft.rows, draft.plan.num_tokens, strict=True))
        prefill = [num_tokens for row, num_tokens in counts if row.is_prefill]
        return StepStats(
            decode_rows=len(counts) - len(prefill),
            prefill_rows=len(prefill),
            prefill_tokens=sum(prefill) + draft.num_encoded_tokens,
            num_running=len(running),
            num_waiting=self.num_waiting,
            running_tokens=sum([len(s.token_ids) for s in running]),
            remaining_tokens=max([s.max_tokens - len(s.token_ids) for s in running], default=0),
            used_blocks=self.num_used_blocks,
            num_started=draft.num_started,
            preemptions=draft.preemptions,
            cached_tokens=draft.cached_tokens,
            forward_s=forward_s,
        )
