"""NaN and infinity affect only the request that computes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tgis_server.wire.messages import LengthPenalty, SamplingParams, StepTokens, Wanted
from tiny import Driver, Job, load, make_checkpoint, prompt_of

POISON = 7  # a token with a damaged embedding
SAMPLERS = {
    "greedy": SamplingParams(),
    "temperature": SamplingParams(temperature=0.7),
    "top_k": SamplingParams(temperature=1.0, top_k=5),
    "top_p": SamplingParams(temperature=1.0, top_p=0.9),
    "typical_p": SamplingParams(temperature=1.0, typical_p=0.5),
    "repetition_penalty": SamplingParams(repetition_penalty=1.3),
    "end": SamplingParams(min_new_tokens=3, length_penalty=LengthPenalty(1, 1.1)),
}


class Watched(Driver):
    """Records the slots that computed NaN or infinity."""

    def __init__(self, runner: object) -> None:
        super().__init__(runner)
        self.broken: set[int] = set()

    def _commit(self, jobs: list[Job], computed: dict[int, int], plan: object, tokens: StepTokens) -> None:
        self.broken |= {plan.slots[row] for row in tokens.not_finite}  # type: ignore[attr-defined]
        super()._commit(jobs, computed, plan, tokens)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=[float("nan"), float("inf"), float("-inf")])
def damaged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with one embedding that is not finite."""
    directory = make_checkpoint(tmp_path_factory.mktemp("damaged"), "llama")
    weights = load_file(directory / "model.safetensors")
    weights["model.embed_tokens.weight"][POISON, 3] = request.param
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def healthy(length: int, seed: int) -> list[int]:
    return [token if token != POISON else 8 for token in prompt_of(length, seed)]


@pytest.mark.parametrize("name", SAMPLERS)
def test_only_rows_with_non_finite_values_are_reported(damaged: Path, tmp_path: Path, name: str) -> None:
    runner = load(damaged, tmp_path)
    sampling, wanted = SAMPLERS[name], Wanted(logprobs=True, ranks=True, top_n=2, generated_tokens=True)
    bad = [*healthy(9, 2), POISON, *healthy(11, 3)]
    prompts = [healthy(12, 1), healthy(30, 4)]
    alone = [Watched(runner).run([Job(prompt, 6, sampling, wanted)])[0] for prompt in prompts]

    driver = Watched(runner)
    together = driver.run([Job(prompt, 6, sampling, wanted, chunk=8) for prompt in (prompts[0], bad, prompts[1])])

    assert driver.broken == {1}
    assert [together[0], together[2]] == alone


@pytest.mark.parametrize("chunk", [8, 1])
def test_chunks_without_logits_are_checked_too(damaged: Path, tmp_path: Path, chunk: int) -> None:
    driver = Watched(load(damaged, tmp_path))
    plans: list[set[int]] = []
    job = Job([*healthy(3, 1), POISON, *healthy(30, 2)], 1, chunk=chunk)
    commit = driver._commit

    def note(*arguments: object) -> None:
        commit(*arguments)  # type: ignore[arg-type]
        plans.append(set(driver.broken))

    driver._commit = note  # type: ignore[method-assign,assignment]
    driver.run([job])

    assert plans[3 // chunk] == {0}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("rest", [float("nan"), float("inf"), float("-inf")])
def test_former_contents_of_blocks_affect_no_sequence(
    model: Callable[..., object], tmp_path: Path, dtype: str, rest: float
) -> None:
    """The rows have different lengths, so that some are padded and some end within a block."""
    directory = model("llama").directory  # type: ignore[attr-defined]
    jobs = [(healthy(length, length), chunk) for length, chunk in ((3, 99), (30, 8), (61, 7), (90, 99), (17, 1))]
    runs = []
    for value in (0.0, rest):
        runner = load(directory, tmp_path, dtype=dtype)
        with torch.inference_mode():
            for layer in runner._cache.layers:
                layer.fill_(value)
        driver = Watched(runner)
        runs.append(driver.run([Job(prompt, 12, chunk=chunk) for prompt, chunk in jobs]))
        assert driver.broken == set()

    assert runs[0] == runs[1]


@pytest.mark.parametrize("wanted", [Wanted(logprobs=True, input_tokens=True)])
def test_prompt_details_that_are_not_finite_are_reported(damaged: Path, tmp_path: Path, wanted: Wanted) -> None:
    driver = Watched(load(damaged, tmp_path))

    driver.run([Job(healthy(5, 1), 2, wanted=wanted), Job([3, POISON, 4], 2, wanted=wanted)])

    assert driver.broken == {1}
