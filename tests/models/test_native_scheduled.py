"""Families on one and two shards with the real scheduler: chunked prefills, preemptions, and prefix-cache hits.

The rest of a server does not depend on the family; test_served_tokens and the contract tests cover it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import driving
from tgis_server.engines.api import Launched
from tgis_server.wire.messages import Masks, StepPlan, StepTokens
from tiny import Driver, Model, assert_same_tokens, prompt_of

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": 20},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "granite": {"attention_multiplier": 0.3, "logits_scaling": 2.0, "residual_multiplier": 0.5},
    "phi3": {"pad_token_id": 0},
}
COMMON = prompt_of(33, seed=99)  # a prefix shared by half of the prompts
PROMPTS = [prompt_of(length, seed=length) for length in (5, 30, 60)]
PROMPTS += [COMMON + prompt_of(length, seed=length) for length in (1, 9, 20)]
NUM_NEW = 18
BLOCK_SIZE = 8  # of the runs that tiny.py makes
NUM_BLOCKS = 16  # enough for two of the six sequences


class Ranks:
    """All ranks as one runner: rank 0 in this process, and its followers."""

    def __init__(self, driver: Driver) -> None:
        self._runner = driver.runner
        self._followers = driver.followers

    def launch(self, plan: StepPlan) -> Launched:
        self._followers(plan)
        return self._runner.launch(plan)

    def finish(self, launched: Launched, masks: Masks | None) -> None:
        self._runner.finish(launched, masks)

    def collect(self, launched: Launched) -> StepTokens:
        return self._runner.collect(launched)


@pytest.mark.parametrize("num_shard", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_scheduled_sequences_generate_the_same_tokens_as_transformers(
    family: str, num_shard: int, model: Callable[..., Model], shards: Callable[..., tuple[Driver, list[Any]]]
) -> None:
    tiny = model(family, **FAMILIES[family])
    scheduled = driving.Driver(num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, max_batch_tokens=24)
    scheduled.runner = Ranks(shards(tiny, num_shard)[0])

    for first_id in (0, len(PROMPTS)):  # the second round finds its prompts in the prefix cache
        scheduled.apply(*(driving.submit(first_id + i, prompt, NUM_NEW) for i, prompt in enumerate(PROMPTS)))
        scheduled.run_until_idle()

    for request_id, generated in scheduled.tokens.items():
        prompt = PROMPTS[request_id % len(PROMPTS)]
        assert_same_tokens(tiny.oracle, prompt, generated, tiny.expected(prompt, NUM_NEW))
    assert len(scheduled.tokens) == 2 * len(PROMPTS)
    assert scheduled.preemptions > 0
    assert scheduled.cached_tokens > 0
