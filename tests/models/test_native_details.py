"""Log probabilities, ranks and alternatives of generated and prompt tokens, checked with transformers' logits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tgis_server.wire.messages import SamplingParams, TokenDetail, Wanted
from tiny import Driver, Job, Model, prompt_of

EVERYTHING = Wanted(logprobs=True, ranks=True, top_n=4, generated_tokens=True, input_tokens=True)


def assert_detail_matches(detail: TokenDetail, logits: torch.Tensor, token_id: int, top_n: int) -> None:
    logprobs = logits.log_softmax(-1)
    best = logprobs.topk(top_n)
    assert detail.logprob == pytest.approx(float(logprobs[token_id]), abs=1e-4)
    assert detail.rank == 1 + int((logits > logits[token_id]).sum())
    assert detail.top_ids == tuple(best.indices.tolist())
    assert detail.top_logprobs == pytest.approx(best.values.tolist(), abs=1e-4)


@pytest.mark.parametrize("chunk", [1 << 30, 7, 1])
def test_details_of_generated_and_prompt_tokens_match_the_logits(
    chunk: int, model: Callable[..., Model], driver: Callable[..., Driver]
) -> None:
    tiny = model("llama")
    job = Job(prompt_of(17, 1), 8, wanted=EVERYTHING, chunk=chunk)

    driver(tiny).run([job, Job(prompt_of(9, 2), 8)])

    logits = tiny.oracle.logits(job.prompt + job.generated)
    assert len(job.prompt_details) == 16
    assert len(job.token_details) == 8
    for position, detail in enumerate(job.prompt_details):
        assert_detail_matches(detail, logits[position], job.prompt[position + 1], 4)
    for index, detail in enumerate(job.token_details):
        assert_detail_matches(detail, logits[16 + index], job.generated[index], 4)


def test_prompt_details_ignore_sampling_parameters(model: Callable[..., Model], driver: Callable[..., Driver]) -> None:
    tiny = model("llama")
    sampling = SamplingParams(temperature=0.5, top_k=2, repetition_penalty=2.0)
    job = Job(prompt_of(17, 1), 2, wanted=EVERYTHING, sampling=sampling)

    driver(tiny).run([job])

    logits = tiny.oracle.logits(job.prompt)
    for position, detail in enumerate(job.prompt_details):
        assert_detail_matches(detail, logits[position], job.prompt[position + 1], 4)


def test_only_the_wanted_details_are_computed(model: Callable[..., Model], driver: Callable[..., Driver]) -> None:
    jobs = [
        Job(prompt_of(5, 1), 2),
        Job(prompt_of(5, 1), 2, wanted=Wanted(ranks=True, generated_tokens=True)),
        Job(prompt_of(5, 1), 2, wanted=Wanted(logprobs=True, input_tokens=True)),
        Job(prompt_of(5, 1), 2, wanted=Wanted(input_tokens=True, generated_tokens=True)),
    ]

    driver(model("llama")).run(jobs)

    assert [len(job.token_details) for job in jobs] == [0, 2, 0, 0]
    assert [len(job.prompt_details) for job in jobs] == [0, 0, 4, 0]
    assert jobs[1].token_details[0] == TokenDetail(rank=1)
    assert jobs[2].prompt_details[0].rank == 0


def test_a_resumed_sequence_has_details_of_its_prompt_and_new_tokens(
    model: Callable[..., Model], driver: Callable[..., Driver]
) -> None:
    tiny = model("llama")
    whole = Job(prompt_of(12, 3), 10, wanted=EVERYTHING)
    driver(tiny).run([whole])
    resumed = Job(prompt_of(12, 3), 10, wanted=EVERYTHING, generated=whole.generated[:4])

    driver(tiny).run([resumed])

    logits = tiny.oracle.logits(resumed.prompt + resumed.generated)
    assert len(resumed.prompt_details) == 11
    assert len(resumed.token_details) == 6
    for position, detail in enumerate(resumed.prompt_details):
        assert_detail_matches(detail, logits[position], resumed.prompt[position + 1], 4)
    for index, detail in enumerate(resumed.token_details, start=4):
        assert_detail_matches(detail, logits[11 + index], resumed.generated[index], 4)


def test_details_of_long_prompts_are_computed_in_batches(
    model: Callable[..., Model], driver: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tgis_server.engines.native.runner.MAX_PROMPT_LOGITS_BYTES", 4 * 211 * 5)
    tiny = model("llama")
    job = Job(prompt_of(33, 4), 1, wanted=EVERYTHING)

    driver(tiny).run([job])

    logits = tiny.oracle.logits(job.prompt)
    assert len(job.prompt_details) == 32
    for position, detail in enumerate(job.prompt_details):
        assert_detail_matches(detail, logits[position], job.prompt[position + 1], 4)
