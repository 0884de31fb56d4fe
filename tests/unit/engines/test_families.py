"""From config.json to a DecoderSpec: both spellings, and one clear sentence for each unsupported value."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

from tgis_server.engines.native.families import FAMILIES, UNSUPPORTED_KEYS, parameters_of, read_spec
from tgis_server.engines.native.spec import RopeSpec
from tgis_server.errors import ModelError
from tgis_server.model_files import LENGTH_KEYS, Length

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}


def of_family(name: str, **changes: Any) -> dict[str, Any]:
    return {**LLAMA, "model_type": name, "architectures": [FAMILIES[name].ARCHITECTURE], **changes}


def spec_of(directory: Path, config: dict[str, Any], generation: dict[str, Any] | None = None) -> Any:
    (directory / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return read_spec(directory)


def sentence_of(directory: Path, config: dict[str, Any]) -> str:
    with pytest.raises(ModelError) as caught:
        spec_of(directory, config)
    return str(caught.value)


def test_a_llama_config_becomes_a_spec(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, LLAMA)

    assert (spec.family, spec.vocab_size, spec.hidden_size, spec.num_layers) == ("llama", 100, 32, 3)
    assert (spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.num_kv_groups) == (4, 2, 8, 2)
    assert (spec.eos_ids, spec.dtype, spec.length.num_tokens) == ((2,), "bfloat16", 128)
    assert spec.windows == (None, None, None)
    assert spec.rope == RopeSpec("default", 10000.0, 8, 1.0, 128, 128)


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({"eos_token_id": 7}, None, (7,)),
        ({"eos_token_id": [7, 9]}, None, (7, 9)),
        ({"eos_token_id": 7}, {"eos_token_id": [3, 4]}, (3, 4)),
        ({"eos_token_id": 7}, {"temperature": 0.6}, (7,)),
        ({"eos_token_id": None}, None, ()),
    ],
)
def test_end_of_sequence_ids_come_from_the_generation_config_or_the_config(
    config: dict[str, Any], generation: dict[str, Any] | None, expected: tuple[int, ...], tmp_path: Path
) -> None:
    assert spec_of(tmp_path, {**LLAMA, **config}, generation).eos_ids == expected


@pytest.mark.parametrize("token", ["</s>", {"content": "</s>", "special": True}])
@pytest.mark.parametrize(
    "config", [{**LLAMA, "eos_token_id": None}, {k: v for k, v in LLAMA.items() if k[:3] != "eos"}]
)
def test_without_an_end_of_sequence_id_the_tokenizers_one_is_used(
    token: object, config: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": token}))
    added = [{"id": 1, "content": "<s>"}, {"id": 5, "content": "</s>"}]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))

    assert spec_of(tmp_path, config).eos_ids == (5,)
    assert spec_of(tmp_path, LLAMA).eos_ids == (2,)


@pytest.mark.parametrize(
    ("config", "generation", "expected", "named"),
    [
        (2, [2, 100], (2,), "generation_config.json"),
        (7, 100, (7,), "generation_config.json"),
        ([-1, 100], None, (), "config.json"),
    ],
)
def test_an_end_token_outside_the_vocabulary_is_a_warning_that_names_its_file(
    config: Any, generation: Any, expected: tuple[int, ...], named: str, tmp_path: Path
) -> None:
    spec = spec_of(tmp_path, {**LLAMA, "eos_token_id": config}, {"eos_token_id": generation})

    assert spec.eos_ids == expected
    [warning] = spec.warnings
    assert f"100 of {tmp_path / named} " in warning
    assert " outside the vocabulary of 100" in warning


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([1, 100], "The end token 100 of {} is outside the vocabulary of 100: it is never generated."),
        ([100, 101], "The end tokens 100, 101 of {} are outside the vocabulary of 100: they are never generated."),
    ],
)
def test_the_warning_names_one_or_several_end_tokens_outside_the_vocabulary(
    ids: list[int], words: str, tmp_path: Path
) -> None:
    assert spec_of(tmp_path, {**LLAMA, "eos_token_id": ids}).warnings == (words.format(tmp_path / "config.json"),)


def test_a_default_end_token_outside_the_vocabulary_is_ignored_without_a_warning(tmp_path: Path) -> None:
    config = {**of_family("phi3"), "vocab_size": 100}
    del config["eos_token_id"]

    spec = spec_of(tmp_path, config)

    assert (spec.eos_ids, spec.warnings) == ((), ())


@pytest.mark.parametrize(
    "added", [None, 5, "x", [None, "</s>"], [{"content": "</s>"}], [{"id": "5", "content": "</s>"}]]
)
def test_malformed_added_tokens_are_ignored(added: object, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))

    assert spec_of(tmp_path, {**LLAMA, "eos_token_id": None}).eos_ids == ()


def test_dynamic_scaling_of_two_dimensions_is_refused(tmp_path: Path) -> None:
    scaling = {"rope_type": "dynamic", "factor": 2.0}

    assert "2 rotated dimensions" in sentence_of(tmp_path, {**LLAMA, "head_dim": 2, "rope_scaling": scaling})


@pytest.mark.parametrize(
    ("rope", "words"),
    [
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": -5},
            "original_max_position_embeddings of the rope parameters is -5, but must be a positive integer.",
        ),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": "4k"},
            "original_max_position_embeddings of the rope parameters is '4k', but must be a positive integer.",
        ),
        ({"rope_type": "linear", "factor": 0.001}, "128 positions stretched by a factor of 0.001 (linear scaling)"),
        ({"rope_type": "linear", "factor": -1}, "factor of the rope parameters is -1, but must be greater than 0."),
        ({"rope_type": "linear", "factor": math.inf}, "factor of the rope parameters is inf, but must be a number."),
    ],
)
def test_rope_parameters_out_of_range_are_refused(rope: dict[str, Any], words: str, tmp_path: Path) -> None:
    assert words in sentence_of(tmp_path, {**LLAMA, "rope_scaling": rope})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": 5}, "architectures is 5, but must be a list of names."),
        ({"architectures": [["x"]]}, "architectures is [['x']], but must be a list of names."),
        ({"architectures": "LlamaForCausalLM"}, "architectures is 'LlamaForCausalLM', but must be a list of names."),
        ({"layer_types": 5}, "layer_types is 5, but must be a list of names."),
        ({"max_window_layers": "28"}, "max_window_layers is '28', but must be an integer of at least 0."),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_name(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    assert words in sentence_of(tmp_path, of_family("qwen2", **changes))


STRANGE = (-5, 0, 1, 5, 10**400, 0.001, math.nan, math.inf, True, "28", "", [], [["x"]], [5], {}, {"a": []}, None)
ROPE_KEYS = (
    *("rope_type", "type", "factor", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"),
    *("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    *("attention_factor", "short_factor", "long_factor"),
)
ROPES = [
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {"rope_type": "yarn", "factor": 2.0},
    {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0] * 4},
]


def expect_a_spec_or_a_sentence(directory: Path, config: dict[str, Any]) -> None:
    with contextlib.suppress(ModelError):
        spec = spec_of(directory, config)
        assert spec.length.num_tokens >= 1
        assert spec.rope is None or 0 < spec.rope.factor < math.inf
        assert spec.rope is None or spec.rope.original_max_position >= 1


@pytest.mark.parametrize("value", STRANGE, ids=lambda value: repr(value)[:8])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_value_of_any_type_is_accepted_or_refused(family: str, value: object, tmp_path: Path) -> None:
    for key in (*FAMILIES[family].DEFAULTS, *LENGTH_KEYS, *UNSUPPORTED_KEYS, "model_type", "architectures"):
        expect_a_spec_or_a_sentence(tmp_path, of_family(family, **{"use_sliding_window": True, key: value}))


@pytest.mark.parametrize("value", STRANGE, ids=lambda value: repr(value)[:8])
@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope["rope_type"])
def test_a_rope_parameter_of_any_type_is_accepted_or_refused(
    rope: dict[str, Any], value: object, tmp_path: Path
) -> None:
    for key in ROPE_KEYS:
        expect_a_spec_or_a_sentence(tmp_path, {**LLAMA, "rope_parameters": {**rope, key: value}})


def test_an_end_token_that_is_not_an_id_is_refused_with_its_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"generation_config\.json: eos_token_id is '</s>'"):
        spec_of(tmp_path, LLAMA, {"eos_token_id": "</s>"})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"dtype": "float16"}, "float16"), ({"torch_dtype": "torch.float32"}, "float32"), ({"torch_dtype": None}, None)],
)
def test_the_dtype_is_read_in_both_spellings(changes: dict[str, Any], expected: str | None, tmp_path: Path) -> None:
    assert spec_of(tmp_path, {**LLAMA, **changes}).dtype == expected


def test_kv_heads_default_to_the_query_heads(tmp_path: Path) -> None:
    assert spec_of(tmp_path, {**LLAMA, "num_key_value_heads": None}).num_kv_heads == 4


# Rotary embeddings


SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **SCALING}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **SCALING}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **SCALING}},
    ],
)
def test_rope_is_read_in_every_spelling(spelling: dict[str, Any], tmp_path: Path) -> None:
    rope = spec_of(tmp_path, {**LLAMA, **spelling}).rope

    assert rope == RopeSpec("llama3", 5e5, 8, 8.0, 128, 64, low_freq_factor=1.0, high_freq_factor=4.0)


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ({"rope_type": "default"}, 128),
        ({"rope_type": "linear", "factor": 4.0}, 512),
        ({"rope_type": "dynamic", "factor": 2.0}, 256),
        ({"rope_type": "yarn", "factor": 4.0}, 512),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 128),
        ({"rope_type": "llama3", **SCALING}, 128),
        (
            {
                "rope_type": "longrope",
                "short_factor": [1.0] * 4,
                "long_factor": [2.0] * 4,
                "original_max_position_embeddings": 32,
            },
            128,
        ),
    ],
    ids=lambda value: value["rope_type"] if isinstance(value, dict) else None,
)
def test_a_rope_that_stretches_positions_stretches_the_longest_sequence(
    scaling: dict[str, Any], expected: int, tmp_path: Path
) -> None:
    assert spec_of(tmp_path, {**LLAMA, "rope_scaling": scaling}).length.num_tokens == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"max_position_embeddings": 64, "max_sequence_length": 256},
            Length(64, "max_position_embeddings of config.json"),
        ),
        (
            {"max_position_embeddings": None, "max_sequence_length": 256},
            Length(256, "max_sequence_length of config.json"),
        ),
        ({"max_position_embeddings": None}, Length(2048, "config.json names none: the default of the model's class")),
    ],
)
def test_the_longest_sequence_has_a_source(changes: dict[str, Any], expected: Length, tmp_path: Path) -> None:
    assert spec_of(tmp_path, {**LLAMA, **changes}).length == expected


@pytest.mark.parametrize("kind", ["su", "yarn", "longrope"])
def test_phi3_has_three_spellings_of_longrope(kind: str, tmp_path: Path) -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}

    spec = spec_of(tmp_path, of_family("phi3", max_position_embeddings=8192, rope_scaling={"type": kind, **factors}))

    assert (spec.rope.kind, spec.rope.original_max_position, spec.rope.factor) == ("longrope", 4096, 2.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 2]}}, ["'mrope'", "default, linear, dynamic"]),
        ({"rope_scaling": {"type": "linear"}}, ["factor"]),
        ({"rope_scaling": {"type": "llama3", "factor": 8.0}}, ["low_freq_factor"]),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 4}},
            ["short_factor", "4"],
        ),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, ["types of layers"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor 0.5"]),
    ],
)
def test_unsupported_rope_is_refused(changes: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    sentence = sentence_of(tmp_path, {**LLAMA, **changes})

    assert [word for word in words if word not in sentence] == []


# Families


def test_qwen2_has_windows_from_max_window_layers_on(tmp_path: Path) -> None:
    config = of_family("qwen2", use_sliding_window=True, sliding_window=16, max_window_layers=2)

    assert spec_of(tmp_path, config).windows == (None, None, 16)


def test_qwen2_has_no_windows_unless_switched_on(tmp_path: Path) -> None:
    config = of_family("qwen2", use_sliding_window=False, sliding_window=16, max_window_layers=0)

    assert spec_of(tmp_path, config).windows == (None, None, None)


def test_qwen3_has_windows_where_layer_types_says_so(tmp_path: Path) -> None:
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    config = of_family("qwen3", use_sliding_window=True, sliding_window=16, layer_types=types)

    assert spec_of(tmp_path, config).windows == (16, None, 16)


def test_qwen3_has_its_own_head_size(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, of_family("qwen3"))

    assert (spec.head_dim, spec.qk_norm) == (128, "rms")


def test_granite_reads_its_multipliers(tmp_path: Path) -> None:
    spec = spec_of(
        tmp_path,
        of_family(
            "granite", embedding_multiplier=12, residual_multiplier=0.22, attention_multiplier=0.015, logits_scaling=8
        ),
    )

    assert (spec.embedding_scale, spec.residual_scale) == (12.0, 0.22)
    assert (spec.attention_scale, spec.logits_scale) == (0.015, 0.125)


def test_biases_follow_the_config(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, {**LLAMA, "attention_bias": True, "mlp_bias": True})
    names = {parameter.name for parameter in parameters_of(spec)}

    assert {"layers.0.qkv_bias", "layers.0.o_bias", "layers.0.gate_up_bias", "layers.0.down_bias"} <= names


def test_a_tied_head_is_not_a_parameter(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, {**LLAMA, "tie_word_embeddings": True})

    assert "head" not in {parameter.name for parameter in parameters_of(spec)}


def test_fused_projections_become_pieces(tmp_path: Path) -> None:
    parameters = {p.name: p for p in parameters_of(spec_of(tmp_path, of_family("phi3")))}

    pieces = parameters["layers.1.qkv"].pieces
    assert [(piece.tensor, piece.stored.start, piece.rows) for piece in pieces] == [
        ("model.layers.1.self_attn.qkv_proj.weight", 0, 32),
        ("model.layers.1.self_attn.qkv_proj.weight", 32, 16),
        ("model.layers.1.self_attn.qkv_proj.weight", 48, 16),
    ]
    assert pieces[0].tensor_shape == (64, 32)


# What cannot be served


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["MambaForCausalLM"], "model_type": "mamba"}, ["MambaForCausalLM", "llama"]),
        ({"architectures": ["LlamaForSequenceClassification"]}, ["LlamaForSequenceClassification"]),
        ({"model_type": None, "architectures": None}, ["None", "llama"]),
        ({"hidden_act": "xielu"}, ["xielu", "silu"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ["quantization_config"]),
        ({"is_causal": False}, ["is_causal = False"]),
        ({"torch_dtype": "float8_e4m3fn"}, ["float8_e4m3fn", "bfloat16"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers", "0"]),
        ({"hidden_size": 33}, ["33", "4"]),
        ({"num_key_value_heads": 3}, ["4", "3"]),
        ({"eos_token_id": "</s>"}, ["eos_token_id"]),
        ({"attention_bias": "yes"}, ["attention_bias", "true or false"]),
        ({"rms_norm_eps": "small"}, ["rms_norm_eps"]),
    ],
)
def test_a_config_that_cannot_be_served_is_refused(changes: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    sentence = sentence_of(tmp_path, {**LLAMA, **changes})

    assert [word for word in words if word not in sentence] == []


@pytest.mark.parametrize(
    ("family", "key"),
    [
        ("bloom", "apply_residual_connection_post_layernorm"),
        ("gemma2", "use_bidirectional_attention"),
        ("gpt2", "scale_attn_by_inverse_layer_idx"),
        ("gpt2", "add_cross_attention"),
        ("gpt_bigcode", "add_cross_attention"),
        ("mpt", "logit_scale"),
        ("opt", "_remove_final_layer_norm"),
    ],
)
def test_unsupported_features_of_a_class_are_refused(family: str, key: str, tmp_path: Path) -> None:
    assert f"{key} = True is not supported" in sentence_of(tmp_path, of_family(family, **{key: True}))
    assert spec_of(tmp_path, of_family(family, **{key: False})).family == family


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("codegen", {"num_attention_heads": 6, "hidden_size": 96, "rotary_dim": 8}, ["n_head 6", "multiple of 4"]),
        ("gpt_neo", {"attention_types": [[["global", "wide"], 1]]}, ["attention_types", "wide"]),
        ("gpt_neo", {"attention_types": "global"}, ["attention_types", "'global'"]),
        ("smollm3", {"no_rope_layers": [0, 2]}, ["no_rope_layers [0, 2]"]),
        ("gptj", {"rotary_dim": 7}, ["cannot rotate 7"]),
        ("mpt", {"attn_config": {"alibi": False}}, ["attn_config.alibi = False"]),
        ("mpt", {"attn_config": {"clip_qkv": -1}}, ["attn_config.clip_qkv is -1"]),
        ("mpt", {"attn_config": ["alibi"]}, ["attn_config", "must be an object"]),
        ("opt", {"do_layer_norm_before": False}, ["do_layer_norm_before = False"]),
        ("opt", {"word_embed_proj_dim": 16}, ["word_embed_proj_dim 16"]),
    ],
)
def test_what_a_family_cannot_do_is_refused_with_its_value(
    family: str, changes: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    sentence = sentence_of(tmp_path, of_family(family, **changes))

    assert [word for word in words if word not in sentence] == []


def test_the_readme_lists_the_families() -> None:
    readme = " ".join((Path(__file__).parents[3] / "README.md").read_text().split())

    assert f"float16: {', '.join(sorted(FAMILIES))}." in readme


@pytest.mark.parametrize("family", ["gpt_neox", "phi"])
def test_shapes_follow_an_explicit_head_size(family: str, tmp_path: Path) -> None:
    shapes = [
        {p.name: p.pieces[0].tensor_shape for p in parameters_of(spec_of(tmp_path, of_family(family, head_dim=size)))}
        for size in (8, 16)
    ]

    assert spec_of(tmp_path, of_family(family)).head_dim == 8
    assert shapes[0]["layers.0.qkv"] != shapes[1]["layers.0.qkv"]


@pytest.mark.parametrize(
    ("window", "types", "expected"),
    [(None, "full_attention", None), (16, "sliding_attention", 16)],
)
def test_mistral_accepts_layer_types_that_agree_with_its_window(
    window: int | None, types: str, expected: int | None, tmp_path: Path
) -> None:
    config = of_family("mistral", layer_types=[types] * 3, sliding_window=window)

    assert spec_of(tmp_path, config).windows == (expected,) * 3


@pytest.mark.parametrize("window", [None, 16])
def test_mistral_refuses_layer_types_that_disagree_with_its_window(window: int | None, tmp_path: Path) -> None:
    types = ["full_attention", "sliding_attention", "full_attention"]

    assert "layer_types" in sentence_of(tmp_path, of_family("mistral", layer_types=types, sliding_window=window))


def test_a_missing_directory_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere is not a directory"):
        read_spec(tmp_path / "nowhere")


def test_a_missing_config_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json"):
        read_spec(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", "\xff"])
def test_a_broken_config_is_refused_by_name(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))

    with pytest.raises(ModelError, match=r"config\.json"):
        read_spec(tmp_path)


@pytest.mark.parametrize(
    ("model_type", "end"),
    [("qwen3_next", " The nearest by name: qwen3_moe and qwen3."), ("mamba", ", starcoder2.")],
)
def test_an_unknown_model_type_is_refused_with_the_nearest_ones(model_type: str, end: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="architecture Other has no native engine") as failure:
        spec_of(tmp_path, {"model_type": model_type, "architectures": ["Other"]})

    assert str(failure.value).endswith(end)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"num_experts_per_tok": 9}, "num_experts_per_tok is 9, but the model has 8 experts"),
        ({"num_local_experts": 0}, "num_local_experts is 0, but must be a positive integer"),
    ],
)
def test_experts_that_cannot_be_chosen_are_refused(changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=problem):
        spec_of(tmp_path, of_family("mixtral", **changes))


@pytest.mark.parametrize(
    ("family", "changes", "problem"),
    [
        ("gpt_oss", {"swiglu_limit": 5}, "swiglu_limit = 5 is not supported"),
        (
            "gpt_oss",
            {"quantization_config": {"quant_method": "mxfp4"}},
            "quantization_config = .*mxfp4.* not supported",
        ),
        ("phimoe", {"num_experts_per_tok": 4}, "num_experts_per_tok is 4, but the router of this family chooses 2"),
        ("ernie4_5_moe", {"moe_norm_min": 0.5}, "moe_norm_min = 0.5 is not supported"),
        ("glm4_moe", {"n_group": 7}, "128 experts cannot be divided into 7 groups"),
        ("glm4_moe", {"n_group": 64, "topk_group": 2}, "2 of 64 groups .* do not hold 8 experts"),
        ("qwen2_moe", {"mlp_only_layers": 3}, "mlp_only_layers is 3, but must be a list of integers"),
        ("olmo3", {"rope_parameters": [1]}, "must be an object for each type of layer"),
    ],
)
def test_values_that_a_family_lacks_are_refused_by_name(
    family: str, changes: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=problem):
        spec_of(tmp_path, of_family(family, **changes))
