"""Every family generates the same tokens as transformers: alone, in batches, and with any chunks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tgis_server.engines.native.checkpoint.inspect import inspect_checkpoint
from tgis_server.engines.native.families import NESTING, read_spec
from tgis_server.engines.native.models.decoder import StepInputs
from tgis_server.wire.messages import Wanted
from tiny import Driver, Job, Model, assert_same_tokens, prompt_of

LENGTHS = (5, 23, 1, 40)
NUM_TOKENS = 20

MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama-tied": {"model_type": "llama", "tie_word_embeddings": True},
    "llama-biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama-wide-heads": {
        "model_type": "llama",
        "hidden_size": 96,
        "head_dim": 32,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
    },
    "llama-gelu": {"model_type": "llama", "hidden_act": "gelu_pytorch_tanh"},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "mistral-window": {"model_type": "mistral", "sliding_window": 12},
    "qwen2": {"model_type": "qwen2"},
    "qwen2-window": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 12,
        "max_window_layers": 1,
        "tie_word_embeddings": True,
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 32},
    "qwen3-window": {
        "model_type": "qwen3",
        "head_dim": 16,
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 9,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    },
    "granite": {
        "model_type": "granite",
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.2,
        "logits_scaling": 2.0,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "arcee": {"model_type": "arcee", "mlp_bias": True},
    "bloom": {"model_type": "bloom", "n_head": 6, "hidden_size": 96},  # 6 is not a power of two: interpolated slopes
    "gemma": {"model_type": "gemma", "head_dim": 32, "hidden_act": "gelu"},
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 16,
        "query_pre_attn_scalar": 20,
        "sliding_window": 12,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 8.0,
        "attention_bias": True,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "head_dim": 16,
        "num_hidden_layers": 4,
        "query_pre_attn_scalar": 20,
        "sliding_window": 12,
        "sliding_window_pattern": 3,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 77.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 3000.0},
        },
    },
    "codegen": {"model_type": "codegen", "num_attention_heads": 4, "rotary_dim": 8},
    "cohere": {"model_type": "cohere", "logit_scale": 0.5},
    "cohere-qk-norm": {
        "model_type": "cohere",
        "use_qk_norm": True,
        "attention_bias": True,
        "tie_word_embeddings": True,
    },
    "cohere2": {"model_type": "cohere2", "sliding_window": 9, "logit_scale": 0.5, "attention_bias": True},
    "exaone4": {"model_type": "exaone4", "sliding_window": 9, "sliding_window_pattern": 2},
    "exaone4-no-window": {"model_type": "exaone4", "sliding_window": None, "layer_types": ["full_attention"] * 3},
    "falcon": {"model_type": "falcon"},
    "falcon-new": {"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
    "falcon-new-one-norm": {
        "model_type": "falcon",
        "new_decoder_architecture": True,
        "num_kv_heads": 2,
        "num_ln_in_parallel_attn": 1,
    },
    # With 4 heads, slopes and products with these positions are exact in bfloat16, which the class uses for them.
    "falcon-alibi": {
        "model_type": "falcon",
        "alibi": True,
        "multi_query": False,
        "parallel_attn": False,
        "bias": True,
        "num_attention_heads": 4,
    },
    "glm": {"model_type": "glm", "head_dim": 16},
    "glm4": {"model_type": "glm4", "head_dim": 16, "attention_bias": False},
    "gpt2": {"model_type": "gpt2", "tie_word_embeddings": True},
    "gpt2-wide-unscaled": {"model_type": "gpt2", "n_inner": 96, "scale_attn_weights": False},
    "gpt-bigcode": {"model_type": "gpt_bigcode"},
    "gpt-bigcode-all-heads": {"model_type": "gpt_bigcode", "multi_query": False},
    "gpt-neo": {
        "model_type": "gpt_neo",
        "attention_types": [[["global", "local"], 1], [["local"], 1]],
        "window_size": 9,
    },
    "gptj": {"model_type": "gptj", "rotary_dim": 8},
    "gpt-neox": {"model_type": "gpt_neox", "rotary_pct": 0.5},
    "gpt-neox-serial": {"model_type": "gpt_neox", "use_parallel_residual": False, "attention_bias": False},
    "helium": {"model_type": "helium", "head_dim": 16, "attention_bias": True, "mlp_bias": True},
    "ministral": {
        "model_type": "ministral",
        "head_dim": 16,
        "sliding_window": 9,
        "layer_types": ["full_attention", *["sliding_attention"] * 2],
    },
    "mpt": {"model_type": "mpt", "num_attention_heads": 6, "hidden_size": 96},  # 6 is not a power of two
    "mpt-limited": {"model_type": "mpt", "attn_config": {"clip_qkv": 0.7, "softmax_scale": 0.3}},
    "nemotron": {"model_type": "nemotron", "attention_bias": True, "mlp_bias": True},
    "olmo": {"model_type": "olmo"},
    "olmo-limited": {"model_type": "olmo", "clip_qkv": 0.7, "attention_bias": True},
    "olmo2": {"model_type": "olmo2", "attention_bias": True},
    "olmo3": {
        "model_type": "olmo3",
        "num_hidden_layers": 4,
        "sliding_window": 9,
        "rope_parameters": {
            "full_attention": {
                "rope_type": "yarn",
                "factor": 4.0,
                "rope_theta": 500.0,
                "original_max_position_embeddings": 64,
            },
            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
        },
    },
    "olmoe": {"model_type": "olmoe", "num_experts": 9, "num_experts_per_tok": 3, "clip_qkv": 0.7},
    "opt": {"model_type": "opt", "ffn_dim": 96},
    "opt-without-biases": {"model_type": "opt", "enable_bias": False, "activation_function": "gelu"},
    "persimmon": {"model_type": "persimmon"},
    "persimmon-without-norms": {"model_type": "persimmon", "qk_layernorm": False},
    "seed-oss": {"model_type": "seed_oss", "head_dim": 32, "attention_out_bias": True},
    "smollm3": {"model_type": "smollm3", "no_rope_layer_interval": 2, "attention_bias": True},
    "smollm3-window": {
        "model_type": "smollm3",
        "no_rope_layers": [1, 0, 1],
        "use_sliding_window": True,
        "sliding_window": 9,
    },
    "stablelm": {"model_type": "stablelm", "qk_layernorm": True, "use_qkv_bias": True},
    "stablelm-parallel": {"model_type": "stablelm", "use_parallel_residual": True},
    "starcoder2": {"model_type": "starcoder2"},
    "starcoder2-window": {"model_type": "starcoder2", "sliding_window": 11, "use_bias": False},
    "phi": {"model_type": "phi", "qk_layernorm": True},
    "phi3": {"model_type": "phi3"},
    "phi3-window": {"model_type": "phi3", "sliding_window": 11, "tie_word_embeddings": True},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 6},
    "mixtral-window": {"model_type": "mixtral", "num_experts_per_tok": 3, "sliding_window": 9},
    "phimoe": {
        "model_type": "phimoe",
        "num_local_experts": 6,
        "attention_bias": True,
        "lm_head_bias": True,
        "router_jitter_noise": 0.3,
    },
    "phimoe-longrope": {
        "model_type": "phimoe",
        "num_local_experts": 6,
        "max_position_embeddings": 1024,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0 + 0.1 * i for i in range(8)],
            "long_factor": [4.0] * 8,
            "short_mscale": 1.3,
            "long_mscale": 1.3,
            "original_max_position_embeddings": 256,
        },
    },
    "granitemoe": {
        "model_type": "granitemoe",
        "num_local_experts": 6,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.2,
        "logits_scaling": 2.0,
        "attention_bias": True,
    },
    "granitemoeshared": {"model_type": "granitemoeshared", "num_local_experts": 6, "shared_intermediate_size": 80},
    "gpt-oss": {"model_type": "gpt_oss", "num_local_experts": 6, "head_dim": 16, "sliding_window": 9},
    "qwen2-moe": {
        "model_type": "qwen2_moe",
        "num_experts": 7,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 80,
        "mlp_only_layers": [1],
    },
    "qwen2-moe-window": {
        "model_type": "qwen2_moe",
        "num_experts": 4,
        "moe_intermediate_size": 48,
        "norm_topk_prob": True,
        "qkv_bias": False,
        "use_sliding_window": True,
        "sliding_window": 9,
    },
    "qwen3-moe": {
        "model_type": "qwen3_moe",
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "head_dim": 16,
        "moe_intermediate_size": 48,
        "norm_topk_prob": True,
        "decoder_sparse_step": 2,
        "attention_bias": True,
    },
    "glm4-moe": {
        "model_type": "glm4_moe",
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 48,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 1.5,
        "n_shared_experts": 2,
        "use_qk_norm": True,
        "attention_bias": True,
    },
    "dots1": {
        "model_type": "dots1",
        "n_routed_experts": 6,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,
        "sliding_window": 9,
        "max_window_layers": 1,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 2.5,
    },
    "ernie4-5-moe": {
        "model_type": "ernie4_5_moe",
        "moe_num_experts": 6,
        "moe_k": 2,
        "moe_intermediate_size": 48,
        "tie_word_embeddings": True,
    },
    "ernie4-5-moe-biases": {
        "model_type": "ernie4_5_moe",
        "moe_num_experts": 6,
        "moe_k": 3,
        "moe_intermediate_size": 48,
        "moe_layer_start_index": 0,
        "moe_layer_interval": 2,
        "use_bias": True,
    },
    "phi3-partial": {
        "model_type": "phi3",
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    },
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("chunk", [None, 7], ids=["whole", "chunks of 7"])
def test_a_mixed_batch_has_the_tokens_and_log_probabilities_of_transformers(
    name: str, chunk: int | None, model: Callable[..., Model], driver: Callable[..., Driver]
) -> None:
    tiny = model(**MODELS[name])
    prompts = [prompt_of(length, seed=length) for length in LENGTHS]
    wanted = Wanted(logprobs=True, input_tokens=True)
    jobs = [Job(prompt, NUM_TOKENS, wanted=wanted, chunk=chunk or 1 << 30) for prompt in prompts]

    driver(tiny).run(jobs, start_every=2)

    for job in jobs:
        assert_same_tokens(tiny.oracle, job.prompt, job.generated, tiny.expected(job.prompt, NUM_TOKENS))
        logprobs = tiny.oracle.logits(job.prompt).log_softmax(-1)[:-1]
        expected = logprobs.gather(1, torch.tensor(job.prompt[1:], dtype=torch.int64)[:, None])[:, 0].tolist()
        assert [detail.logprob for detail in job.prompt_details] == pytest.approx(expected, abs=1e-4)


def test_gemma_rounds_its_embedding_scale(model: Callable[..., Model], driver: Callable[..., Driver]) -> None:
    """The square root of 60 is about 7.746, and 7.75 in bfloat16."""
    tiny = model("gemma2", hidden_size=60, head_dim=16)
    decoder = driver(tiny, dtype="bfloat16").runner._decoder
    ids = torch.tensor(prompt_of(23, seed=1))

    with torch.inference_mode():
        ours = decoder._embed(StepInputs(ids, ids, None))
        theirs = AutoModelForCausalLM.from_pretrained(tiny.directory, dtype=torch.bfloat16).model.embed_tokens(ids)

    assert torch.equal(ours.to(theirs.dtype), theirs)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
@pytest.mark.parametrize(("outer", "text"), [("gemma3", "gemma3"), ("mistral3", "mistral-window")])
def test_the_text_part_of_a_model_with_images_is_served(
    outer: str, text: str, prefix: str, model: Callable[..., Model], driver: Callable[..., Driver], tmp_path: Path
) -> None:
    tiny = model(**MODELS[text])
    shutil.copytree(tiny.directory, tmp_path / "nested")
    whole = Model(tmp_path / "nested", tiny.oracle)
    config = json.loads((tiny.directory / "config.json").read_text())
    nested = {"model_type": outer, "architectures": [NESTING[outer]], "text_config": config, "vision_config": {}}
    (whole.directory / "config.json").write_text(json.dumps(nested))
    tensors = load_file(tiny.directory / "model.safetensors")
    renamed = {name.replace("model.", prefix, 1): tensor for name, tensor in tensors.items()}
    save_file({**renamed, "vision_tower.patches.weight": torch.ones(3)}, whole.directory / "model.safetensors")
    prompt = prompt_of(23, seed=1)

    ours = driver(whole).run([Job(prompt, NUM_TOKENS)])

    assert_same_tokens(tiny.oracle, prompt, ours[0], tiny.expected(prompt, NUM_TOKENS))
    (warning,) = inspect_checkpoint(whole.directory, read_spec(whole.directory), 1).warnings
    assert warning.startswith("This model also takes images, for which 1 tensors are unused")


@pytest.mark.parametrize("chunk", [1, 3, 8, 16, 64])
def test_tokens_do_not_depend_on_the_size_of_chunks(
    chunk: int, model: Callable[..., Model], driver: Callable[..., Driver]
) -> None:
    tiny = model("mistral", sliding_window=12)
    prompt = prompt_of(61, seed=1)

    ours = driver(tiny).run([Job(prompt, NUM_TOKENS, chunk=chunk)])

    assert_same_tokens(tiny.oracle, prompt, ours[0], tiny.expected(prompt, NUM_TOKENS))


def test_other_rows_do_not_change_a_sequence(model: Callable[..., Model], driver: Callable[..., Driver]) -> None:
    tiny = model("llama")
    prompt = prompt_of(30, seed=2)

    alone = driver(tiny).run([Job(prompt, 40)])[0]
    together = driver(tiny).run([Job(prompt, 40), *(Job(prompt_of(n, n), 40) for n in (3, 90, 150))])[0]

    assert_same_tokens(tiny.oracle, prompt, alone, tiny.expected(prompt, 40))
    assert_same_tokens(tiny.oracle, prompt, together, alone)


def test_rows_of_very_different_lengths_share_a_step(
    model: Callable[..., Model], driver: Callable[..., Driver]
) -> None:
    """Their lengths differ by more than the padding allowed within one group of rows."""
    tiny = model("mistral", sliding_window=12)
    prompts = [prompt_of(n, n) for n in (200, 2, 150, 3, 220)]

    ours = driver(tiny).run([Job(prompt, 12) for prompt in prompts])

    for prompt, generated in zip(prompts, ours, strict=True):
        assert_same_tokens(tiny.oracle, prompt, generated, tiny.expected(prompt, 12))
