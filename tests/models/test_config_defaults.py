"""A key missing from config.json has the default of the model's class in transformers, in every family."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from tgis_server.engines.native.config.config_file import NULL_IS_A_VALUE
from tgis_server.engines.native.families import FAMILIES, read_spec

# No value equals the default, and the sizes are valid in every class.
STATED: dict[str, Any] = {
    "vocab_size": 500,
    "hidden_size": 2048,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 64,
    "num_key_value_heads": 16,
    "hidden_act": "gelu",
    "max_position_embeddings": 777,
    "rms_norm_eps": 1e-3,
    "tie_word_embeddings": True,
    "eos_token_id": 7,
    "rope_parameters": {"rope_type": "default", "rope_theta": 77.0},
    "dtype": "float16",
}
BY_TYPE = {
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 77.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 78.0},
}
EXTRA_VALUES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True, "head_dim": 16},
    "granite": {
        "attention_bias": True,
        "mlp_bias": True,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 4.0,
        "attention_multiplier": 5.0,
        "logits_scaling": 6.0,
    },
    "arcee": {"attention_bias": True, "mlp_bias": True, "head_dim": 16},
    "gemma": {
        "num_key_value_heads": 8,
        "attention_bias": True,
        "head_dim": 16,
        "hidden_act": "relu",
        "tie_word_embeddings": False,
    },
    "glm": {"attention_bias": False, "head_dim": 16, "partial_rotary_factor": 0.25},
    "glm4": {"attention_bias": False, "head_dim": 16, "partial_rotary_factor": 0.25},
    "helium": {
        "num_attention_heads": 40,
        "num_key_value_heads": 10,
        "attention_bias": True,
        "mlp_bias": True,
        "head_dim": 16,
    },
    "seed_oss": {"attention_bias": False, "attention_out_bias": True, "mlp_bias": True, "head_dim": 16},
    "ministral": {"head_dim": 16, "sliding_window": 12},
    "mistral": {"head_dim": 16, "sliding_window": 12},
    "smollm3": {
        "hidden_size": 1024,
        "attention_bias": True,
        "mlp_bias": True,
        "head_dim": 32,
        "tie_word_embeddings": False,
        "num_hidden_layers": 36,
        "no_rope_layers": [0, 1] * 18,
        "no_rope_layer_interval": 2,
        "use_sliding_window": True,
        "sliding_window": 12,
    },
    "qwen2": {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1},
    "qwen3": {
        "attention_bias": True,
        "head_dim": 16,
        "use_sliding_window": True,
        "sliding_window": 12,
        "max_window_layers": 1,
    },
    "phi3": {"sliding_window": 12, "original_max_position_embeddings": 64},
    "mixtral": {"head_dim": 16, "sliding_window": 12, "num_local_experts": 6, "num_experts_per_tok": 3},
    "phimoe": {
        "sliding_window": 12,
        "attention_bias": True,
        "lm_head_bias": True,
        "num_local_experts": 6,
        "router_jitter_noise": 0.3,
    },
    "qwen2_moe": {
        "hidden_size": 1024,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "qkv_bias": False,
        "use_sliding_window": True,
        "sliding_window": 12,
        "max_window_layers": 1,
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 80,
        "norm_topk_prob": True,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [1],
    },
    "qwen3_moe": {
        "hidden_size": 1024,
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 12,
        "num_experts": 12,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 48,
        "norm_topk_prob": True,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [1],
    },
    "olmo2": {"attention_bias": True},
    "olmo3": {"attention_bias": True, "sliding_window": 12, "rope_parameters": BY_TYPE},
    "olmoe": {
        "hidden_size": 1024,
        "attention_bias": True,
        "clip_qkv": 3.0,
        "num_experts": 12,
        "num_experts_per_tok": 3,
        "norm_topk_prob": True,
    },
    "granitemoe": {
        "attention_bias": True,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 4.0,
        "attention_multiplier": 5.0,
        "logits_scaling": 6.0,
        "num_local_experts": 6,
        "num_experts_per_tok": 3,
    },
    "glm4_moe": {
        "hidden_size": 3072,
        "head_dim": 16,
        "attention_bias": True,
        "partial_rotary_factor": 0.25,
        "use_qk_norm": True,
        "n_routed_experts": 48,
        "n_shared_experts": 2,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 48,
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.5,
        "n_group": 4,
        "topk_group": 2,
        "first_k_dense_replace": 2,
    },
}
EXTRA_VALUES["granitemoeshared"] = EXTRA_VALUES["granitemoe"] | {"shared_intermediate_size": 80}
EXTRA_VALUES["dots1"] = {
    key: value for key, value in EXTRA_VALUES["glm4_moe"].items() if key not in ("partial_rotary_factor", "use_qk_norm")
} | {"norm_topk_prob": True, "sliding_window": 12, "max_window_layers": 1}
COMMON = {
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "eos_token_id",
    "dtype",
}
GPT2: dict[str, Any] = {
    "vocab_size": 500,
    "n_embd": 384,
    "n_inner": 96,
    "n_layer": 4,
    "n_head": 8,
    "n_positions": 777,
    "layer_norm_epsilon": 1e-3,
    "activation_function": "gelu",
    "tie_word_embeddings": False,
    "eos_token_id": 7,
    "dtype": "float16",
}
# Complete configs of families that spell common keys differently.
OWN_SPELLINGS: dict[str, dict[str, Any]] = {
    "bloom": {
        "vocab_size": 500,
        "hidden_size": 128,
        "n_layer": 4,
        "n_head": 16,
        "layer_norm_epsilon": 1e-3,
        "max_position_embeddings": 777,
        "tie_word_embeddings": False,
        "eos_token_id": 7,
        "dtype": "float16",
    },
    "cohere": {
        **{key: STATED[key] for key in STATED if key != "rms_norm_eps"},
        "num_attention_heads": 32,
        "layer_norm_eps": 1e-3,
        "logit_scale": 0.5,
        "use_qk_norm": True,
        "attention_bias": True,
        "tie_word_embeddings": False,
    },
    "cohere2": {
        **{key: STATED[key] for key in STATED if key != "rms_norm_eps"},
        "num_attention_heads": 32,
        "layer_norm_eps": 1e-3,
        "logit_scale": 0.5,
        "attention_bias": True,
        "tie_word_embeddings": False,
        "sliding_window": 12,
        "sliding_window_pattern": 2,
    },
    "exaone4": {
        **STATED,
        "num_attention_heads": 64,
        "sliding_window": 12,
        "sliding_window_pattern": 2,
    },
    "nemotron": {
        **{key: STATED[key] for key in STATED if key != "rms_norm_eps"},
        "head_dim": 64,
        "norm_eps": 1e-3,
        "partial_rotary_factor": 0.25,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "olmo": {
        **{key: STATED[key] for key in STATED if key != "rms_norm_eps"},
        "clip_qkv": 3.0,
        "attention_bias": True,
    },
    "ernie4_5_moe": {
        **STATED,
        "hidden_size": 640,
        "num_attention_heads": 40,
        "num_key_value_heads": 10,
        "tie_word_embeddings": False,
        "use_bias": True,
        "moe_num_experts": 6,
        "moe_k": 3,
        "moe_intermediate_size": 48,
        "moe_num_shared_experts": 1,
        "num_hidden_layers": 6,
        "moe_layer_start_index": 2,
        "moe_layer_end_index": 4,
        "moe_layer_interval": 2,
    },
    "gpt_oss": {
        **{key: STATED[key] for key in STATED if key != "hidden_act"},
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "head_dim": 16,
        "attention_bias": False,
        "sliding_window": 12,
        "num_local_experts": 6,
        "num_experts_per_tok": 3,
    },
    "falcon": {
        **{key: STATED[key] for key in STATED if key in COMMON},
        "hidden_size": 9088,
        "num_attention_heads": 32,
        "ffn_hidden_size": 96,
        "num_kv_heads": 1,
        "num_ln_in_parallel_attn": 1,
        "layer_norm_epsilon": 1e-3,
        "alibi": True,
        "new_decoder_architecture": True,
        "multi_query": False,
        "parallel_attn": False,
        "bias": True,
        "activation": "relu",
        "tie_word_embeddings": False,
        "rope_parameters": STATED["rope_parameters"],
    },
    "gemma2": {
        **{key: STATED[key] for key in STATED if key != "hidden_act"},
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 16,
        "hidden_activation": "gelu",
        "tie_word_embeddings": False,
        "attention_bias": True,
        "query_pre_attn_scalar": 20,
        "sliding_window": 12,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 8.0,
    },
    "gemma3_text": {
        **{key: STATED[key] for key in STATED if key != "hidden_act"},
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 16,
        "hidden_activation": "gelu",
        "tie_word_embeddings": False,
        "attention_bias": True,
        "query_pre_attn_scalar": 20,
        "sliding_window": 12,
        "sliding_window_pattern": 2,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 8.0,
        "rope_parameters": BY_TYPE,
    },
    "gpt2": GPT2 | {"scale_attn_weights": False},
    "gpt_bigcode": GPT2 | {"scale_attn_weights": False, "multi_query": False},
    "gpt_neo": {
        **{key: STATED[key] for key in STATED if key in COMMON - {"num_hidden_layers", "num_attention_heads"}},
        "hidden_size": 1024,
        "intermediate_size": 96,
        "num_layers": 24,
        "num_heads": 8,
        "attention_types": [[["local"], 24]],
        "window_size": 12,
        "layer_norm_epsilon": 1e-3,
        "activation_function": "gelu",
        "tie_word_embeddings": False,
    },
    "gptj": GPT2 | {"n_embd": 1024, "rotary_dim": 16, "tie_word_embeddings": True},
    "codegen": GPT2 | {"n_embd": 1024, "rotary_dim": 16, "tie_word_embeddings": True},
    "mpt": {
        "vocab_size": 500,
        "d_model": 384,
        "n_layers": 4,
        "n_heads": 8,
        "max_seq_len": 777,
        "layer_norm_epsilon": 1e-3,
        "attn_config": {"clip_qkv": 3.0},
        "tie_word_embeddings": False,
        "eos_token_id": 7,
        "dtype": "float16",
    },
    "opt": {
        **{key: STATED[key] for key in STATED if key in COMMON},
        "hidden_size": 1536,
        "ffn_dim": 96,
        "activation_function": "gelu",
        "enable_bias": False,
        "tie_word_embeddings": False,
    },
    "persimmon": {
        **{key: STATED[key] for key in STATED if key not in ("rms_norm_eps", "num_key_value_heads")},
        "num_attention_heads": 32,
        "layer_norm_eps": 1e-3,
        "partial_rotary_factor": 0.25,
        "qk_layernorm": False,
    },
    "stablelm": {
        **{key: STATED[key] for key in STATED if key != "rms_norm_eps"},
        "hidden_size": 1024,
        "layer_norm_eps": 1e-3,
        "partial_rotary_factor": 0.5,
        "use_qkv_bias": True,
        "qk_layernorm": True,
        "use_parallel_residual": True,
    },
    "starcoder2": {
        **{key: STATED[key] for key in STATED if key != "rms_norm_eps"},
        "hidden_size": 1536,
        "num_attention_heads": 48,
        "num_key_value_heads": 12,
        "norm_epsilon": 1e-3,
        "sliding_window": 12,
        "use_bias": False,
        "tie_word_embeddings": False,
    },
    "gpt_neox": {
        **{key: STATED[key] for key in STATED if key not in ("rms_norm_eps", "num_key_value_heads", "rope_parameters")},
        "num_attention_heads": 32,
        "hidden_act": "relu",
        "layer_norm_eps": 1e-3,
        "attention_bias": False,
        "use_parallel_residual": False,
        "rotary_pct": 0.5,
        "rotary_emb_base": 77.0,
    },
    "phi": {
        **{key: STATED[key] for key in STATED if key != "rms_norm_eps"},
        "hidden_size": 1024,
        "layer_norm_eps": 1e-3,
        "partial_rotary_factor": 0.25,
        "qk_layernorm": True,
    },
}
VALUES = {
    family: OWN_SPELLINGS[family] if family in OWN_SPELLINGS else {**STATED, **EXTRA_VALUES[family]}
    for family in FAMILIES
}
REFUSED = {  # transformers refuses these nulls
    (family, "num_key_value_heads")
    for family in (
        *("mistral", "ministral", "gemma", "gemma2", "glm4", "helium", "starcoder2", "exaone4"),
        *("stablelm", "gemma3_text", "mixtral", "phimoe", "qwen3_moe", "glm4_moe", "gpt_oss"),
    )
} | {("exaone4", "sliding_window")}
INVALID_DEFAULTS = {  # of the class, beside the values of other keys
    ("glm4_moe", "n_group"),
    ("dots1", "n_group"),
    ("dots1", "n_routed_experts"),
    ("dots1", "n_shared_experts"),
    ("dots1", "num_experts_per_tok"),
}
INVALID_WHOLE = {"dots1", "glm4_moe"}  # the defaults of all keys: experts, and a head size that is not whole
WITHOUT_EFFECT = {  # beside the values of other keys; the original length is only used by longrope
    ("falcon", "multi_query"),
    ("falcon", "parallel_attn"),
    ("falcon", "rope_parameters"),
    ("gpt_neo", "num_layers"),  # no other number agrees with the default of attention_types
    ("smollm3", "num_hidden_layers"),  # nor with the length of no_rope_layers
    ("smollm3", "no_rope_layer_interval"),
}
OTHER_SPELLINGS = {
    "rope_scaling",
    "rope_theta",
    "rope_parameters",
    "partial_rotary_factor",
    "rope_local_base_freq",
    "torch_dtype",
    "layer_types",
}


def keys_of(family: str) -> Iterator[tuple[str, str]]:
    return ((family, key) for key in VALUES[family])


def spec_of(directory: Path, family: str, values: dict[str, Any]) -> Any:
    """The spec of a config.json with these values."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({**values, "model_type": family}))
    return read_spec(directory)


