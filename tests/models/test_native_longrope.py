"""LongRoPE: short factors up to the original length, long ones beyond, chosen per sequence as in transformers.

When a sequence crosses the border, the scheduler has it recomputed, as Phi-3 in transformers does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tgis_server.scheduler import Scheduler, SchedulerLimits
from tgis_server.wire.messages import SamplingParams, Submit, Wanted, pack_ids
from tiny import Driver, Model, assert_same_tokens, prompt_of, run_step

BORDER = 64
PHI3: dict[str, Any] = {
    "model_type": "phi3",
    "original_max_position_embeddings": BORDER,
    "rope_parameters": {
        "rope_type": "longrope",
        "short_factor": [1.0 + 0.05 * i for i in range(8)],
        "long_factor": [1.5 + 3.0 * i for i in range(8)],
        "rope_theta": 10000.0,
    },
}


class Server:
    """A real scheduler and a runner, as in the leader."""

    def __init__(self, driver: Driver, **limits: Any) -> None:
        self.runner = driver.runner
        self.followers = driver.followers
        capacity = self.runner.capacity
        self.scheduler = Scheduler(
            SchedulerLimits(
                num_blocks=limits.pop("num_blocks", capacity.num_blocks),
                block_size=capacity.block_size,
                max_batch_size=8,
                max_batch_tokens=48,
                rope_border=self.runner.caps.rope_border,
                **limits,
            )
        )
        self.cached_tokens = 0
        self.preemptions = 0
        self._next_id = 0

    def run(self, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        """Generate ``num_tokens`` tokens after each prompt, all in one batch."""
        first = self._next_id
        self._next_id += len(prompts)
        self.scheduler.apply(
            Submit(first + i, pack_ids(prompt), num_tokens, SamplingParams(), Wanted())
            for i, prompt in enumerate(prompts)
        )
        generated: dict[int, list[int]] = {first + i: [] for i in range(len(prompts))}
        while not self.scheduler.is_idle:
            plan = self.scheduler.plan(0.0)
            assert plan is not None, "nothing to compute, but the server is not idle"
            if self.followers is not None:
                self.followers(plan)
            result = self.scheduler.commit(plan, run_step(self.runner, plan), 0.0)
            assert result.stats is not None
            self.cached_tokens += result.stats.cached_tokens
            self.preemptions += result.stats.preemptions
            for request_id, token_id in zip(result.request_ids, result.token_ids, strict=True):
                generated[request_id].append(token_id)
        return list(generated.values())


def assert_as_transformers(tiny: Model, prompts: list[list[int]], ours: list[list[int]]) -> None:
    for prompt, generated in zip(prompts, ours, strict=True):
        assert_same_tokens(tiny.oracle, prompt, generated, tiny.expected(prompt, len(generated)))


# Always short, crossing late and early, at the border, one token beyond it, long from the start.
LENGTHS = (20, 45, 60, BORDER - 1, BORDER, BORDER + 1, 100)


def test_each_sequence_of_a_mixed_batch_uses_the_factors_for_its_length(
    model: Callable[..., Model], driver: Callable[..., Driver]
) -> None:
    tiny = model(**PHI3)
    prompts = [prompt_of(length, seed=length) for length in LENGTHS]

    ours = Server(driver(tiny)).run(prompts, 24)

    assert_as_transformers(tiny, prompts, ours)


def test_two_shards_cross_the_border_together(
    model: Callable[..., Model], shards: Callable[..., tuple[Driver, list[Any]]]
) -> None:
    tiny = model(**PHI3)
    prompts = [prompt_of(length, seed=length) for length in LENGTHS]

    ours = Server(shards(tiny, 2)[0]).run(prompts, 24)

    assert_as_transformers(tiny, prompts, ours)


def test_sequences_that_cross_while_blocks_are_scarce_lose_nothing(
    model: Callable[..., Model], driver: Callable[..., Driver]
) -> None:
    tiny = model(**PHI3)
    prompts = [prompt_of(length, seed=length) for length in (50, 55, 60, 62)]
    server = Server(driver(tiny), num_blocks=math.ceil(3 * 80 / 8))

    ours = server.run(prompts, 24)

    assert server.preemptions > 0
    assert_as_transformers(tiny, prompts, ours)


def test_blocks_computed_with_other_factors_are_not_reused(
    model: Callable[..., Model], driver: Callable[..., Driver]
) -> None:
    tiny = model(**PHI3)
    long = prompt_of(100, seed=1)
    short = long[:40]
    server = Server(driver(tiny))

    first = server.run([long], 12)
    assert server.cached_tokens == 0
    second = server.run([short], 12)
    assert server.cached_tokens == 0
    again = server.run([long, short], 12)

    assert server.cached_tokens == 96 + 32  # both reuse their own blocks; the last token is always computed
    assert_as_transformers(tiny, [long, short, long, short], [*first, *second, *again])


def test_blocks_of_a_sequence_that_has_crossed_are_reused_by_long_ones(
    model: Callable[..., Model], driver: Callable[..., Driver]
) -> None:
    tiny = model(**PHI3)
    prompt = prompt_of(60, seed=60)
    server = Server(driver(tiny))
    [generated] = server.run([prompt], 24)
    longer = [*prompt, *generated]

    ours = server.run([longer], 12)

    assert server.cached_tokens == 80  # of 84; the last generated token was never computed
    assert_as_transformers(tiny, [longer], ours)
