"""Attention of the ops, compared with a few lines of dense attention, for any rows, modifiers and limits.

The tests access keys and values only through ``Ops``, so they work for any implementation's layout.
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

from implementations import IMPLEMENTATIONS, REFERENCE, make_ops
from tgis_server.engines.native.ops.api import AttentionModifiers, CacheShape, Heads, RelativeBias, StepRows
from tgis_server.engines.native.ops.reference import TorchOps
from tgis_server.engines.native.ops.torch_attention import plan as torch_plan

CPU = torch.device("cpu")
HEADS = Heads(num_heads=4, num_kv_heads=2, head_dim=8, rotary_dim=8)
KV_SIZE = 2 * 2 * 8  # elements of a token's keys and values
BLOCK, NUM_BLOCKS = 4, 120
MAX_BLOCKS = 20  # of one sequence
SCALE = 0.3

SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625])
SINKS = torch.tensor([0.7, -1.0, 2.0, 0.0])
BUCKETS = torch.tensor(np.random.default_rng(1).normal(size=(8, 4)), dtype=torch.float32)


def attending(**values: object) -> AttentionModifiers:
    return AttentionModifiers(SCALE, **values)  # type: ignore[arg-type]


CAUSAL = {
    "plain": attending(),
    "window of one": attending(window=1),
    "window": attending(window=13),
    "soft cap": attending(soft_cap=0.5),
    "soft cap and window": attending(soft_cap=0.5, window=5),
    "sinks": attending(sinks=SINKS),
    "sinks and window": attending(sinks=SINKS, window=5),
    "ALiBi": attending(alibi_slopes=SLOPES),
    "ALiBi and window": attending(alibi_slopes=SLOPES, window=13),
    "relative bias": attending(relative_bias=RelativeBias(BUCKETS, 20, is_bidirectional=False)),
    "all": attending(
        window=13,
        soft_cap=0.5,
        alibi_slopes=SLOPES,
        relative_bias=RelativeBias(BUCKETS, 20, is_bidirectional=False),
        sinks=SINKS,
    ),
}
BOTH_WAYS = {
    "both ways": attending(is_causal=False),
    "both ways, window": attending(is_causal=False, window=5),
    "both ways, soft cap": attending(is_causal=False, soft_cap=0.5),
    "both ways, sinks": attending(is_causal=False, sinks=SINKS),
    "both ways, relative bias": attending(
        is_causal=False, relative_bias=RelativeBias(BUCKETS, 20, is_bidirectional=True)
    ),
}
MODIFIERS = {**CAUSAL, **BOTH_WAYS}
CROSS = {
    name: modifiers
    for name, modifiers in BOTH_WAYS.items()
    if modifiers.window is None and modifiers.relative_bias is None
}


@contextmanager
def limits(**values: int) -> Iterator[None]:
    """Change limits of the reference's plans, so that small cases reach them."""
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


def dense(queries: Tensor, keys: Tensor, values: Tensor, first: int, modifiers: AttentionModifiers) -> Tensor:
    """Attention of (queries, H, D), the first at position ``first``, to all (keys, K, D) of a row, in float64."""
    keys, values = (x.repeat_interleave(HEADS.num_heads // HEADS.num_kv_heads, 1).double() for x in (keys, values))
    distance = torch.arange(len(keys))[None] - torch.arange(first, first + len(queries))[:, None]
    scores = torch.einsum("qhd,khd->hqk", queries.double(), keys) * SCALE
    if modifiers.soft_cap:
        scores = torch.tanh(scores / modifiers.soft_cap) * modifiers.soft_cap
    if modifiers.alibi_slopes is not None:
        scores = scores + modifiers.alibi_slopes.double()[:, None, None] * distance
    if modifiers.relative_bias is not None:
        relative = modifiers.relative_bias
        buckets = T5Attention._relative_position_bucket(
            distance, relative.is_bidirectional, len(relative.table), relative.max_distance
        )
        scores = scores + relative.table.double()[buckets].permute(2, 0, 1)
    if modifiers.is_causal:
        scores = scores.masked_fill(distance > 0, -math.inf)
    if modifiers.window is not None:
        scores = scores.masked_fill(distance.abs() >= modifiers.window, -math.inf)
    if modifiers.sinks is not None:
        scores = torch.cat([scores, modifiers.sinks.double()[:, None, None].expand(-1, len(queries), 1)], -1)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1)[..., : len(keys)], values).flatten(1)


