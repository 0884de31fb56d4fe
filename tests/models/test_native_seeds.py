"""A seed gives the tokens that docs/architecture.md defines, on one shard and on two.

The definition is computed from transformers' logits in float64, without the sampler's code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import sampling_reference as reference
from tgis_server.wire.messages import LengthPenalty, SamplingParams
from tiny import Driver, Job, Model, prompt_of

EOS_ID = 2  # of every tiny checkpoint
HOT = SamplingParams(temperature=4.0)
EVERYTHING = SamplingParams(
    temperature=5.0,
    top_k=60,
    top_p=0.9,
    typical_p=0.8,
    repetition_penalty=1.3,
    length_penalty=LengthPenalty(2, 1.5),
    min_new_tokens=5,
)
SEEDED = {
    "smallest-seed": (0, HOT),
    "largest-seed": (2**64 - 1, HOT),
    "another-upper-half": (2**32, HOT),
    "everything": (2**63 + 5, EVERYTHING),
}


def assert_tokens_follow_from_the_seed(job: Job, model: Model) -> None:
    logits = model.oracle.logits(job.prompt + job.generated)[len(job.prompt) - 1 :].numpy()
    for index, token_id in enumerate(job.generated):
        seen = job.prompt + job.generated[:index]
        result = reference.process(logits[index], seen, index, job.sampling, [EOS_ID])
        expected = reference.choose(result, job.sampling, job.seed, index)
        assert token_id == expected or not result.is_clear, f"token {index}"


@pytest.mark.parametrize("num_shard", [1, 2])
def test_tokens_follow_from_the_seed(
    num_shard: int, model: Callable[..., Model], shards: Callable[..., tuple[Driver, list[Any]]]
) -> None:
    tiny = model("llama")
    driver, _ = shards(tiny, num_shard)
    jobs = [Job(prompt_of(12, 1), 20, sampling, seed=seed, chunk=5) for seed, sampling in SEEDED.values()]

    driver.run(jobs, start_every=2)

    for job in jobs:
        assert_tokens_follow_from_the_seed(job, tiny)
    assert len({tuple(job.generated) for job in jobs}) == len(jobs)