def written_by_transformers(family: str, values: dict[str, Any]) -> dict[str, Any]:
    """All keys of the class, as transformers writes them."""
    config = AutoConfig.for_model(family, **deepcopy(values))  # the call changes its arguments
    written: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return {key: value for key, value in written.items() if key != "architectures"}


def without_reasons(spec: Any) -> Any:
    return {name: getattr(spec, name) for name in spec.__slots__ if name not in ("length", "warnings")} | {
        "length": spec.length.num_tokens
    }


@pytest.mark.parametrize(
    ("family", "key"),
    [pair for family in FAMILIES for pair in keys_of(family) if pair not in INVALID_DEFAULTS],
)
def test_a_missing_key_has_the_default_of_its_class(family: str, key: str, tmp_path: Path) -> None:
    values = dict(VALUES[family])
    whole = without_reasons(spec_of(tmp_path / "whole", family, values))
    del values[key]

    ours = without_reasons(spec_of(tmp_path / "ours", family, values))

    theirs = without_reasons(spec_of(tmp_path / "theirs", family, written_by_transformers(family, values)))
    assert ours == theirs
    assert (ours == whole) is (key == "original_max_position_embeddings" or (family, key) in WITHOUT_EFFECT)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_other_spelling_of_a_key_takes_precedence_as_in_its_class(family: str, tmp_path: Path) -> None:
    spellings: dict[str, str] = type(AutoConfig.for_model(family)).attribute_map
    pairs = [pair if pair[1] in VALUES[family] else pair[::-1] for pair in spellings.items()]
    compared = VALUES[family].keys() - {key for name, key in WITHOUT_EFFECT if name == family}
    pairs = [(theirs, ours) for theirs, ours in pairs if ours in compared]
    values = VALUES[family] | {theirs: 2 * VALUES[family][ours] for theirs, ours in pairs}

    ours = without_reasons(spec_of(tmp_path / "ours", family, values))

    theirs = without_reasons(spec_of(tmp_path / "theirs", family, written_by_transformers(family, values)))
    assert ours == theirs
    assert (ours == without_reasons(spec_of(tmp_path / "plain", family, VALUES[family]))) is not bool(pairs)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in INVALID_WHOLE])