class CachedSlots:
    """A cache and the block tables of some slots. Values that no slot has written are NaN."""

    def __init__(self, num_slots: int, seed: int, implementation: str = REFERENCE) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.ops = make_ops(implementation)
        self.cache = self.ops.make_cache(CacheShape(2, NUM_BLOCKS, BLOCK, HEADS))
        self.tables = torch.arange(NUM_BLOCKS)[None]
        self.write([0], [NUM_BLOCKS * BLOCK], torch.full((NUM_BLOCKS * BLOCK, KV_SIZE), math.nan))
        self.tables = torch.randperm(NUM_BLOCKS, generator=self.generator)[: num_slots * MAX_BLOCKS].view(num_slots, -1)

    def random(self, *size: int) -> Tensor:
        return torch.randn(size, generator=self.generator)

    def rows(self, slots: list[int], starts: list[int], counts: list[int], cross: list[int] | None = None) -> StepRows:
        """``cross``: the number of keys of each slot's encoder."""
        token_slots = [slot for slot, count in zip(slots, counts, strict=True) for _ in range(count)]
        positions = [p for start, count in zip(starts, counts, strict=True) for p in range(start, start + count)]
        lengths = None
        num_keys = np.array(starts) + np.array(counts)
        if cross is not None:
            lengths = torch.zeros(len(self.tables), dtype=torch.int64)
            lengths[slots] = torch.tensor([cross[slot] for slot in slots])
            num_keys = lengths[slots].numpy()
        return StepRows(
            np.array(starts),
            np.array(counts),
            num_keys,
            torch.tensor(slots),
            torch.tensor(token_slots),
            torch.tensor(positions),
            self.tables,
            lengths,
        )

    def write(self, slots: list[int], counts: list[int], keys_values: Tensor) -> None:
        """Write keys and values of each slot's first tokens in the second layer."""
        plan = self.ops.plan_attention(self.rows(slots, [0] * len(slots), counts), self.cache, [])
        self.ops.write_keys_values(keys_values, self.cache, 1, plan)

    def order(self, counts: list[int], num_keys: list[int]) -> list[int]:
        """The slots in the order of a step's rows: rows of one token first."""
        singles = [slot for slot, count in enumerate(counts) if count == 1]
        order = self.ops.order_singles(np.array([num_keys[slot] for slot in singles], dtype=np.int64), self.cache)
        singles = singles if order is None else [singles[i] for i in order]
        return singles + [slot for slot, count in enumerate(counts) if count > 1]


ROW = st.tuples(st.integers(0, 40), st.integers(1, 20))  # start, tokens
SHAPES = st.lists(ROW, min_size=1, max_size=6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("modifiers", MODIFIERS.values(), ids=MODIFIERS)
@settings(deadline=None, max_examples=12)
@given(SHAPES, LIMITS, st.integers(0, 1000))
def test_every_token_attends_to_the_keys_it_sees(
    modifiers: AttentionModifiers, implementation: str, shapes: list[tuple[int, int]], limits: object, seed: int
) -> None:
    slots = CachedSlots(len(shapes), seed, implementation)
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
        plan = slots.ops.plan_attention(rows, slots.cache, [modifiers])
        qkv = slots.ops.prepare_qkv(torch.cat(tokens), HEADS, None, None, slots.cache, 1, plan)
        ours = slots.ops.attend(qkv, HEADS, slots.cache, 1, plan, modifiers)

    theirs = [
        dense(queries[slot], *contents[slot].view(-1, 2, 2, 8).unbind(1), starts[slot], modifiers) for slot in order
    ]
    assert torch.allclose(ours.double(), torch.cat(theirs), atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("modifiers", CROSS.values(), ids=CROSS)
@settings(deadline=None, max_examples=12)
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 9), st.integers(1, 5)), max_size=6, min_size=1), LIMITS)
def test_rows_attend_to_all_tokens_of_an_encoder(
    modifiers: AttentionModifiers, implementation: str, shapes: list[tuple[int, int, int]], limits: object
) -> None:
    slots = CachedSlots(len(shapes), 1, implementation)
    encoded, starts, counts = [[shape[i] for shape in shapes] for i in range(3)]
    contents = [slots.random(length, KV_SIZE) for length in encoded]
    slots.write(list(range(len(shapes))), encoded, torch.cat(contents))

    order = slots.order(counts, encoded)
    queries = [slots.random(count, 4, 8) for count in counts]
    with limits:  # type: ignore[attr-defined]
        rows = slots.rows(order, [starts[slot] for slot in order], [counts[slot] for slot in order], cross=encoded)
        plan = slots.ops.plan_attention(rows, slots.cache, [modifiers])
        q = torch.cat([queries[slot] for slot in order]).flatten(1)
        ours = slots.ops.attend(q, HEADS, slots.cache, 1, plan, modifiers)

    theirs = [dense(queries[slot], *contents[slot].view(-1, 2, 2, 8).unbind(1), 0, modifiers) for slot in order]
    assert torch.allclose(ours.double(), torch.cat(theirs), atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("modifiers", MODIFIERS.values(), ids=MODIFIERS)
@settings(deadline=None, max_examples=10)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), LIMITS)
def test_uncached_sequences_attend_within_themselves(
    modifiers: AttentionModifiers, implementation: str, lengths: list[int], limits: object
) -> None:
    ops = make_ops(implementation)
    sequences = [torch.randn(length, 8, 8, generator=torch.Generator().manual_seed(length)) for length in lengths]

    with limits:  # type: ignore[attr-defined]
        plan = ops.plan_uncached_attention(lengths, HEADS, [modifiers])
        ours = ops.attend_uncached(torch.cat(sequences).flatten(1), HEADS, plan, modifiers)

    theirs = [dense(heads[:, :4], heads[:, 4:6], heads[:, 6:], 0, modifiers) for heads in sequences]
    assert torch.allclose(ours.double(), torch.cat(theirs), atol=1e-5)


