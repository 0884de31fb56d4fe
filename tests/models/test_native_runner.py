"""The runner's contract: steps that can be repeated after failures, sampling in slots, dtypes, and loading errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from tgis_server.engines.native import loading
from tgis_server.engines.native.runner import NativeRunner, is_out_of_memory
from tgis_server.errors import NotEnoughDevices, OutOfMemory
from tgis_server.wire.messages import LengthPenalty, NewSequence, SamplingParams, StepPlan, Wanted, pack_ids
from tiny import Driver, Job, Model, assert_same_tokens, load, prompt_of, run_step, start_step

GREEDY, NOTHING = SamplingParams(), Wanted()


# Running out of memory


class Failing:
    """Wraps a method so that its first call fails, before or after the method has run."""

    def __init__(self, method: Callable[..., Any], error: Exception, *, is_before: bool = False) -> None:
        self.method = method
        self.error: Exception | None = error
        self.is_before = is_before

    def __call__(self, *args: Any) -> Any:
        error, self.error = self.error, None
        if error is not None and self.is_before:
            raise error
        result = self.method(*args)
        if error is not None:
            raise error
        return result


@pytest.mark.parametrize("where", ["forward", "sample", "note"])  # in both halves of a step
def test_a_step_that_runs_out_of_memory_can_be_repeated(
    where: str, model: Callable[..., Model], driver: Callable[..., Driver]
) -> None:
    tiny = model("llama")
    penalized = SamplingParams(repetition_penalty=1.7)
    expected = driver(tiny).run([Job(prompt_of(9, 1), 12, sampling=penalized)])[0]
    runner: NativeRunner = driver(tiny).runner
    error = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
    owner = runner._decoder if where == "forward" else runner._sampler
    new = NewSequence(3, pack_ids(prompt_of(9, 1)), 9, 0, penalized, NOTHING)
    tokens: list[int] = []

    def step(plan: StepPlan) -> None:
        tokens.extend(run_step(runner, plan).token_ids[0])

    def fail_once() -> None:
        setattr(owner, where, Failing(getattr(owner, where), error, is_before=where == "note"))

    fail_once()
    with pytest.raises(OutOfMemory):
        step(StepPlan(0, [new], [3], [9], [[4, 5, 6]], [True]))
    step(StepPlan(1, [], [3], [9], [[]], [True]))
    for i in range(11):
        fail_once()
        with pytest.raises(OutOfMemory):
            step(StepPlan(2 * i, [], [3], [1], [[]], [True]))
        step(StepPlan(2 * i + 1, [], [3], [1], [[]], [True]))

    assert tokens == expected


def test_other_errors_are_not_caught(model: Callable[..., Model], driver: Callable[..., Driver]) -> None:
    runner = driver(model("llama")).runner
    runner._decoder.forward = Failing(runner._decoder.forward, RuntimeError("shapes do not match"))

    with pytest.raises(RuntimeError, match="shapes"):
        runner.launch(StepPlan(0, [NewSequence(0, pack_ids([5]), 1, 0, GREEDY, NOTHING)], [0], [1], [[0]], [True]))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: not enough memory"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("could not create a primitive descriptor for the matmul primitive"), False),
        (RuntimeError("size mismatch"), False),
    ],
)
def test_allocation_failures_are_recognized(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


# Sampling in slots


def test_repetition_penalty_generates_the_same_tokens_as_transformers(
    model: Callable[..., Model], driver: Callable[..., Driver]
) -> None:
    tiny = model("llama")
    prompt = prompt_of(12, 1)
    out = tiny.oracle.model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, 12, dtype=torch.int64),
        max_new_tokens=30,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        logits_processor=LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.8)]),
    )
    job = Job(prompt, 30, sampling=SamplingParams(repetition_penalty=1.8))

    driver(tiny).run([job, Job(prompt_of(5, 2), 30), Job(prompt_of(7, 3), 30)], start_every=3)

    assert job.generated == out[0, 12:].tolist()


SEED = 2**63 + 5
SAMPLED = SamplingParams(temperature=1.3, top_k=50, top_p=0.9, typical_p=0.95, repetition_penalty=1.2, min_new_tokens=4)


def test_a_seed_gives_the_same_tokens_in_any_batch(model: Callable[..., Model], driver: Callable[..., Driver]) -> None:
    tiny = model("llama")
    alone, together = (
        Job(prompt_of(12, 1), 25, sampling=SAMPLED, seed=SEED),
        Job(prompt_of(12, 1), 25, sampling=SAMPLED, seed=SEED, chunk=5),
    )

    driver(tiny).run([alone])
    driver(tiny).run(
        [Job(prompt_of(30, 2), 25), together, Job(prompt_of(3, 3), 25, sampling=SAMPLED, seed=SEED)], start_every=2
    )

    assert together.generated == alone.generated


def test_a_preempted_sampled_sequence_resumes_with_the_same_draws(
    model: Callable[..., Model], driver: Callable[..., Driver]
) -> None:
    tiny = model("llama")
    whole = Job(prompt_of(12, 1), 25, sampling=SAMPLED, seed=SEED)
    driver(tiny).run([whole])
    resumed = Job(prompt_of(12, 1), 25, sampling=SAMPLED, seed=SEED, generated=whole.generated[:11])

    driver(tiny).run([resumed])

    assert resumed.generated == whole.generated


def test_the_end_token_is_masked_until_min_new_tokens_and_raised_afterwards(
    model: Callable[..., Model], driver: Callable[..., Driver]
) -> None:
    eos = 2
    penalty = LengthPenalty(start_index=0, decay_factor=10.0)
    job = Job(prompt_of(12, 1), 12, sampling=SamplingParams(min_new_tokens=9, length_penalty=penalty))

    driver(model("llama")).run([job])

    assert job.generated.index(eos) == 9


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_step_can_start_before_the_previous_one_is_collected(
    sampling: SamplingParams, model: Callable[..., Model], driver: Callable[..., Driver]
) -> None:
    """As on CUDA, two steps are in flight, so the host does not know the newest token."""
    tiny = model("llama")
    expected = driver(tiny).run([Job(prompt_of(9, 1), 12, sampling=sampling)])[0]
    runner = driver(tiny).runner
    new = NewSequence(0, pack_ids(prompt_of(9, 1)), 9, 0, sampling, NOTHING)

    steps = [start_step(runner, StepPlan(0, [new], [0], [9], [[4, 5, 6]], [True]))]
    steps += [start_step(runner, StepPlan(i, [], [0], [1], [[]], [True])) for i in range(1, 12)]

    assert [runner.collect(step).token_ids for step in steps] == [[[token_id]] for token_id in expected]


# Number formats


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.4), ("float16", 0.05)])
def test_half_precision_logprobs_are_close_to_the_oracle(
    dtype: str, tolerance: float, model: Callable[..., Model], driver: Callable[..., Driver]
) -> None:
    tiny = model("qwen3", head_dim=32)
    job = Job(prompt_of(40, 1), 8, wanted=Wanted(logprobs=True, generated_tokens=True, input_tokens=True), chunk=16)

    driver(tiny, dtype=dtype).run([job])

    logprobs = tiny.oracle.logits(job.prompt + job.generated).log_softmax(-1)
    following = job.prompt[1:] + job.generated
    ours = torch.tensor([detail.logprob for detail in job.prompt_details + job.token_details])
    theirs = logprobs[torch.arange(len(following)), torch.tensor(following)]
    assert float((ours - theirs).abs().mean()) < tolerance


# Loading


def test_loading_reports_the_bytes_read(model: Callable[..., Model], tmp_path: Path) -> None:
    from tiny import make_run

    reports: list[tuple[str, int, int]] = []
    runner = NativeRunner.load(make_run(model("llama").directory, tmp_path), 0, lambda *report: reports.append(report))

    read = [(done, total) for phase, done, total in reports if phase == "reading weights" and total]
    assert read == sorted(read)
    assert read[-1] == (runner.facts.weight_bytes, runner.facts.weight_bytes)


def test_weights_that_cannot_fit_are_refused_before_reading(
    model: Callable[..., Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading.cgroup, "available_bytes", lambda: 300_000)

    with pytest.raises(NotEnoughDevices, match=r"llama.* in float32 needs .*but only 293 KiB is free"):
        load(model("llama").directory, tmp_path)


def test_an_inferred_length_is_lowered_until_it_fits(
    model: Callable[..., Model], driver: Callable[..., Driver]
) -> None:
    started = driver(
        model("llama"),
        max_sequence_length=100_000,
        is_max_sequence_length_explicit=False,
        kv_block_size=16,
        kv_cache_memory=160 * 3 * 2 * 2 * 16 * 4,
    )

    assert started.runner.capacity.max_sequence_length == 160
    assert "lowered from 100000 to 160" in started.runner.facts.notes[0]


def test_an_explicit_length_that_does_not_fit_is_refused(
    model: Callable[..., Model], driver: Callable[..., Driver]
) -> None:
    with pytest.raises(NotEnoughDevices, match="--max-sequence-length 160"):
        driver(model("llama"), max_sequence_length=100_000, kv_block_size=16, kv_cache_memory=160 * 3 * 2 * 2 * 16 * 4)


def test_prepacking_does_not_change_tokens(
    model: Callable[..., Model], driver: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tgis_server.engines.native.ops import reference

    monkeypatch.setattr(reference, "can_prepack", lambda dtype: False)
    tiny = model("llama")
    prompt = prompt_of(20, 1)

    ours = driver(tiny).run([Job(prompt, 12)])[0]

    assert_same_tokens(tiny.oracle, prompt, ours, tiny.expected(prompt, 12))
