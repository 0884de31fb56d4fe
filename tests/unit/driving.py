"""Drives scheduler and fake engine step by step, as the leader does, and knows by hand what must come out."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from tgis_server.engines.api import Capacity
from tgis_server.engines.fake import FakeRunner
from tgis_server.scheduler import Limits, Scheduler
from tgis_server.wire.messages import (
    NO_TOKEN,
    Cancel,
    FinishReason,
    SamplingParams,
    StepPlan,
    StepResult,
    Submit,
    Wanted,
    pack_ids,
)

VOCAB_SIZE = 97


def submit(
    request_id: int,
    prompt: Iterable[int] | int = 3,
    max_new_tokens: int = 4,
    *,
    deadline: float | None = None,
    wanted: Wanted | None = None,
    min_new_tokens: int = 0,
    cache_salt: bytes = b"",
) -> Submit:
    """A request; ``prompt`` is a list of token ids or a length."""
    prompt_ids = [(request_id * 7 + i) % VOCAB_SIZE for i in range(prompt)] if isinstance(prompt, int) else list(prompt)
    return Submit(
        request_id=request_id,
        prompt_ids=pack_ids(prompt_ids),
        max_new_tokens=max_new_tokens,
        sampling=SamplingParams(min_new_tokens=min_new_tokens),
        wanted=wanted or Wanted(),
        deadline=deadline,
        cache_salt=cache_salt,
    )


def expected_tokens(request: Submit, eos_ids: Iterable[int] = (), rope_border: int | None = None) -> list[int]:
    """What the fake engine's rule gives for a request, computed without an engine."""
    known = list(request.prompt_ids)
    for _ in range(request.max_new_tokens):
        is_rope_long = rope_border is not None and len(known) > rope_border
        extra = int(is_rope_long)
        known.append((sum(known) + len(known) * (1 + extra)) % VOCAB_SIZE)
        if known[-1] in eos_ids:
            break
    return known[len(request.prompt_ids) :]


@dataclass(frozen=True)
class Load:
    """What a step computes, as the fake engine counts it."""

    num_tokens: int
    num_products: int  # tokens times the keys of their row


@dataclass
class Driver:
    """A scheduler, a fake runner, and everything that came out of them."""

    num_blocks: int = 32
    block_size: int = 4
    max_batch_size: int = 8
    max_batch_tokens: int = 64
    eos_ids: frozenset[int] = frozenset()
    prefix_cache: bool = True
    rope_border: int | None = None
    depth: int = 1  # steps in flight
    target_s: float = math.inf
    step_seconds: Callable[[Load], float] = lambda load: 0.0  # how long a step takes
    now: float = 0.0
    not_finite: set[int] = field(default_factory=set)  # requests in whose rows NaN is computed from now on
    tokens: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    reasons: dict[int, FinishReason] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    described: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))  # prompt tokens, from facts
    plans: list[StepPlan] = field(default_factory=list)
    rows: list[list[int]] = field(default_factory=list)  # of each plan: the request of each row
    seconds: list[float] = field(default_factory=list)  # of each plan
    results: list[StepResult] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(
            Limits(
                self.num_blocks,
                self.block_size,
                self.max_batch_size,
                self.max_batch_tokens,
                self.prefix_cache,
                self.target_s,
                rope_border=self.rope_border,
            )
        )
        self.runner = FakeRunner(
            vocab_size=VOCAB_SIZE,
            capacity=Capacity(self.num_blocks, self.block_size, 10_000),
            rope_border=self.rope_border,
        )
        self._in_flight: deque = deque()

    def apply(self, *messages: Submit | Cancel) -> None:
        """Requests get this server's end tokens."""
        self.scheduler.apply([replace(m, end_ids=self.eos_ids) if isinstance(m, Submit) else m for m in messages])

    def load(self, plan: StepPlan) -> Load:
        """What a launched step has computed."""
        ends = [row.end for row in self.scheduler._in_flight[plan.step].rows]
        return Load(plan.total_tokens, sum(n * end for n, end in zip(plan.num_tokens, ends, strict=True)))

    def requests_of(self, plan: StepPlan) -> list[int]:
        """Whose rows a plan has, right after it was made."""
        return [row.sequence.submit.request_id for row in self.scheduler._in_flight[plan.step].rows]

    def step(self) -> bool:
        """Plan and launch a step, then commit so that at most ``depth - 1`` stay in flight; False when idle."""
        plan = self.scheduler.plan(self.now)
        if plan:
            self.plans.append(plan)
            self.rows.append(self.requests_of(plan))
            launched = self.runner.launch(plan)
            self.runner.finish(launched, None)
            self.seconds.append(self.step_seconds(self.load(plan)))
            broken = [row for row, request_id in enumerate(self.rows[-1]) if request_id in self.not_finite]
            self._in_flight.append((launched, broken, self.seconds[-1]))
        allowed = self.depth - 1 if plan else 0
        while len(self._in_flight) > allowed:
            launched, broken, seconds = self._in_flight.popleft()
            self.now += seconds
            tokens = self.runner.collect(launched)
            if broken:
                tokens = replace(tokens, not_finite=broken)
            self._take(self.scheduler.commit(launched.plan, tokens, self.now))
        if not plan and self.scheduler.has_news():
            self._take(self.scheduler.take_result())
        return plan is not None

    def run_until_idle(self, max_steps: int = 10_000) -> None:
        for _ in range(max_steps):
            if not self.step() and self.scheduler.is_idle:
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

    def assert_blocks_balanced(self) -> None:
        assert self.scheduler.pool.num_used == 0
        assert sorted(self.scheduler._free_slots) == list(range(self.max_batch_size))

    def assert_no_block_owned_twice(self) -> None:
        """Every owned block is referenced exactly as often as it stands in tables, and no table holds it twice."""
        pool, counts = self.scheduler.pool, defaultdict(int)
        for sequence in self.scheduler._running:
            assert len(set(sequence.blocks)) == len(sequence.blocks)
            for block in sequence.blocks:
                counts[block] += 1
        assert [counts[block] for block in range(pool.num_blocks)] == pool._ref_counts
        assert set(pool._free) == {block for block in range(pool.num_blocks) if not counts[block]}