def test_layers_that_differ_only_in_scale_or_sinks_share_views() -> None:
    slots = CachedSlots(1, 1)
    several = [attending(sinks=SINKS, window=5), attending(sinks=SINKS + 1, window=5), attending(sinks=SINKS)]

    views = slots.ops.plan_attention(slots.rows([0], [7], [1]), slots.cache, several).views

    assert views[several[0]] is views[several[1]]
    assert views[several[0]] is not views[several[2]]


def test_masks_of_long_prompts_take_bounded_memory() -> None:
    """With a bias, each head has its own mask."""
    modifiers = attending(alibi_slopes=SLOPES)

    with limits(MAX_MASK_ELEMENTS=2000, MAX_HELD_ELEMENTS=9000):
        plan = TorchOps(CPU, torch.bfloat16).plan_uncached_attention([40] * 3, HEADS, [modifiers])

    masks = [view.mask for view in plan.views[modifiers].chunks]
    held = sum(mask.numel() for mask in masks if isinstance(mask, Tensor))
    assert 0 < held <= 9000 < 3 * 40**2 * HEADS.num_heads


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_rotation_rotates_pairs_of_dimensions(implementation: str) -> None:
    slots = CachedSlots(1, 1, implementation)
    angles = torch.tensor([0.3, 0.5, 0.7, 1.1])
    cos, sin = angles.cos(), angles.sin()
    rotation = torch.stack([torch.cat([cos, cos]), torch.cat([-sin, sin])])[None]
    qkv = torch.randn(1, 64)
    heads = torch.view_as_complex(qkv[0, :48].view(6, 2, 4).transpose(1, 2).contiguous())
    expected = torch.view_as_real(heads * torch.polar(torch.ones(4), angles)).transpose(1, 2).reshape(48)

    plan = slots.ops.plan_attention(slots.rows([0], [0], [1]), slots.cache, [])
    turn = slots.ops.make_rotation(rotation, torch.tensor([0]))
    ours = slots.ops.prepare_qkv(qkv.clone(), HEADS, turn, None, slots.cache, 1, plan)

    assert torch.allclose(ours[0, :48], expected, atol=1e-6)
    assert torch.equal(ours[0, 48:], qkv[0, 48:])


def test_infinite_half_precision_keys_are_not_cached() -> None:
    """A masked infinity would become NaN in the next sequence that uses the block."""
    ops = TorchOps(CPU, torch.float16)
    cache = ops.make_cache(CacheShape(1, MAX_BLOCKS, BLOCK, HEADS))
    slots = CachedSlots(1, 1)
    slots.tables = torch.arange(MAX_BLOCKS)[None]

    plan = ops.plan_attention(slots.rows([0], [0], [1]), cache, [])
    ops.write_keys_values(torch.full((1, KV_SIZE), math.inf, dtype=torch.float16), cache, 0, plan)

    assert bool(cache.layers[0].isfinite().all())


def test_an_unused_cache_takes_no_memory_and_is_zero() -> None:
    cache = TorchOps(CPU, torch.bfloat16).make_cache(CacheShape(2, 1000, 16, Heads(9, 2, 64, 64)))

    assert [layer.shape for layer in cache.layers] == [(1000, 16, 2, 2, 64)] * 2
    assert int(cache.layers[1].count_nonzero()) == 0
