"""Rotary variants generate the same tokens as transformers on both sides of their borders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tiny import Driver, Job, Model, assert_same_tokens, edit_config, load, make_checkpoint, prompt_of

SHORT = [1.0 + 0.05 * i for i in range(8)]
LONG = [1.5 + 0.6 * i for i in range(8)]

ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 500.0},
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
        "rope_theta": 10000.0,
    },
    "yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "rope_theta": 10000.0,
        "beta_fast": 16.0,
    },
    "yarn-mscale": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "rope_theta": 10000.0,
        "mscale": 1.2,
        "mscale_all_dim": 0.7,
        "truncate": False,
    },
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "short_factor": SHORT,
        "long_factor": LONG,
        "original_max_position_embeddings": 64,
        "rope_theta": 10000.0,
    },
}


@pytest.mark.parametrize("name", ROPES)
def test_every_kind_of_rope_generates_the_same_tokens_as_transformers(
    name: str, model: Callable[..., Model], driver: Callable[..., Driver]
) -> None:
    tiny = model("llama", rope_parameters=ROPES[name])
    prompts = [prompt_of(70, 1), prompt_of(110, 2)]  # beyond the original 64 of longrope

    ours = driver(tiny).run([Job(prompt, 24, chunk=48) for prompt in prompts])

    for prompt, generated in zip(prompts, ours, strict=True):
        assert_same_tokens(tiny.oracle, prompt, generated, tiny.expected(prompt, 24))


def test_longrope_uses_short_factors_if_no_sequence_can_be_long(
    model: Callable[..., Model], driver: Callable[..., Driver]
) -> None:
    tiny = model("llama", rope_parameters=ROPES["longrope"])
    prompt = prompt_of(30, 3)

    started = driver(tiny, max_sequence_length=64)
    ours = started.run([Job(prompt, 24)])[0]

    assert_same_tokens(tiny.oracle, prompt, ours, tiny.expected(prompt, 24))
    assert started.runner.facts.notes == ()


@pytest.mark.parametrize(("length", "max_sequence_length"), [(40, 64), (90, 256)], ids=["short", "long"])
def test_phi3_with_longrope_and_partial_rotation_generates_the_same_tokens_as_transformers(
    length: int, max_sequence_length: int, model: Callable[..., Model], driver: Callable[..., Driver]
) -> None:
    tiny = model(
        "phi3",
        original_max_position_embeddings=64,
        rope_parameters={
            "rope_type": "longrope",
            "short_factor": SHORT[:6],
            "long_factor": LONG[:6],
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.75,
        },
    )
    prompt = prompt_of(length, 4)

    ours = driver(tiny, max_sequence_length=max_sequence_length).run([Job(prompt, 20, chunk=33)])[0]

    assert_same_tokens(tiny.oracle, prompt, ours, tiny.expected(prompt, 20))


def test_dynamic_scaling_beyond_the_models_length_equals_token_by_token_generation(
    model: Callable[..., Model], driver: Callable[..., Driver]
) -> None:
    """The output crosses that length. Each new token is rotated for the length of the sequence that ends with it."""
    tiny = model("llama", max_position_embeddings=48, rope_parameters=ROPES["dynamic"])
    prompt = prompt_of(40, 5)

    ours = driver(tiny, max_sequence_length=128).run([Job(prompt, 40)])[0]

    assert_same_tokens(tiny.oracle, prompt, ours, tiny.expected(prompt, 40))


def test_dynamic_scaling_does_not_depend_on_chunks(model: Callable[..., Model], driver: Callable[..., Driver]) -> None:
    tiny = model("llama", max_position_embeddings=48, rope_parameters=ROPES["dynamic"])
    prompt = prompt_of(100, 6)

    whole, cut = (driver(tiny, max_sequence_length=160).run([Job(prompt, 20, chunk=chunk)])[0] for chunk in (128, 13))

    assert whole == cut


def test_the_older_spelling_of_rope_is_equivalent(tmp_path, model: Callable[..., Model]) -> None:
    tiny = model("llama", rope_parameters=ROPES["llama3"])
    older = make_checkpoint(tmp_path / "older", "llama", rope_parameters=ROPES["llama3"])
    scaling = {key: value for key, value in ROPES["llama3"].items() if key not in ("rope_theta", "rope_type")}
    edit_config(older, rope_parameters=None, rope_theta=10000.0, rope_scaling={"type": "llama3", **scaling})
    prompt = prompt_of(60, 7)

    ours = Driver(load(older, tmp_path)).run([Job(prompt, 16)])[0]

    assert_same_tokens(tiny.oracle, prompt, ours, tiny.expected(prompt, 16))
