"""Drives the scheduler and a fake engine step by step, as the leader does, and computes the expected outcome."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Container, Iterable
from collections.abc import Sequence as Sequence_
from dataclasses import dataclass, field, replace
from typing import Any

from tgis_server.engines.api import Capacity, RunnerCaps
from tgis_server.engines.fake import FakeLaunched, FakeRunner, virtual_id
from tgis_server.errors import ModelError, OutOfMemory
from tgis_server.options import Fault
from tgis_server.scheduler import Scheduler, SchedulerLimits
from tgis_server.scheduler.paged import PagedMemory
from tgis_server.scheduler.rows import RowMemory, reserved_tokens
from tgis_server.scheduler.sequence import Sequence, State
from tgis_server.wire.messages import (
    NO_TOKEN,
    Adapter,
    Cancel,
    FinishReason,
    Grammar,
    SamplingParams,
    Staged,
    StepPlan,
    StepResult,
    Submit,
    pack_ids,
)

VOCAB_SIZE = 97


def submit(
    request_id: int,
    prompt: Iterable[int] | int = 3,
    max_new_tokens: int = 4,
    *,
    encoder: Iterable[int] | int = (),
    min_new_tokens: int = 0,
    **fields: Any,
) -> Submit:
    """A request; ``prompt`` and ``encoder`` are each either token ids or a length."""
    prompt_ids = [(request_id * 7 + i) % VOCAB_SIZE for i in range(prompt)] if isinstance(prompt, int) else prompt
    encoder_ids = [(request_id * 5 + i) % VOCAB_SIZE for i in range(encoder)] if isinstance(encoder, int) else encoder
    return Submit(
        request_id=request_id,
        prompt_ids=pack_ids(prompt_ids),
        max_new_tokens=max_new_tokens,
        encoder_ids=pack_ids(encoder_ids),
        sampling=SamplingParams(min_new_tokens=min_new_tokens),
        **fields,
    )


def adapter(name: str) -> Adapter:
    """An adapter whose content is its name."""
    return Adapter(name, "fake", name.encode())


def every(divisor: int) -> Grammar:
    """A rule for guided rows; see :func:`allowed_ids`."""
    return Grammar("every", str(divisor))


def allowed_ids(grammar: Grammar, generated: Sequence_[int]) -> list[int]:
    """The ids that may follow: they depend on the number of tokens and on the newest one."""
    first = len(generated) + (generated[-1] if generated else 0)
    return [i for i in range(VOCAB_SIZE) if (i + first) % int(grammar.text) == 0]


def mask_of(grammar: Grammar, generated: Sequence_[int]) -> bytes:
    """The allowed ids as a mask for the engine."""
    bits = sum(1 << i for i in allowed_ids(grammar, generated))
    return bits.to_bytes(-(-VOCAB_SIZE // 8), "little")


def expected_tokens(request: Submit, end_ids: Iterable[int] = (), rope_border: int | None = None) -> list[int]:
    """The tokens of a request by the fake engine's rule, computed without an engine."""
    adapter_number = sum(request.adapter.digest) if request.adapter else 0
    encoder = with_virtual(request.encoder_ids, request.num_encoder_virtual)
    encoder_total = sum(encoder) + len(encoder) * adapter_number
    known = with_virtual(request.prompt_ids, request.num_virtual)
    generated: list[int] = []
    for _ in range(request.max_new_tokens):
        is_rope_long = rope_border is not None and len(known) > rope_border
        extra = adapter_number + is_rope_long + encoder_total
        token_id = (sum(known) + len(known) * (1 + extra) + encoder_total) % VOCAB_SIZE
        if request.grammar:
            allowed = allowed_ids(request.grammar, generated)
            token_id = next((i for i in allowed if i >= token_id), allowed[0])
        known.append(token_id)
        generated.append(token_id)
        if token_id in end_ids:
            break
    return generated


def with_virtual(token_ids: Iterable[int], num_virtual: int) -> list[int]:
    """Token ids, of which the first ``num_virtual`` are replaced by those of virtual rows."""
    return [virtual_id(i) if i < num_virtual else token_id for i, token_id in enumerate(token_ids)]


@dataclass(frozen=True)
class Load:
    """The work of a step, as the fake engine counts it."""

    num_tokens: int
    num_products: int  # tokens times keys, summed over rows


@dataclass(frozen=True)
class InFlight:
    """A launched step."""

    launched: FakeLaunched
    not_finite: list[int]  # rows that compute NaN
    seconds: float


