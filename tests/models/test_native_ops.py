"""Attention and its plans against a naive reference, whatever the rows, windows and limits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tgis_server.engines.native.attention_plan import AttentionPlanner, TokenRow
from tgis_server.engines.native.kv_cache import KvCache

from tgis_server.engines.native import attention_plan
from tgis_server.engines.native.ops.api import Heads
from tgis_server.engines.native.ops.reference import TorchOps
from tgis_server.engines.sampling.staging import Staging

CPU = torch.device("cpu")
HEADS = Heads(num_heads=4, num_kv_heads=2, head_dim=8, rotary_dim=8)
BLOCK = 4
SCALE = 0.3


@contextmanager
def limits(**values: int) -> Iterator[None]:
    """Other limits of the planner, so that small cases cross them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setattr(attention_plan, name, value)
        yield


def naive(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, position: int, window: int | None):
    """One query of all heads against the keys at positions 0 to ``position``, in float64."""
    first = 0 if window is None else max(0, position - window + 1)
    out = []
    for head in range(HEADS.num_heads):
        group = head // (HEADS.num_heads // HEADS.num_kv_heads)
        scores = keys[first : position + 1, group].double() @ queries[head].double() * SCALE
        out.append(scores.softmax(0) @ values[first : position + 1, group].double())
    return torch.cat(out)


ROW = st.tuples(st.integers(0, 40), st.integers(1, 20))  # start, tokens


@settings(deadline=None, max_examples=60)
@given(
    st.lists(ROW, min_size=1, max_size=6),
    st.sampled_from([None, 1, 5, 13]),
    st.sampled_from([1, 2000, 1 << 30]),
    st.sampled_from([16, 300, 1 << 30]),
    st.integers(0, 1000),
)
def test_every_token_attends_to_what_it_should(
    shapes: list[tuple[int, int]], window: int | None, gathered: int, mask: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    cache = KvCache(1, 100, HEADS.num_kv_heads, BLOCK, HEADS.head_dim, torch.float32, CPU)
    cache.layers[0].normal_(generator=generator)  # what other sequences left behind
    staging = Staging(CPU)
    planner = AttentionPlanner([window], cache, torch.float32, staging)
    free = torch.randperm(100, generator=generator).tolist()
    ops = TorchOps(CPU, torch.float32)
    tables = [np.array([free.pop() for _ in range(-(-(start + count) // BLOCK))]) for start, count in shapes]
    contents = [torch.randn(start + count, 2, 2, 8, generator=generator) for start, count in shapes]
    for table, content in zip(tables, contents, strict=True):
        for position, (keys, values) in enumerate(content):
            cache.layers[0][table[position // BLOCK], :, :, position % BLOCK] = torch.stack([keys, values])

    singles = [i for i, (_, count) in enumerate(shapes) if count == 1]
    with limits(MAX_GATHERED_BYTES=gathered, MAX_MASK_ELEMENTS=mask, FREE_PADDING_BLOCKS=2):
        order = planner.order_singles(singles, [shapes[i][0] for i in singles])
        order = order + [i for i, (_, count) in enumerate(shapes) if count > 1]
        rows = [TokenRow(i, *shapes[i], tables[i]) for i in order]
        plan = planner.plan(rows, len(singles))[window]
    queries = [torch.randn(shapes[i][1], 4, 8, generator=generator) for i in order]
    qkv = torch.cat(
        [
            torch.cat([q.flatten(1), contents[i][shapes[i][0] :].flatten(1)], 1)
            for q, i in zip(queries, order, strict=True)
        ]
    )

    ours = ops.attend(qkv, HEADS, cache.layers[0], plan, SCALE)

    theirs = [
        naive(q[n], contents[i][:, 0], contents[i][:, 1], shapes[i][0] + n, window)
        for q, i in zip(queries, order, strict=True)
        for n in range(shapes[i][1])
    ]
    assert torch.allclose(ours.double(), torch.stack(theirs), atol=1e-5)


def test_keys_and_values_land_in_their_blocks() -> None:
    cache = KvCache(1, 6, HEADS.num_kv_heads, BLOCK, HEADS.head_dim, torch.float32, CPU)
    planner = AttentionPlanner([None], cache, torch.float32, Staging(CPU))
    ops = TorchOps(CPU, torch.float32)
    qkv = torch.randn(3, (4 + 2 * 2) * 8)
    identity = torch.stack([torch.ones(3, 8), torch.zeros(3, 8)], 1)
    block, offset = torch.tensor([5, 5, 2]), torch.tensor([2, 3, 0])
    places = block * (2 * 2 * BLOCK) + offset

    ops.prepare_qkv(qkv.clone(), HEADS, identity, None, 1e-5, cache.layers[0], planner.cache_rows(places))

    written = cache.layers[0][block, :, :, offset]  # (tokens, 2, kv heads, head dim)
    assert torch.equal(written.flatten(1), qkv[:, 32:])
    assert int(cache.layers[0].count_nonzero()) == 3 * 2 * 2 * 8


def test_rotation_turns_pairs_of_dimensions() -> None:
    cache = KvCache(1, 1, HEADS.num_kv_heads, BLOCK, HEADS.head_dim, torch.float32, CPU)
    planner = AttentionPlanner([None], cache, torch.float32, Staging(CPU))
    angles = torch.tensor([0.3, 0.5, 0.7, 1.1])
    cos, sin = angles.cos(), angles.sin()
    rotation = torch.stack([torch.cat([cos, cos]), torch.cat([-sin, sin])])[None]
    qkv = torch.randn(1, 64)
    heads = torch.view_as_complex(qkv[0, :48].view(6, 2, 4).transpose(1, 2).contiguous())
    expected = torch.view_as_real(heads * torch.polar(torch.ones(4), angles)).transpose(1, 2).reshape(48)

    rows = planner.cache_rows(torch.tensor([0]))
    ours = TorchOps(CPU, torch.float32).prepare_qkv(qkv.clone(), HEADS, rotation, None, 1e-5, cache.layers[0], rows)

    assert torch.allclose(ours[0, :48], expected, atol=1e-6)
    assert torch.equal(ours[0, 48:], qkv[0, 48:])


def test_infinite_half_precision_keys_do_not_stay_in_the_cache() -> None:
    """A masked infinity would become NaN in whatever sequence reuses the block."""
    cache = KvCache(1, 1, HEADS.num_kv_heads, BLOCK, HEADS.head_dim, torch.float16, CPU)
    planner = AttentionPlanner([None], cache, torch.float16, Staging(CPU))
    qkv = torch.full((1, 64), math.inf, dtype=torch.float16)
    identity = torch.stack([torch.ones(1, 8), torch.zeros(1, 8)], 1).half()

    TorchOps(CPU, torch.float16).prepare_qkv(
        qkv, HEADS, identity, None, 1e-5, cache.layers[0], planner.cache_rows(torch.tensor([0]))
    )

    assert bool(cache.layers[0].isfinite().all())


def test_an_unused_cache_takes_no_memory_and_is_zero() -> None:
    cache = KvCache(2, 1000, 2, 16, 64, torch.bfloat16, CPU)

    assert [layer.shape for layer in cache.layers] == [(1000, 2, 2, 16, 64)] * 2
    assert int(cache.layers[1].count_nonzero()) == 0
