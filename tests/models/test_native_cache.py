"""Paged keys and values: shared prefixes, resumed sequences, reused blocks and slots."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tgis_server.wire.messages import NewSequence, SamplingParams, StepPlan, StepTokens, Wanted, pack_ids
from tiny import Driver, Job, Model, assert_same_tokens, prompt_of, run_step


def test_a_cached_prefix_does_not_change_tokens(model: Callable[..., Model], driver: Callable[..., Driver]) -> None:
    tiny = model("qwen2")
    started = driver(tiny)
    shared = prompt_of(32, 1)  # four blocks of eight
    first = Job(shared + prompt_of(5, 2), 8)
    started.run([first])
    prompts = [shared + prompt_of(9, 3), shared + prompt_of(1, 4)]

    ours = started.run([Job(prompt, 16, cached_blocks=first.blocks[:4]) for prompt in prompts])

    for prompt, generated in zip(prompts, ours, strict=True):
        assert_same_tokens(tiny.oracle, prompt, generated, tiny.expected(prompt, 16))


def test_a_cached_prefix_does_not_change_tokens_with_a_window(
    model: Callable[..., Model], driver: Callable[..., Driver]
) -> None:
    tiny = model("mistral", sliding_window=12)
    started = driver(tiny)
    shared = prompt_of(32, 1)
    first = Job(shared + prompt_of(5, 2), 8)
    started.run([first])
    prompt = shared + prompt_of(30, 3)

    ours = started.run([Job(prompt, 16, cached_blocks=first.blocks[:4], chunk=11)])[0]

    assert_same_tokens(tiny.oracle, prompt, ours, tiny.expected(prompt, 16))


def test_a_preempted_sequence_resumes_where_it_stopped(
    model: Callable[..., Model], driver: Callable[..., Driver]
) -> None:
    tiny = model("llama")
    prompt = prompt_of(21, 5)
    expected = tiny.expected(prompt, 20)

    ours = driver(tiny).run([Job(prompt, 20, generated=expected[:9], chunk=8)])[0]

    assert_same_tokens(tiny.oracle, prompt, ours, expected)


def test_blocks_and_slots_are_reused(model: Callable[..., Model], driver: Callable[..., Driver]) -> None:
    tiny = model("llama")
    started = driver(tiny, kv_block_size=16, kv_cache_memory=20 * 16 * 3 * 2 * 2 * 16 * 4)
    assert started.runner.capacity.num_blocks == 20
    for seed in range(6):
        prompt = prompt_of(50, seed)
        job = Job(prompt, 10)

        ours = started.run([job, Job(prompt_of(20, seed + 10), 4)])[0]

        started.free_blocks = list(range(20))
        assert_same_tokens(tiny.oracle, prompt, ours, tiny.expected(prompt, 10))


def test_a_plan_beyond_slots_or_block_tables_fails_with_the_name_of_the_field(
    model: Callable[..., Model], driver: Callable[..., Driver]
) -> None:
    runner = driver(model("llama"), max_batch_size=4).runner

    def new(slot: int) -> NewSequence:
        return NewSequence(slot, pack_ids([5]), 1, 0, SamplingParams(), Wanted())

    with pytest.raises(AssertionError, match=r"StepPlan\.new: slot 4, but only 4 exist"):
        runner.launch(StepPlan(0, [new(4)], [4], [1], [[0]], [True]))
    with pytest.raises(AssertionError, match=r"StepPlan\.new_blocks: 33 blocks in slot 0, at most 32 fit"):
        runner.launch(StepPlan(0, [new(0)], [0], [1], [list(range(33))], [True]))


def test_a_plan_without_rows_does_nothing(model: Callable[..., Model], driver: Callable[..., Driver]) -> None:
    runner = driver(model("llama")).runner

    assert run_step(runner, StepPlan(0)) == StepTokens([])
