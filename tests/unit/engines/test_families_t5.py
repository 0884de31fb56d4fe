"""From T5's config.json to the spec of an encoder and a decoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tgis_server.engines.native.checkpoint.inspect import check_num_shard
from tgis_server.engines.native.door import summarize, summarize_spec
from tgis_server.engines.native.families import ALL_FAMILIES, read_spec
from tgis_server.engines.native.spec import EncoderDecoderSpec, RelativePositions
from tgis_server.errors import ModelError, UsageError
from tgis_server.model_files import Length

CONFIG: dict[str, Any] = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "vocab_size": 100,
    "d_model": 16,
    "d_kv": 6,
    "d_ff": 24,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "n_positions": 512,
    "decoder_start_token_id": 0,
}


def spec_of(directory: Path, **changes: Any) -> EncoderDecoderSpec:
    (directory / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    spec = read_spec(directory, ALL_FAMILIES)
    assert isinstance(spec, EncoderDecoderSpec)
    return spec


def test_a_config_becomes_an_encoder_and_a_decoder(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)

    assert (spec.num_layers, spec.encoder.num_layers) == (2, 3)
    assert (spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.attention_scale) == (4, 4, 6, 1.0)
    assert spec.positions == spec.encoder.positions == RelativePositions(num_buckets=32, max_distance=128)
    assert (spec.start_id, spec.eos_ids) == (0, (1,))
    assert spec.length == Length(512, "n_positions of config.json")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("relu", ("relu", False)),
        ("gated-gelu", ("gelu_tanh", True)),
        ("gated-silu", ("silu", True)),
        ("gelu", ("gelu", False)),
    ],
)
def test_feed_forward_proj_names_the_mlp(name: str, expected: tuple[str, bool], tmp_path: Path) -> None:
    spec = spec_of(tmp_path, feed_forward_proj=name)

    assert (spec.activation, spec.is_mlp_gated) == expected
    assert (spec.encoder.activation, spec.encoder.is_mlp_gated) == expected


@pytest.mark.parametrize("name", ["gated-", "other-relu", "gated-gated-relu", "mish", 3])
def test_an_unknown_mlp_is_refused(name: object, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"feed_forward_proj .* is not supported; the supported values are silu"):
        spec_of(tmp_path, feed_forward_proj=name)


@pytest.mark.parametrize(
    ("stated", "is_scaled"),
    [
        ({}, True),
        ({"tie_word_embeddings": False}, False),
        (
            {"tie_word_embeddings": True, "scale_decoder_outputs": False},
            False,
        ),  # T5 version 1.1, as written by transformers 5
    ],
)
def test_a_head_that_is_the_embedding_is_scaled(stated: dict[str, Any], is_scaled: bool, tmp_path: Path) -> None:
    assert spec_of(tmp_path, **stated).logits_scale == (0.25 if is_scaled else 1.0)


def test_the_number_of_shards_must_divide_the_heads(tmp_path: Path) -> None:
    check_num_shard(spec_of(tmp_path), 4)

    with pytest.raises(UsageError):
        check_num_shard(spec_of(tmp_path), 3)


def test_commands_refuse_t5(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)

    with pytest.raises(ModelError, match="architecture T5ForConditionalGeneration has no native engine"):
        summarize(tmp_path)

    assert summarize_spec(tmp_path, spec).kind == "encoder_decoder"
