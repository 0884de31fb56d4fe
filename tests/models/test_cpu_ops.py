"""The compiled operations, compared with torch's in float32, for sizes that do not fill vectors, blocks or tiles."""

from __future__ import annotations

import mmap
import os
import warnings
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from implementations import COMPILED, REFERENCE, load_library, make_ops
from tgis_server.engines.native.loading import agree_on_ops
from tgis_server.engines.native.ops.api import (
    AttentionModifiers,
    CacheShape,
    Experts,
    Heads,
    Ops,
    StepRows,
    WeightPart,
)
from tgis_server.engines.native.ops.cpu.ops import CpuOps
from tgis_server.engines.native.parallel import SoloGroup
from tgis_server.engines.native.spec import Mixture

WIDTH, NUM_OUTPUTS = 71, 45
NUM_TOKENS = [0, 1, 5, 13, 200]

pytestmark = pytest.mark.parametrize("name", COMPILED)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    assert torch.allclose(ours.float(), theirs.float(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("num_tokens", NUM_TOKENS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_linear_layer_sums_products(name: str, num_tokens: int, dtype: torch.dtype, has_bias: bool) -> None:
    ops = make_ops(name, dtype)
    weight, x = random(NUM_OUTPUTS, WIDTH, dtype=dtype), random(num_tokens, WIDTH, dtype=dtype)
    bias = random(NUM_OUTPUTS, dtype=dtype) if has_bias else None

    ours = ops.logits(x, ops.pack(WeightPart.plain(weight)), bias)

    theirs = torch.nn.functional.linear(x.float(), weight.float(), None if bias is None else bias.float())
    assert_close(ours, theirs)


def test_a_weight_may_be_a_view_of_another_layout(name: str) -> None:
    ops = make_ops(name)
    weight, x = random(WIDTH, NUM_OUTPUTS).T, random(3, WIDTH)

    ours = ops.linear(x, ops.pack(WeightPart.plain(weight)), None, None)

    assert_close(ours, x @ weight.T)


def test_a_row_does_not_depend_on_its_neighbours(name: str) -> None:
    ops = make_ops(name)
    weight, x = ops.pack(WeightPart.plain(random(NUM_OUTPUTS, WIDTH))), random(40, WIDTH)

    together = ops.linear(x, weight, None, None)

    assert all(torch.equal(ops.linear(x[:n], weight, None, None), together[:n]) for n in range(1, 40))


@pytest.mark.parametrize("kind", ["rms", "rms_plus_one", "layer"])
def test_norms_equal_torchs(name: str, kind: Any) -> None:
    weight, bias = random(WIDTH), random(WIDTH, seed=1) if kind == "layer" else None
    ours, theirs = (make_ops(n).make_norm(kind, weight, bias, 1e-5) for n in (name, REFERENCE))
    x, y = random(9, WIDTH) * 3, random(9, WIDTH, seed=2)
    residuals = x.clone(), x.clone()

    assert_close(ours(x), theirs(x))
    assert_close(ours.add(residuals[0], y, 0.5), theirs.add(residuals[1], y, 0.5))
    assert_close(*residuals)


@pytest.mark.parametrize("is_gated", [True, False])
@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh", "relu", "relu_squared", "swigluoai"])
def test_activations_equal_torchs(name: str, kind: Any, is_gated: bool) -> None:
    x = random(4, 2 * WIDTH) * 6

    ours, theirs = (make_ops(n).make_activation(kind, is_gated=is_gated)(x.clone()) for n in (name, REFERENCE))

    assert_close(ours, theirs)


@pytest.mark.parametrize("num_tokens", [1, 5, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "mixture",
    [
        Mixture(6, 2, WIDTH, is_normalized=True),
        Mixture(6, 1, WIDTH),
        Mixture(12, 4, WIDTH, scoring="sigmoid", num_groups=4, num_chosen_groups=2, scale=1.5),
        Mixture(6, 2, WIDTH, scoring="sparsemixer", jitter=0.2),
    ],
    ids=["softmax", "one expert", "groups", "sparsemixer"],
)
def test_mixtures_of_experts_equal_torchs(name: str, num_tokens: int, dtype: torch.dtype, mixture: Mixture) -> None:
    hidden, count = 96, mixture.num_experts
    up, down = random(count, 2 * WIDTH, hidden) / 10, random(count, hidden, WIDTH) / 10
    biases = random(count, 2 * WIDTH), random(count, hidden)
    x, scores, shared, gate = (random(num_tokens, width) for width in (hidden, count, hidden, 1))

    def mix(ops: Ops) -> Tensor:
        packed = [[ops.pack(WeightPart.plain(each.to(dtype))) for each in weights] for weights in (up, down)]
        bias = random(count, seed=7) if mixture.scoring == "sigmoid" else None
        up_bias, down_bias = (each.to(dtype) for each in biases)
        experts = Experts(mixture, "swigluoai", True, bias, packed[0], up_bias, packed[1], down_bias)
        return ops.mix(x.to(dtype), scores.to(dtype), experts, shared.to(dtype), gate.to(dtype))

    ours, theirs = mix(make_ops(name, dtype)), mix(make_ops(REFERENCE, dtype))

    assert_close(ours.float(), theirs.float(), 1e-4 if dtype == torch.float32 else 0.1)


def test_parts_are_rescaled_as_by_torch(name: str) -> None:
    x, weight, sizes = random(13, 2 * WIDTH), random(WIDTH + 19), (WIDTH, 19)

    def rescale(ops: Ops) -> Tensor:
        return ops.rescale(x.clone(), ops.sum_squares(x, sizes), sizes, (2 * WIDTH, 40), weight, 1e-5)

    ours = rescale(make_ops(name))
    assert_close(ours, rescale(make_ops(REFERENCE)))
    assert torch.equal(ours[:, WIDTH + 19 :], x[:, WIDTH + 19 :])


def test_values_are_limited(name: str) -> None:
    x = random(13, WIDTH)
    x[3, 4] = torch.nan

    ours = make_ops(name).limit(x.clone(), 0.5)

    assert torch.equal(ours.nan_to_num(9), x.clamp(-0.5, 0.5).nan_to_num(9))


def test_embeddings_equal_torchs(name: str) -> None:
    table, ids = random(9, WIDTH), torch.tensor([3, 8, 0, 11, 5])
    positions = torch.tensor([0, 8, 4, 4, 2])

    def embed(ops: Ops) -> Tensor:
        return ops.add_rows(ops.embed(ids, table, 2, 20, 2.5), table, positions)

    assert_close(embed(make_ops(name)), embed(make_ops(REFERENCE)))


@pytest.mark.parametrize("head_dim", [18, 32, 64, 80, 128, 256])
@pytest.mark.parametrize("num_heads", [1, 3, 16])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 4e-2)])
def test_heads_of_any_size_and_number_attend_alike(
    name: str, head_dim: int, num_heads: int, dtype: torch.dtype, tolerance: float
) -> None:
    """Queries of a chunk with cached keys, and a single token of another row; torch computes in float32."""
    heads = Heads(num_heads=2 * num_heads, num_kv_heads=2, head_dim=head_dim, rotary_dim=head_dim)
    modifiers = AttentionModifiers(head_dim**-0.5)
    starts, counts = np.array([70, 3]), np.array([1, 30])
    tables = torch.tensor([[4, 1, 0, 5, 2], [6, 3, 7, 0, 0]])
    earlier = random(73, 4 * head_dim)
    qkv, rotation = random(31, (2 * num_heads + 4) * head_dim), random(100, 2, head_dim, dtype=dtype)

    def attend(ops: Ops, rotation: Tensor) -> Tensor:
        cache = ops.make_cache(CacheShape(1, 8, 16, heads))
        before = rows_of(np.array([0, 0]), starts, tables)
        ops.write_keys_values(earlier, cache, 0, ops.plan_attention(before, cache, []))
        now = rows_of(starts, counts, tables)
        plan = ops.plan_attention(now, cache, [modifiers])
        turn = ops.make_rotation(rotation, now.positions)
        prepared = ops.prepare_qkv(qkv.clone(), heads, turn, None, cache, 0, plan)
        return ops.attend(prepared, heads, cache, 0, plan, modifiers)

    assert_close(attend(make_ops(name, dtype), rotation), attend(make_ops(REFERENCE), rotation.float()), tolerance)


def rows_of(starts: np.ndarray, counts: np.ndarray, tables: Tensor) -> StepRows:
    slots = torch.arange(len(starts))
    positions = np.concatenate([np.arange(start, start + count) for start, count in zip(starts, counts, strict=True)])
    token_slots = slots.repeat_interleave(torch.from_numpy(counts))
    return StepRows(starts, counts, starts + counts, slots, token_slots, torch.from_numpy(positions), tables)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_stays_so(name: str, dtype: torch.dtype) -> None:
    """A step checks its results, and fails the requests whose results are not finite."""
    ops = make_ops(name, dtype)
    x = random(3, WIDTH, dtype=dtype)
    x[1, 7] = torch.nan
    weight = ops.pack(WeightPart.plain(random(WIDTH, WIDTH, dtype=dtype)))
    norm = ops.make_norm("rms", random(WIDTH), None, 1e-5)

    for kind in ("silu", "gelu", "gelu_tanh", "relu"):
        result = norm(ops.make_activation(kind, is_gated=False)(ops.linear(x, weight, None, None)))
        assert result.isnan().any(1).tolist() == [False, True, False]


@dataclass(frozen=True)
class Two:
    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Attention:
    qkv: Tensor
    plan: Any


def test_a_captured_function_runs_with_any_number_of_tokens(name: str) -> None:
    ops = make_ops(name)
    weight = ops.pack(WeightPart.plain(random(WIDTH, WIDTH)))
    norm = ops.make_norm("rms", random(WIDTH), None, 1e-5)

    def function(inputs: Two, _: None) -> Tensor:
        residual = norm(inputs.x)
        for _i in range(3):
            norm.add(residual, ops.linear(inputs.y, weight, None, None), 0.5)
        return ops.add(ops.linear(norm.add(residual, inputs.y, 1.0), weight, None, None), residual)

    captured = ops.capture(function)

    for num_tokens in (3, 50, 1, 7):
        x, y = random(num_tokens, WIDTH), random(num_tokens, WIDTH, seed=1)
        rms = torch.nn.functional.rms_norm(x, (WIDTH,), random(WIDTH), 1e-5)
        residual = rms + 1.5 * (y @ random(WIDTH, WIDTH).T) + y
        theirs = (
            torch.nn.functional.rms_norm(residual, (WIDTH,), random(WIDTH), 1e-5) @ random(WIDTH, WIDTH).T + residual
        )
        assert_close(captured(Two(x, y), None), theirs, 1e-4)


def test_a_function_outside_the_operations_sees_what_they_computed(name: str) -> None:
    ops = make_ops(name)
    seen: list[Tensor] = []

    def double(x: Tensor) -> None:
        seen.append(x.clone())
        x.mul_(2)

    captured = ops.capture(lambda inputs, _: ops.add(ops.apply(double, ops.add(inputs.x, inputs.y)), inputs.y))

    for value in (1.0, 2.0):
        x = torch.full((2, 3), value)
        assert torch.equal(captured(Two(x, x), None), 5 * x)
        assert torch.equal(seen[-1], 2 * x)


def test_a_profile_names_each_operation_and_its_widths(name: str) -> None:
    ops = make_ops(name)
    up, down = (ops.pack(WeightPart.plain(random(*shape))) for shape in ((64, 32), (32, 64)))
    layer = ops.capture(lambda x, _: ops.linear(ops.linear(x, up, None, None), down, None, None))
    x = random(5, 32)
    expected = layer(x, None).clone()

    with torch.profiler.profile() as profile:
        result = layer(x, None)

    names = [event.key for event in profile.key_averages()]
    assert {"tgis::linear 32 64", "tgis::linear 64 32"} <= set(names)
    assert torch.equal(result, expected)


def test_weights_need_no_huge_pages(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 1 << 20)  # unknown to the kernel, as huge pages are to some
    ops = CpuOps(load_library(name), name, torch.float32)
    weight, x = random(NUM_OUTPUTS, WIDTH), random(3, WIDTH)

    assert_close(ops.linear(x, ops.pack(WeightPart.plain(weight)), None, None), x @ weight.T)


def test_a_program_is_not_taken_for_one_of_a_later_cache(name: str) -> None:
    ops, heads = make_ops(name), Heads(num_heads=1, num_kv_heads=1, head_dim=16, rotary_dim=0)
    modifiers, qkv = AttentionModifiers(1.0), random(3, 48)
    now = rows_of(np.array([0]), np.array([3]), torch.tensor([[0]]))

    def attend(inputs: Attention, cache: Any) -> Tensor:
        prepared = ops.prepare_qkv(inputs.qkv, heads, None, None, cache, 0, inputs.plan)
        return ops.attend(prepared, heads, cache, 0, inputs.plan, modifiers)

    captured = ops.capture(attend)

    cache = ops.make_cache(CacheShape(1, 1, 16, heads))
    captured(Attention(qkv, ops.plan_attention(now, cache, [modifiers])), cache)
    first = weakref.ref(cache)
    del cache

    assert first() is not None, "its id, by which its program is found, is free for another"


class AnotherRankHasTorchOps(SoloGroup):
    def smallest(self, value: int) -> int:
        return 0


def test_a_rank_without_compiled_operations_keeps_the_others_from_them(name: str) -> None:
    """What ranks exchange would differ in its dtype."""
    ops = make_ops(name, torch.bfloat16)

    agreed, why = agree_on_ops(AnotherRankHasTorchOps(), ops, "", torch.bfloat16)

    assert agreed.kernels == ""
    assert why == "The slower torch operations are used: another shard lacks the compiled ones."
    assert agree_on_ops(SoloGroup(), ops, "", torch.bfloat16) == (ops, "")


def test_a_child_process_computes_with_threads_of_its_own(name: str) -> None:
    ops = make_ops(name)
    weight, x = ops.pack(WeightPart.plain(random(NUM_OUTPUTS, WIDTH))), random(40, WIDTH)
    ours = ops.linear(x, weight, None, None)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions of Python warn of threads, which are what this is about
        child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(ops.linear(x, weight, None, None), ours) else 1)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
