"""Tensor parallelism with real processes: the same tokens, divided weights, one capacity, and lost peers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shard_worker import Followers
from tgis_server.engines.native.runner import NativeRunner
from tgis_server.errors import PeerLost
from tgis_server.wire.messages import NewSequence, SamplingParams, StepPlan, Wanted, pack_ids
from tiny import Driver, Job, Model, assert_same_tokens, make_run, no_progress, prompt_of

Shards = Callable[..., tuple[Driver, list[Any]]]

MODELS: dict[str, dict[str, Any]] = {
    "llama-tied": {"model_type": "llama", "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    "mistral-window": {"model_type": "mistral", "sliding_window": 12},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 32},
    "granite": {
        "model_type": "granite",
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.0,
        "residual_multiplier": 0.5,
    },
    "bloom": {"model_type": "bloom"},
    "codegen": {"model_type": "codegen", "rotary_dim": 8},
    "cohere": {"model_type": "cohere", "use_qk_norm": True},
    "exaone4": {"model_type": "exaone4", "sliding_window": 9, "sliding_window_pattern": 2},
    "falcon": {"model_type": "falcon", "num_attention_heads": 4},
    "falcon-new": {"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
    "falcon-alibi": {"model_type": "falcon", "alibi": True, "multi_query": False, "parallel_attn": False},
    "gpt-bigcode": {"model_type": "gpt_bigcode"},
    "gptj": {"model_type": "gptj", "rotary_dim": 8},
    "nemotron": {"model_type": "nemotron", "attention_bias": True, "mlp_bias": True},
    "olmo": {"model_type": "olmo", "clip_qkv": 0.7},
    "mpt": {"model_type": "mpt"},
    "opt": {"model_type": "opt", "ffn_dim": 96},
    "gpt2": {"model_type": "gpt2", "tie_word_embeddings": True},
    "gpt-neox": {"model_type": "gpt_neox"},
    "phi": {"model_type": "phi", "qk_layernorm": True},
    "phi3": {"model_type": "phi3"},
    "gpt-oss": {"model_type": "gpt_oss", "num_local_experts": 6, "head_dim": 16, "sliding_window": 9},
    "gemma3": {"model_type": "gemma3_text", "head_dim": 16, "sliding_window": 12, "sliding_window_pattern": 3},
    "olmo2": {"model_type": "olmo2"},
    "olmoe": {"model_type": "olmoe", "num_experts": 6, "num_experts_per_tok": 3},
    "stablelm": {"model_type": "stablelm", "qk_layernorm": True},
    "qwen2-moe": {
        "model_type": "qwen2_moe",
        "num_experts": 6,
        "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 80,
    },
    "ernie4-5-moe": {
        "model_type": "ernie4_5_moe",
        "moe_num_experts": 6,
        "moe_k": 2,
        "moe_intermediate_size": 48,
        "use_bias": True,
    },
    "granitemoeshared": {"model_type": "granitemoeshared", "num_local_experts": 6, "shared_intermediate_size": 80},
}


@pytest.mark.parametrize("name", MODELS)
def test_two_shards_generate_the_same_tokens_as_transformers(
    name: str, model: Callable[..., Model], shards: Shards
) -> None:
    tiny = model(**MODELS[name])
    driver, _ = shards(tiny, 2)
    prompts = [prompt_of(length, seed=length) for length in (5, 40)]

    ours = driver.run([Job(prompt, 12, chunk=16) for prompt in prompts], start_every=1)

    for prompt, generated in zip(prompts, ours, strict=True):
        assert_same_tokens(tiny.oracle, prompt, generated, tiny.expected(prompt, 12))


@pytest.mark.parametrize("model_type", ["llama", "olmo2"])
def test_more_shards_than_kv_heads_generate_the_same_tokens_as_transformers(
    model_type: str, model: Callable[..., Model], shards: Shards
) -> None:
    tiny = model(model_type, num_attention_heads=4, num_key_value_heads=2)
    driver, _ = shards(tiny, 4)
    prompt = prompt_of(20, 1)

    ours = driver.run([Job(prompt, 10)])[0]

    assert_same_tokens(tiny.oracle, prompt, ours, tiny.expected(prompt, 10))


@pytest.mark.parametrize("is_tied", [False, True], ids=["untied", "tied"])
def test_each_of_two_shards_holds_about_half_of_the_weights(
    is_tied: bool, model: Callable[..., Model], shards: Shards, driver: Callable[..., Driver]
) -> None:
    tiny = model("llama", tie_word_embeddings=is_tied)
    whole = driver(tiny).runner.facts.weight_bytes

    _, loaded = shards(tiny, 2)

    assert [facts.weight_bytes < 0.6 * whole for facts, _ in loaded] == [True, True]


def test_tokens_depend_on_the_second_shards_weights(model: Callable[..., Model], shards: Shards) -> None:
    tiny, other = model("llama"), model("llama", seed=1)
    prompt = prompt_of(20, 2)

    driver, _ = shards(tiny, 2, other)
    ours = driver.run([Job(prompt, 12)])[0]

    assert ours != tiny.expected(prompt, 12)


def test_all_ranks_have_the_same_capacity(model: Callable[..., Model], shards: Shards) -> None:
    _, loaded = shards(model("llama"), 2)

    assert len({capacity for _, capacity in loaded}) == 1


def test_details_do_not_depend_on_the_number_of_shards(
    model: Callable[..., Model], shards: Shards, driver: Callable[..., Driver]
) -> None:
    tiny = model("llama")
    wanted = Wanted(logprobs=True, ranks=True, top_n=3, generated_tokens=True, input_tokens=True)
    prompt = prompt_of(30, 3)
    one, two = Job(prompt, 6, wanted=wanted), Job(prompt, 6, wanted=wanted, chunk=11)

    driver(tiny).run([one])
    shards(tiny, 2)[0].run([two])

    for ours, theirs in zip(
        two.prompt_details + two.token_details, one.prompt_details + one.token_details, strict=True
    ):
        assert (ours.rank, ours.top_ids) == (theirs.rank, theirs.top_ids)
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)


def test_a_lost_shard_is_a_secondary_error(model: Callable[..., Model], tmp_path: Path) -> None:
    tiny = model("llama")
    run = make_run(tiny.directory, tmp_path, num_shard=2)
    followers = Followers(1)
    followers.start_loading([run])
    runner = NativeRunner.load(run, 0, no_progress)
    followers.finish_loading()
    followers.close()

    with pytest.raises(PeerLost) as caught:
        runner.launch(
            StepPlan(0, [NewSequence(0, pack_ids([5]), 1, 0, SamplingParams(), Wanted())], [0], [1], [[0]], [True])
        )

    assert caught.value.is_secondary
    runner.close()
