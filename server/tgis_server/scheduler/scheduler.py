"""The scheduler: ``apply`` messages, ``plan`` the next step, ``commit`` the outcome of a step.

A plan has decode rows first (a running answer never waits for a prompt), then as much prefill as the budget allows
(``admission.py``). If a step cannot have both, or prefill needs a step without decode rows, the two take turns.

A new sequence gets the memory for its whole prompt at once; only decode rows request more later. If no memory is left,
the youngest sequence loses its slot and is recomputed when there is memory again.

Steps may be in flight: ``plan`` can be called before the ``commit`` of the previous plan. Tokens of sequences that have
finished in the meantime are dropped; tokens of preempted ones are kept.
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
    "the model computed NaN or infinity for this request; if that happens often, its weights may be damaged, or its "
    "values may exceed the range of float16 (use --dtype bfloat16 or float32)"
)


class Scheduler:
    """The state of all requests. Single-threaded; every method is fast and none blocks."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self.limits = limits
        self.times = StepTimes()  # public: steps that the scheduler does not plan (warm-up) can be observed too
        self._sequences: dict[int, Sequence] = {}  # all unfinished ones, by request id
        self._waiting = WaitingQueue()
        self._slots = Slots(limits)
        self._deadlines = Deadlines()
        self._report = StepReport()
        self._admission = Admission(limits, self._slots, self._waiting, self.times, self._report)
        self._in_flight: dict[int, Draft] = {}  # by step
        self._ended_at = -math.inf  # when the latest step ended
        self._step = 0
        self._arrivals = 0
        self._prefill_is_next = False  # the next step has only prefill rows, if there are any

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
        """Whether there is nothing to do until a message arrives."""
        return not self._in_flight and len(self._sequences) == self._slots.adapters.num_held

    # Messages

    def apply(self, messages: Iterable[Submit | Cancel | Staged]) -> None:
        """Apply requests, cancellations and outcomes of staging, in the order of arrival."""
        for message in messages:
            match message:
                case Submit():
                    self._accept(message)
                case Staged():
                    self._settle(message)
                case Cancel(request_id) if sequence := self._sequences.get(request_id):
                    self._end(sequence)

    def take_staging_requests(self) -> list[Adapter]:
        """Adapters to be staged, each once. Answer each with ``Staged`` in :meth:`apply`."""
        return self._slots.adapters.take_staging_requests()

    def fail(self, request_id: int, status: str, text: str) -> None:
        """Fail a single request, even one that was not applied."""
        if sequence := self._sequences.get(request_id):
            self._fail(sequence, status, text)
        else:
            self._report.add_failure(request_id, status, text)

    def cancel_all(self) -> None:
        """The only client is gone: end its requests and drop what there was to report."""
        for sequence in list(self._sequences.values()):
            self._end(sequence)
        self._report.clear()

    def _accept(self, submit: Submit) -> None:
        if text := self._slots.memory.refusal(submit):
            self._report.add_failure(submit.request_id, "RESOURCE_EXHAUSTED", text)
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
        """Move the sequences that waited for an adapter to the queue, or fail them."""
        for sequence in self._slots.adapters.settle(staged):
            sequence.state = State.WAITING
            self._waiting.add(sequence)
            if staged.error:
                self._fail(sequence, "INVALID_ARGUMENT", staged.error)

    # The next step

    def plan(self, now: float, *, decode_only: bool = False) -> StepPlan | None:
        """The next step, or ``None`` if there is nothing to compute. The caller must run and commit it.

        ``decode_only`` repeats only the decode rows of a step that did not fit into memory.
        """
        draft = Draft(StepPlan(self._step + 1), now)
        self._add_rows(draft, decode_only=decode_only)
        if not draft.rows:
            self._expire(now)  # remaining sequences wait for something that no step provides
            return None
        draft.plan.free.extend(self._slots.take_freed())
        self._step += 1
        self._in_flight[self._step] = draft
        return replace(draft.plan, allowance_s=ALLOWANCE_FACTOR * self.times.predict(draft.load))

    def guided_rows(self, plan: StepPlan) -> list[tuple[int, int]]:
        """Rows of a launched plan whose token must match a grammar, as pairs of row and request id, in batch order.

        Their masks need the tokens of the previous step. Some of the requests may end when that step is committed.
        """
        return [
            (index, row.sequence.submit.request_id)
            for index, row in enumerate(self._in_flight[plan.step].rows)
            if row.sample and row.sequence.submit.grammar
        ]

    def _add_rows(self, draft: Draft, *, decode_only: bool) -> None:
        """Add decode rows and prefill rows, as far as a step may mix them, or only prefill rows if it is their turn."""
        is_mixed = self.limits.mixed_steps
        prefill_first, self._prefill_is_next = self._prefill_is_next and not decode_only, False
        if prefill_first:
            self._admission.add_prefill(draft)
            if draft.rows:
                return
        self._plan_decodes(draft)
        has_decodes = bool(draft.rows)
        if not (decode_only or prefill_first) and (is_mixed or not has_decodes):
            self._admission.add_prefill(draft)
        self._prefill_is_next = has_decodes and (not is_mixed or draft.needs_prefill_step)

    def _plan_decodes(self, draft: Draft) -> None:
        for sequence in [s for s in self._slots.running if s.state is State.RUNNING]:
            if len(draft.rows) == self.limits.max_batch_tokens:
                break
            self._plan_decode(draft, sequence)
        num_keys = sum([row.end + row.sequence.num_encoder_tokens for row in draft.rows])
        draft.load.add_decodes(len(draft.rows), num_keys)

    def _plan_decode(self, draft: Draft, sequence: Sequence) -> None:
        """Add one token of a running sequence, preempting others if it needs memory."""
        if sequence.state is not State.RUNNING or sequence.num_known >= sequence.max_tokens:
            return  # just preempted by an older sequence, or its last token is in flight
        if not sequence.is_rope_long and sequence.exceeds(self.limits.rope_border):
            if not sequence.num_in_flight:  # otherwise it waits a step: its newest token is not known yet
                self._preempt(sequence)
            return
        while not self._slots.memory.grow(sequence):
            # The youngest is this sequence or a later arrival, so it is not in the plan yet.
            youngest = self._slots.running[-1]
            self._preempt(youngest)
            draft.preemptions += 1
            if youngest is sequence:
                return
        draft.add_row(sequence, 1)

    def _preempt(self, sequence: Sequence) -> None:
        """Take a sequence's slot away; the sequence returns to its place in the queue and is recomputed later."""
        self._slots.release(sequence)
        sequence.state = State.WAITING
        self._waiting.add(sequence)
        self._deadlines.add(sequence, self._sequences)

    # Outcomes of steps

    def commit(self, plan: StepPlan, tokens: StepTokens, now: float) -> StepResult:
        """Apply a step's tokens; return everything that happened since the last result."""
        draft = self._in_flight.pop(plan.step)
        # A step that was planned ahead began when the previous one ended.
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
            if index in not_finite:  # its blocks must not be published
                self._fail(sequence, "INTERNAL", NOT_FINITE)
                continue
            if row.is_current:
                memory.commit(sequence, row.end, encoded=sequence.slot in encoding)
            if prompt_details := tokens.prompt_details.get(index):
                self._report.add_prompt_details(row, prompt_details)
            details = tokens.details.get(index)
            for position, token_id in enumerate(tokens.token_ids[index]):
                if self._append_token(sequence, token_id, details[position] if details else None, now):
                    break
        self._expire(now)
        return self.take_result(draft, tokens.forward_s)

    def _expire(self, now: float) -> None:
        """End sequences whose deadline passed while they waited for an adapter, a slot or their next chunk.

        Called after a step, so that on an idle server a request whose prompt takes one step always gets a token.
        """
        for sequence in self._deadlines.pop(now, self._sequences):
            if sequence.state not in (State.RUNNING, State.FINISHED):  # running ones end with their next token
                self._report.add_token(sequence, NO_TOKEN, FinishReason.TIME_LIMIT)
                self._end(sequence)

    def _append_token(self, sequence: Sequence, token_id: int, detail: TokenDetail | None, now: float) -> bool:
        """Append one token; return whether it was the sequence's last."""
        sequence.token_ids.append(token_id)
        reason = self._finish_reason(sequence, token_id, now)
        self._report.add_token(sequence, token_id, reason, detail)
        if reason is FinishReason.NOT_FINISHED:
            return False
        self._end(sequence)
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
        self._report.add_failure(sequence.submit.request_id, status, text)
        self._end(sequence)

    def _end(self, sequence: Sequence) -> None:
        """End a sequence and release what it holds."""
        match sequence.state:
            case State.STAGING:
                self._slots.adapters.drop(sequence)
            case State.WAITING:
                self._waiting.remove(sequence)
            case _:
                self._slots.release(sequence)
        sequence.state = State.FINISHED
        self._report.note_end()
        del self._sequences[sequence.submit.request_id]

    def fail_prefills(self, plan: StepPlan, text: str) -> StepResult:
        """Undo a step that did not fit into memory: its prefill rows fail, and its decode rows are planned again."""
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
            cached_blocks=self._slots.memory.num_cached,
            num_started=draft.num_started,
            preemptions=draft.preemptions,
            cached_tokens=draft.cached_tokens,
            forward_s=forward_s,
        )
