"""The native engine on CUDA: results as on the CPU, no waiting for the device, and two steps in flight."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tgis_server.wire.messages import (  # noqa: E402
    LengthPenalty,
    NewSequence,
    SamplingParams,
    StepPlan,
    Wanted,
    pack_ids,
)
from tiny import Driver, Job, prompt_of, run_step, start_step  # noqa: E402

NOTHING = Wanted()
EVERYTHING = Wanted(logprobs=True, ranks=True, top_n=3, generated_tokens=True, input_tokens=True)
SAMPLED = SamplingParams(temperature=1.2, top_k=40, top_p=0.9, typical_p=0.95, repetition_penalty=1.3)

MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "mistral-window": {"model_type": "mistral", "sliding_window": 12},
    "qwen3": {"model_type": "qwen3", "head_dim": 32},
    "granite": {"model_type": "granite", "embedding_multiplier": 3.0, "logits_scaling": 2.0},
    "phi3": {"model_type": "phi3"},
    "bloom": {"model_type": "bloom"},
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 16,
        "sliding_window": 12,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 8.0,
    },
    "gpt2": {"model_type": "gpt2", "tie_word_embeddings": True},
    "gpt-neox": {"model_type": "gpt_neox"},
    "phi": {"model_type": "phi", "qk_layernorm": True},
}
WAYS_TO_ATTEND = ("llama", "mistral-window", "bloom", "gemma2")  # each plans and computes attention differently


@contextmanager
def no_waiting() -> Iterator[None]:
    """Within this block, an operation that makes the host wait for the device raises an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("chunk", [1 << 30, 7], ids=["whole", "chunks of 7"])
def test_cuda_and_the_cpu_generate_the_same_tokens(
    name: str, chunk: int, checkpoint: Callable[..., Path], driver: Callable[..., Driver]
) -> None:
    directory = checkpoint(**MODELS[name])
    prompts = [prompt_of(length, seed=length) for length in (5, 40, 23)]
    jobs = [[Job(prompt, 12, chunk=chunk, wanted=EVERYTHING) for prompt in prompts] for _ in range(2)]

    ours = driver(directory).run(jobs[0], start_every=2)
    theirs = driver(directory, device="cpu").run(jobs[1], start_every=2)

    assert ours == theirs
    for one, other in zip(jobs[0], jobs[1], strict=True):
        pairs = zip(one.prompt_details + one.token_details, other.prompt_details + other.token_details, strict=True)
        for cuda, cpu in pairs:
            assert cuda.logprob == pytest.approx(cpu.logprob, abs=1e-3)
            assert cuda.rank == cpu.rank


def test_sampling_gives_the_same_tokens_on_both_devices(
    checkpoint: Callable[..., Path], driver: Callable[..., Driver]
) -> None:
    directory = checkpoint("llama")
    jobs = [Job(prompt_of(12, 1), 20, sampling=SAMPLED) for _ in range(2)]

    driver(directory).run([jobs[0]])
    driver(directory, device="cpu").run([jobs[1]])

    assert jobs[0].generated == jobs[1].generated


def mixed_jobs() -> list[Job]:
    """Jobs with all processors and token details, in one batch."""
    params = [
        SamplingParams(),
        SAMPLED,
        SamplingParams(repetition_penalty=1.5),
        SamplingParams(min_new_tokens=30),
        SamplingParams(length_penalty=LengthPenalty(start_index=0, decay_factor=1.01)),
        SamplingParams(temperature=0.7),
    ]
    return [
        Job(prompt_of(6 + i, i), 20, sampling=param, seed=3 + i, wanted=EVERYTHING if i % 2 else NOTHING)
        for i, param in enumerate(params)
    ]