@dataclass
class Driver:
    """A scheduler, a fake runner, and everything that they produced."""

    num_blocks: int = 32
    block_size: int = 4
    max_batch_size: int = 8
    max_batch_tokens: int = 64
    end_ids: frozenset[int] = frozenset()
    prefix_cache: bool = True
    rope_border: int | None = None
    caps: RunnerCaps = field(default_factory=RunnerCaps)
    max_rows: int = 8
    max_padded_tokens: int = 256
    max_adapters: int = 2
    staging_steps: int = 0  # how many steps the staging of an adapter takes
    out_of_memory: Container[str] = ()  # moments (stepN, finishN); repeated steps always fit
    depth: int = 1  # steps in flight
    target_s: float = math.inf
    step_seconds: Callable[[Load], float] = lambda load: 0.0  # duration of a step
    now: float = 0.0
    not_finite: set[int] = field(default_factory=set)  # requests whose rows compute NaN from now on
    tokens: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    reasons: dict[int, FinishReason] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    # For each request, the prompt tokens that details describe.
    described: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    plans: list[StepPlan] = field(default_factory=list)
    rows: list[list[int]] = field(default_factory=list)  # for each plan, the request of each row
    seconds: list[float] = field(default_factory=list)  # for each plan
    results: list[StepResult] = field(default_factory=list)

    def __post_init__(self) -> None:
        caps = replace(self.caps, rope_border=self.rope_border)
        capacity = Capacity(
            self.num_blocks, self.block_size, 10_000, self.max_rows, self.max_padded_tokens, self.max_adapters
        )
        limits = SchedulerLimits.of(
            caps,
            capacity,
            max_batch_size=self.max_batch_size,
            max_batch_tokens=self.max_batch_tokens,
            prefix_cache=self.prefix_cache,
            target_s=self.target_s,
        )
        self.scheduler = Scheduler(limits)
        self.runner = FakeRunner(vocab_size=VOCAB_SIZE, capacity=capacity, caps=caps)
        self._requests: dict[int, Submit] = {}
        self._in_flight: deque[InFlight] = deque()
        self._staging: list[tuple[int, Adapter]] = []  # steps left, adapter
        self._must_repeat = False
        self.num_without_decodes = 0  # consecutive steps that left out all rows that could decode

    def apply(self, *messages: Submit | Cancel | Staged) -> None:
        """Apply messages; requests get this server's end tokens."""
        known = [replace(m, end_ids=self.end_ids) if isinstance(m, Submit) else m for m in messages]
        self._requests |= {m.request_id: m for m in known if isinstance(m, Submit)}
        self.scheduler.apply(known)

    def load(self, plan: StepPlan) -> Load:
        """The work of a launched step."""
        ends = [row.end for row in self.scheduler._in_flight[plan.step].rows]
        return Load(plan.total_tokens, sum(n * end for n, end in zip(plan.num_tokens, ends, strict=True)))

    def _skips_decodes(self, plan: StepPlan) -> bool:
        rows = self.scheduler._in_flight[plan.step].rows
        planned = {row.sequence for row in rows}
        return all(row.is_prefill for row in rows) and any(
            s.state is State.RUNNING and s not in planned and s.num_known < s.max_tokens and self._keeps_rope(s)
            for s in self.running
        )

    def _keeps_rope(self, sequence: Sequence) -> bool:
        return sequence.is_rope_long or not sequence.exceeds(self.rope_border)

    def requests_of(self, plan: StepPlan) -> list[int]:
        """The requests of a plan's rows; to be called before its commit."""
        return [row.sequence.submit.request_id for row in self.scheduler._in_flight[plan.step].rows]

    def step(self) -> bool:
        """Plan and launch a step, then commit until at most ``depth - 1`` are in flight; False when idle."""
        self._stage()
        is_repeat, self._must_repeat = self._must_repeat, False
        plan = self.scheduler.plan(self.now, decode_only=is_repeat)
        if plan:
            self.plans.append(plan)
            self.rows.append(self.requests_of(plan))
            self.num_without_decodes = self.num_without_decodes + 1 if self._skips_decodes(plan) else 0
            self._run(plan, is_repeat=is_repeat)
        else:
            self._commit_all()
            if self.scheduler.has_news():
                self._take(self.scheduler.take_result())
        return plan is not None

    def _run(self, plan: StepPlan, *, is_repeat: bool) -> None:
        """Run a step as the leader does: masks of guided rows need the tokens of the previous step."""
        moments = (f"step{plan.step}", f"finish{plan.step}")
        moment = next((m for m in moments if m in self.out_of_memory and not is_repeat), None)
        self.runner._fault = Fault("shard-0", "oom", moment) if moment else None
        try:
            launched = self.runner.launch(plan)
            is_guided = bool(self.scheduler.guided_rows(plan))
            if not is_guided:
                self.runner.finish(launched, None)
            while len(self._in_flight) >= max(1, self.depth - 1):
                self._commit()
            if is_guided:
                self.runner.finish(launched, self._masks(plan))
        except OutOfMemory as error:
            self._commit_all()
            result = self.scheduler.fail_prefills(plan, str(error))
            self._must_repeat = result.stats.decode_rows > 0
            self._take(result)
            return
        self.seconds.append(self.step_seconds(self.load(plan)))
        not_finite = [row for row, request_id in enumerate(self.rows[-1]) if request_id in self.not_finite]
        self._in_flight.append(InFlight(launched, not_finite, self.seconds[-1]))
        if self.depth == 1:
            self._commit()

    def _masks(self, plan: StepPlan) -> dict[int, bytes]:
        masks = {}
        for row, request_id in self.scheduler.guided_rows(plan):
            grammar = self._requests[request_id].grammar
            assert grammar
            masks[row] = mask_of(grammar, self.tokens[request_id])
        return masks

    def _commit(self) -> None:
        step = self._in_flight.popleft()
        self.now += step.seconds
        tokens = self.runner.collect(step.launched)
        if step.not_finite:
            tokens = replace(tokens, not_finite=step.not_finite)
        self._take(self.scheduler.commit(step.launched.plan, tokens, self.now))

    def _commit_all(self) -> None:
        while self._in_flight:
            self._commit()

    def _stage(self) -> None:
        """Start to stage requested adapters, and report those whose staging is complete."""
        self._staging += [(self.staging_steps, needed) for needed in self.scheduler.take_staging_requests()]
        for steps, needed in self._staging:
            if steps == 0:
                self.apply(self._staged(needed))
        self._staging = [(steps - 1, needed) for steps, needed in self._staging if steps]

    def _staged(self, needed: Adapter) -> Staged:
        try:
            self.runner.stage(needed)
        except ModelError as error:
            return Staged(needed.digest, str(error))
        return Staged(needed.digest)

    def run_until_idle(self, max_steps: int = 10_000) -> None:
        for _ in range(max_steps):
            if not self.step() and self.scheduler.is_idle and not self._staging:
                return
        raise AssertionError(f"still busy after {max_steps} steps: a request starves")

    def _take(self, result: StepResult) -> None:
        self.results.append(result)
        columns = zip(result.request_ids, result.token_ids, result.finish_reasons, strict=True)
        for request_id, token_id, reason in columns:
            assert request_id not in self.reasons, f"request {request_id} got a token after its end"
            if token_id != NO_TOKEN:
                self.tokens[request_id].append(token_id)
            if reason is not FinishReason.NOT_FINISHED:
                self.reasons[request_id] = reason
        for request_id, details in result.prompt_details:
            self.described[request_id] += [detail.rank - 1 for detail in details]
        self.failures |= {failure.request_id: failure.text for failure in result.failures}

    @property
    def cached_tokens(self) -> int:
        return sum(result.stats.cached_tokens for result in self.results)

    @property
    def preemptions(self) -> int:
        return sum(result.stats.preemptions for result in self.results)

    @property
    def encoded(self) -> list[list[int]]:
        """For each plan, the slots whose encoder ran."""
        return [plan.encode for plan in self.plans]

    @property
    def running(self) -> list[Sequence]:
        return self.scheduler._slots.running

    def assert_blocks_balanced(self) -> None:
        """Check that no blocks, rows, slots, places or encodings are held."""
        slots, memory = self.scheduler._slots, self.scheduler._slots.memory
        assert self.scheduler.num_used_blocks == 0
        assert sorted(slots._free) == list(range(self.scheduler.limits.max_batch_size))
        assert (slots.adapters.num_used, slots.adapters.num_held) == (0, 0)
        if isinstance(memory, PagedMemory):
            assert (memory._growing, memory._encodings._encoding) == (set(), {})
        else:
            assert isinstance(memory, RowMemory)
            assert memory._lengths == []

    def assert_memory_is_sound(self) -> None:
        """Check what must hold after every step."""
        memory = self.scheduler._slots.memory
        if isinstance(memory, PagedMemory):
            self._assert_no_block_owned_twice(memory)
        else:
            longest = max((reserved_tokens(s.submit) for s in self.running), default=0)
            assert len(self.running) * longest <= self.max_padded_tokens
            assert len(self.running) <= self.max_rows

    def _assert_no_block_owned_twice(self, memory: PagedMemory) -> None:
        """Check that each block's ref count is its number of tables, and that no table has it twice."""
        pool, counts = memory.pool, defaultdict(int)
        for sequence in self.running:
            blocks = [*sequence.blocks, *sequence.cross_blocks]
            assert len(set(blocks)) == len(blocks)
            for block in blocks:
                counts[block] += 1
            is_growing = len(sequence.blocks) < pool.blocks_for(sequence.max_tokens - 1)
            assert is_growing == (sequence in memory._growing)
        assert [counts[block] for block in range(pool.num_blocks)] == pool._ref_counts
        assert set(pool._free) == {block for block in range(pool.num_blocks) if not counts[block]}

    def assert_plan_is_allowed(self) -> None:
        """Check that the newest plan respects the budget and the engine's capabilities."""
        plan, caps = self.plans[-1], self.caps
        num_encoded = sum(len(new.encoder_ids) for new in plan.new)
        is_whole = bool(plan.encode) or not caps.chunked_prefill
        assert plan.total_tokens + num_encoded <= self.max_batch_tokens or (plan.num_rows == 1 and is_whole)
        assert {new.slot for new in plan.new if new.encoder_ids} == set(plan.encode)
        assert self.num_without_decodes <= 1, "decode rows waited for more than one step of prefill"
