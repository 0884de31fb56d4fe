"""Attention of the ops against dense attention in a few lines, whatever the rows, modifiers and limits.

Nothing here knows how an implementation keeps keys and values: they are written and read through ``Ops`` alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.t5.modeling_t5 import T5Attention

from tgis_server.engines.native.ops.api import AttentionModifiers, CacheShape, Heads, RelativeBias, StepRows
from tgis_server.engines.native.ops.reference import TorchOps
from tgis_server.engines.native.ops.torch_attention import plan as torch_plan

CPU = torch.device("cpu")
HEADS = Heads(num_heads=4, num_kv_heads=2, head_dim=8, rotary_dim=8)
KV_SIZE = 2 * 2 * 8  # keys and values of a token
BLOCK, NUM_BLOCKS = 4, 120
MAX_BLOCKS = 20  # of one sequence
SCALE = 0.3

SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625])
SINKS = torch.tensor([0.7, -1.0, 2.0, 0.0])
BUCKETS = torch.tensor(np.random.default_rng(1).normal(size=(8, 4)), dtype=torch.float32)


def modifiers(**values: object) -> AttentionModifiers:
    return AttentionModifiers(SCALE, **values)  # type: ignore[arg-type]


CAUSAL = {
    "plain": modifiers(),
    "window of one": modifiers(window=1),
    "window": modifiers(window=13),
    "soft cap": modifiers(soft_cap=0.5),
    "soft cap and window": modifiers(soft_cap=0.5, window=5),
    "sinks": modifiers(sinks=SINKS),
    "sinks and window": modifiers(sinks=SINKS, window=5),
    "ALiBi": modifiers(alibi_slopes=SLOPES),
    "ALiBi and window": modifiers(alibi_slopes=SLOPES, window=13),
    "relative bias": modifiers(relative_bias=RelativeBias(BUCKETS, 20, is_bidirectional=False)),
    "all": modifiers(
        window=13,
        soft_cap=0.5,
        alibi_slopes=SLOPES,
        relative_bias=RelativeBias(BUCKETS, 20, is_bidirectional=False),
        sinks=SINKS,
    ),
}
BOTH_WAYS = {
    "both ways": modifiers(is_causal=False),
    "both ways, window": modifiers(is_causal=False, window=5),
    "both ways, soft cap": modifiers(is_causal=False, soft_cap=0.5),
    "both ways, sinks": modifiers(is_causal=False, sinks=SINKS),
    "both ways, relative bias": modifiers(
        is_causal=False, relative_bias=RelativeBias(BUCKETS, 20, is_bidirectional=True)
    ),
}
KINDS = {**CAUSAL, **BOTH_WAYS}
CROSS = {name: kind for name, kind in BOTH_WAYS.items() if kind.window is None and kind.relative_bias is None}


@contextmanager
def limits(**values: int) -> Iterator[None]:
    """Other limits of the reference's plans, so that small cases cross them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setattr(torch_plan, name, value)
        yield


LIMITS = st.builds(
    lambda gathered, mask, held, queries: limits(
        MAX_GATHERED_BYTES=gathered,
        MAX_MASK_ELEMENTS=mask,
        MAX_HELD_ELEMENTS=held,
        MIN_WINDOW_QUERIES=queries,
        FREE_PADDING_BLOCKS=2,
    ),
    st.sampled_from([1, 2000, 1 << 30]),
    st.sampled_from([16, 300, 1 << 30]),
    st.sampled_from([0, 500, 1 << 30]),
    st.sampled_from([1, 64]),
)


def dense(queries: Tensor, keys: Tensor, values: Tensor, first: int, kind: AttentionModifiers) -> Tensor:
    """Attention of (queries, H, D) at positions from ``first`` on over all (keys, K, D) of a row, in float64."""
    keys, values = (x.repeat_interleave(HEADS.num_heads // HEADS.num_kv_heads, 1).double() for x in (keys, values))
    distance = torch.arange(len(keys))[None] - torch.arange(first, first + len(queries))[:, None]
    scores = torch.einsum("qhd,khd->hqk", queries.double(), keys) * SCALE
    if kind.soft_cap:
        scores = torch.tanh(scores / kind.soft_cap) * kind.soft_cap
    if kind.alibi_slopes is not None:
        scores = scores + kind.alibi_slopes.double()[:, None, None] * distance
    if kind.relative_bias is not None:
        relative = kind.relative_bias
        buckets = T5Attention._relative_position_bucket(
            distance, relative.is_bidirectional, len(relative.table), relative.max_distance
        )
        scores = scores + relative.table.double()[buckets].permute(2, 0, 1)
    if kind.is_causal:
        scores = scores.masked_fill(distance > 0, -math.inf)
    if kind.window is not None:
        scores = scores.masked_fill(distance.abs() >= kind.window, -math.inf)
    if kind.sinks is not None:
        scores = torch.cat([scores, kind.sinks.double()[:, None, None].expand(-1, len(queries), 1)], -1)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1)[..., : len(keys)], values).flatten(1)