def prefill(runner: Any, jobs: list[Job], blocks_each: int) -> list[list[int]]:
    """Start all jobs in one step; job i owns ``blocks_each`` blocks. Returns their first tokens."""
    new = [
        NewSequence(i, pack_ids(job.prompt), len(job.prompt), 0, job.sampling, job.wanted, job.seed, job.end_ids)
        for i, job in enumerate(jobs)
    ]
    tables = [list(range(i * blocks_each, (i + 1) * blocks_each)) for i in range(len(jobs))]
    counts = [len(job.prompt) for job in jobs]
    plan = StepPlan(0, new, list(range(len(jobs))), counts, tables, [True] * len(jobs))
    return [list(ids) for ids in run_step(runner, plan).token_ids]


def decode_plan(step: int, num_rows: int) -> StepPlan:
    return StepPlan(step, [], list(range(num_rows)), [1] * num_rows, [[] for _ in range(num_rows)], [True] * num_rows)


@pytest.mark.parametrize("name", WAYS_TO_ATTEND)
def test_a_decode_step_never_waits_for_the_device(
    name: str, checkpoint: Callable[..., Path], driver: Callable[..., Driver]
) -> None:
    runner = driver(checkpoint(**MODELS[name])).runner
    jobs = mixed_jobs()
    prefill(runner, jobs, blocks_each=8)
    run_step(runner, decode_plan(1, len(jobs)))  # the first step may allocate memory

    with no_waiting():
        launched = [start_step(runner, decode_plan(step, len(jobs))) for step in (2, 3)]

    assert [len(runner.collect(step).token_ids) for step in launched] == [len(jobs)] * 2


@pytest.mark.parametrize("name", WAYS_TO_ATTEND)
def test_a_prefill_step_never_waits_for_the_device(
    name: str, checkpoint: Callable[..., Path], driver: Callable[..., Driver]
) -> None:
    runner = driver(checkpoint(**MODELS[name])).runner
    prefill(runner, mixed_jobs(), blocks_each=8)
    jobs = mixed_jobs()
    new = [
        NewSequence(i, pack_ids(job.prompt), len(job.prompt), 0, job.sampling, job.wanted, job.seed, job.end_ids)
        for i, job in enumerate(jobs)
    ]
    tables = [list(range(i * 8, (i + 1) * 8)) for i in range(len(jobs))]
    rows = list(range(len(jobs)))
    plan = StepPlan(1, new, rows, [len(job.prompt) for job in jobs], tables, [True] * len(jobs), rows)

    with no_waiting():
        launched = start_step(runner, plan)

    assert len(runner.collect(launched).token_ids) == len(jobs)


def test_two_steps_in_flight_give_the_same_tokens(
    checkpoint: Callable[..., Path], driver: Callable[..., Driver]
) -> None:
    directory = checkpoint("llama")
    expected = driver(directory).run(mixed_jobs())
    runner = driver(directory).runner
    jobs = mixed_jobs()
    generated = prefill(runner, jobs, blocks_each=8)

    in_flight: deque[Any] = deque()
    for step in range(1, 20):
        in_flight.append(start_step(runner, decode_plan(step, len(jobs))))
        if len(in_flight) == 2:
            for ids, new in zip(generated, runner.collect(in_flight.popleft()).token_ids, strict=True):
                ids.extend(new)
    for ids, new in zip(generated, runner.collect(in_flight.popleft()).token_ids, strict=True):
        ids.extend(new)

    assert generated == expected


def test_the_runner_can_plan_ahead_on_cuda(checkpoint: Callable[..., Path], driver: Callable[..., Driver]) -> None:
    assert driver(checkpoint("llama")).runner.caps.plan_ahead


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_logprobs_are_close_to_float32(
    dtype: str, checkpoint: Callable[..., Path], driver: Callable[..., Driver]
) -> None:
    directory = checkpoint("qwen3", head_dim=32)
    jobs = [Job(prompt_of(40, 1), 8, wanted=EVERYTHING, chunk=16) for _ in range(2)]

    driver(directory, dtype=dtype).run([jobs[0]])
    driver(directory, dtype="float32").run([jobs[1]])

    gaps = [abs(a.logprob - b.logprob) for a, b in zip(jobs[0].prompt_details, jobs[1].prompt_details, strict=True)]
    assert sum(gaps) / len(gaps) < 0.5