def test_an_empty_config_has_the_defaults_of_its_class(family: str, tmp_path: Path) -> None:
    ours = spec_of(tmp_path / "ours", family, {})

    theirs = spec_of(tmp_path / "theirs", family, written_by_transformers(family, {}))
    assert without_reasons(ours) == without_reasons(theirs)


@pytest.mark.parametrize(
    ("family", "key"),
    [
        (family, key)
        for family, module in FAMILIES.items()
        for key in NULL_IS_A_VALUE
        if key in module.DEFAULTS and (family, key) not in REFUSED
    ],
)
def test_a_null_that_is_a_value_means_the_same_as_in_its_class(family: str, key: str, tmp_path: Path) -> None:
    values = {**VALUES[family], key: None}

    ours = spec_of(tmp_path / "ours", family, values)

    theirs = spec_of(tmp_path / "theirs", family, written_by_transformers(family, values))
    assert without_reasons(ours) == without_reasons(theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_that_a_family_reads_is_compared(family: str) -> None:
    """Families read only keys with a default."""
    read = FAMILIES[family].DEFAULTS.keys() - OTHER_SPELLINGS
    compared = VALUES[family].keys()

    only_one_value = {"swiglu_alpha", "swiglu_limit", "moe_norm_min", *(["num_experts_per_tok"] * (family == "phimoe"))}
    may_lack = {"original_max_position_embeddings", "head_dim", "attention_bias", "mlp_bias"}
    assert read - compared <= may_lack | only_one_value
    assert compared <= FAMILIES[family].DEFAULTS.keys()


def test_longrope_of_phi3_has_the_original_length_of_its_class(tmp_path: Path) -> None:
    """It has that length even if the rope parameters state a different one."""
    rope = {"short_factor": [1.0] * 16, "long_factor": [2.0] * 16, "original_max_position_embeddings": 64}
    values = {**STATED, "rope_parameters": {"rope_type": "longrope", "rope_theta": 77.0, **rope}}

    ours = spec_of(tmp_path / "ours", "phi3", values)

    theirs = written_by_transformers("phi3", values)["rope_parameters"]
    assert ours.rope.original_max_position == theirs["original_max_position_embeddings"]