class Slots:
    """A cache and the block tables of some slots; what no slot has written is NaN."""

    def __init__(self, num_slots: int, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.ops = TorchOps(CPU, torch.float32)
        self.cache = self.ops.make_cache(CacheShape(2, NUM_BLOCKS, BLOCK, HEADS))
        self.tables = torch.arange(NUM_BLOCKS)[None]
        self.write([0], [NUM_BLOCKS * BLOCK], torch.full((NUM_BLOCKS * BLOCK, KV_SIZE), math.nan))
        self.tables = torch.randperm(NUM_BLOCKS, generator=self.generator)[: num_slots * MAX_BLOCKS].view(num_slots, -1)

    def random(self, *size: int) -> Tensor:
        return torch.randn(size, generator=self.generator)

    def rows(self, slots: list[int], starts: list[int], counts: list[int], cross: list[int] | None = None) -> StepRows:
        """``cross``: of each slot, how many keys its table holds."""
        token_slots = [slot for slot, count in zip(slots, counts, strict=True) for _ in range(count)]
        positions = [p for start, count in zip(starts, counts, strict=True) for p in range(start, start + count)]
        lengths = torch.zeros(len(self.tables), dtype=torch.int64)
        lengths[slots] = torch.tensor(starts if cross is None else [cross[slot] for slot in slots])
        num_keys = np.array(starts) + np.array(counts) if cross is None else lengths[slots].numpy()
        return StepRows(
            np.array(starts),
            np.array(counts),
            num_keys,
            torch.tensor(slots),
            torch.tensor(token_slots),
            torch.tensor(positions),
            self.tables,
            lengths,
            is_cross=cross is not None,
        )

    def write(self, slots: list[int], counts: list[int], keys_values: Tensor) -> None:
        """Keys and values of each slot's first tokens, in the second layer."""
        plan = self.ops.plan_attention(self.rows(slots, [0] * len(slots), counts), self.cache, [])
        self.ops.write_keys_values(keys_values, self.cache, 1, plan)

    def order(self, counts: list[int], num_keys: list[int]) -> list[int]:
        """As a step's rows have to stand: those of one token first."""
        singles = [slot for slot, count in enumerate(counts) if count == 1]
        order = self.ops.order_singles(np.array([num_keys[slot] for slot in singles], dtype=np.int64), self.cache)
        singles = singles if order is None else [singles[i] for i in order]
        return singles + [slot for slot, count in enumerate(counts) if count > 1]


ROW = st.tuples(st.integers(0, 40), st.integers(1, 20))  # start, tokens
SHAPES = st.lists(ROW, min_size=1, max_size=6)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@settings(deadline=None, max_examples=12)
@given(SHAPES, LIMITS, st.integers(0, 1000))
def test_every_token_attends_to_what_it_should(
    kind: AttentionModifiers, shapes: list[tuple[int, int]], limits: object, seed: int
) -> None:
    slots = Slots(len(shapes), seed)
    starts, counts = [start for start, _ in shapes], [count for _, count in shapes]
    contents = [slots.random(start + count, KV_SIZE) for start, count in shapes]
    before = [slot for slot, start in enumerate(starts) if start > 0]
    if before:
        slots.write(before, [starts[s] for s in before], torch.cat([contents[s][: starts[s]] for s in before]))

    order = slots.order(counts, [start + 1 for start in starts])
    queries = [slots.random(count, 4, 8) for count in counts]
    tokens = [torch.cat([queries[slot].flatten(1), contents[slot][starts[slot] :]], 1) for slot in order]
    rows = slots.rows(order, [starts[slot] for slot in order], [counts[slot] for slot in order])
    with limits:  # type: ignore[attr-defined]
        plan = slots.ops.plan_attention(rows, slots.cache, [kind])
        qkv = slots.ops.prepare_qkv(torch.cat(tokens), HEADS, None, None, slots.cache, 1, plan)
        ours = slots.ops.attend(qkv, HEADS, slots.cache, 1, plan, kind)

    theirs = [dense(queries[slot], *contents[slot].view(-1, 2, 2, 8).unbind(1), starts[slot], kind) for slot in order]
    assert torch.allclose(ours.double(), torch.cat(theirs), atol=1e-5)


@pytest.mark.parametrize("kind", CROSS.values(), ids=CROSS)
@settings(deadline=None, max_examples=12)
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 9), st.integers(1, 5)), max_size=6, min_size=1), LIMITS)
def test_rows_attend_to_all_of_an_encoder_s_tokens(
    kind: AttentionModifiers, shapes: list[tuple[int, int, int]], limits: object
) -> None:
    slots = Slots(len(shapes), 1)
    encoded, starts, counts = [[shape[i] for shape in shapes] for i in range(3)]
    contents = [slots.random(length, KV_SIZE) for length in encoded]
    slots.write(list(range(len(shapes))), encoded, torch.cat(contents))

    order = slots.order(counts, encoded)
    queries = [slots.random(count, 4, 8) for count in counts]
    with limits:  # type: ignore[attr-defined]
        rows = slots.rows(order, [starts[slot] for slot in order], [counts[slot] for slot in order], cross=encoded)
        plan = slots.ops.plan_attention(rows, slots.cache, [kind])
        q = torch.cat([queries[slot] for slot in order]).flatten(1)
        ours = slots.ops.attend(q, HEADS, slots.cache, 1, plan, kind)

    theirs = [dense(queries[slot], *contents[slot].view(-1, 2, 2, 8).unbind(1), 0, kind) for slot in order]
    assert torch.allclose(ours.double(), torch.cat(theirs), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@settings(deadline=None, max_examples=10)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), LIMITS)
