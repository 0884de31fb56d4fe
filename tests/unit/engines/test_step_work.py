"""What a step reads and computes, for the demo model and for shares of it."""

from __future__ import annotations

import json

import pytest

from tgis_cli.model_files import DEMO_MODEL_DIR
from tgis_server.engines.catalogue import NATIVE
from tgis_server.engines.door import StepWork

CONFIG = json.loads((DEMO_MODEL_DIR / "config.json").read_text())
HIDDEN, INNER, LAYERS, VOCAB = (
    CONFIG[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
)
HEADS, KV_HEADS, HEAD_DIM = (CONFIG[name] for name in ("num_attention_heads", "num_key_value_heads", "head_dim"))


def step_work(rank: int, num_shard: int) -> StepWork:
    sizes = NATIVE.door.inspect(DEMO_MODEL_DIR, num_shard).sizes
    assert sizes is not None
    return sizes.step_work(rank, num_shard, "bfloat16")


def test_a_tied_head_is_read_and_multiplied_once():
    linear = LAYERS * (HIDDEN * (2 * HEADS + 2 * KV_HEADS) * HEAD_DIM + 3 * HIDDEN * INNER)
    norms = (2 * LAYERS + 1) * HIDDEN

    assert step_work(0, 1) == StepWork(
        weight_bytes=2 * (linear + norms + VOCAB * HIDDEN),
        token_flops=2 * linear,
        head_flops=2 * VOCAB * HIDDEN,
        layer_kv_bytes=2 * 2 * KV_HEADS * HEAD_DIM,
        layer_pair_flops=4 * HEADS * HEAD_DIM,
        windows=(None,) * LAYERS,
    )


@pytest.mark.parametrize("name", ["token_flops", "head_flops", "layer_kv_bytes", "layer_pair_flops"])
def test_shards_divide_the_work(name: str):
    parts = [getattr(step_work(rank, 2), name) for rank in range(2)]

    assert sum(parts) == getattr(step_work(0, 1), name)