def test_whole_sequences_attend_within_themselves(kind: AttentionModifiers, lengths: list[int], limits: object) -> None:
    ops = TorchOps(CPU, torch.float32)
    sequences = [torch.randn(length, 8, 8, generator=torch.Generator().manual_seed(length)) for length in lengths]

    with limits:  # type: ignore[attr-defined]
        plan = ops.plan_uncached_attention(lengths, HEADS, [kind])
        ours = ops.attend_uncached(torch.cat(sequences).flatten(1), HEADS, plan, kind)

    theirs = [dense(heads[:, :4], heads[:, 4:6], heads[:, 6:], 0, kind) for heads in sequences]
    assert torch.allclose(ours.double(), torch.cat(theirs), atol=1e-5)


def test_layers_that_differ_in_scale_or_sinks_alone_share_what_a_plan_holds() -> None:
    slots = Slots(1, 1)
    kinds = [modifiers(sinks=SINKS, window=5), modifiers(sinks=SINKS + 1, window=5), modifiers(sinks=SINKS)]

    views = slots.ops.plan_attention(slots.rows([0], [7], [1]), slots.cache, kinds).views

    assert views[kinds[0]] is views[kinds[1]]
    assert views[kinds[0]] is not views[kinds[2]]


def test_masks_of_long_prompts_take_bounded_memory() -> None:
    """With a bias there is one for each head."""
    kind = modifiers(alibi_slopes=SLOPES)

    with limits(MAX_MASK_ELEMENTS=2000, MAX_HELD_ELEMENTS=9000):
        plan = TorchOps(CPU, torch.bfloat16).plan_uncached_attention([40] * 3, HEADS, [kind])

    masks = [view.mask for view in plan.views[kind].chunks]
    held = sum(mask.numel() for mask in masks if isinstance(mask, Tensor))
    assert 0 < held <= 9000 < 3 * 40**2 * HEADS.num_heads


def test_rotation_turns_pairs_of_dimensions() -> None:
    slots = Slots(1, 1)
    angles = torch.tensor([0.3, 0.5, 0.7, 1.1])
    cos, sin = angles.cos(), angles.sin()
    rotation = torch.stack([torch.cat([cos, cos]), torch.cat([-sin, sin])])[None]
    qkv = torch.randn(1, 64)
    heads = torch.view_as_complex(qkv[0, :48].view(6, 2, 4).transpose(1, 2).contiguous())
    expected = torch.view_as_real(heads * torch.polar(torch.ones(4), angles)).transpose(1, 2).reshape(48)

    plan = slots.ops.plan_attention(slots.rows([0], [0], [1]), slots.cache, [])
    ours = slots.ops.prepare_qkv(qkv.clone(), HEADS, rotation, None, slots.cache, 1, plan)

    assert torch.allclose(ours[0, :48], expected, atol=1e-6)
    assert torch.equal(ours[0, 48:], qkv[0, 48:])


def test_infinite_half_precision_keys_do_not_stay_in_the_cache() -> None:
    """A masked infinity would become NaN in whatever sequence reuses the block."""
    ops = TorchOps(CPU, torch.float16)
    cache = ops.make_cache(CacheShape(1, MAX_BLOCKS, BLOCK, HEADS))
    slots = Slots(1, 1)
    slots.tables = torch.arange(MAX_BLOCKS)[None]

    plan = ops.plan_attention(slots.rows([0], [0], [1]), cache, [])
    ops.write_keys_values(torch.full((1, KV_SIZE), math.inf, dtype=torch.float16), cache, 0, plan)

    assert bool(cache.layers[0].isfinite().all())


def test_an_unused_cache_takes_no_memory_and_is_zero() -> None:
    cache = TorchOps(CPU, torch.bfloat16).make_cache(CacheShape(2, 1000, 16, Heads(9, 2, 64, 64)))

    assert [layer.shape for layer in cache.layers] == [(1000, 16, 2, 2, 64)] * 2
    assert int(cache.layers[1].count_nonzero()) == 0
