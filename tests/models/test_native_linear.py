"""Linear layers and norms of the reference, compared with a few lines of plain torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tgis_server.engines.native.ops.api import LoraView, WeightPart
from tgis_server.engines.native.ops.reference import TorchOps

ROWS, INPUTS, OUTPUTS, RANK = 5, 16, 24, 4
OPS = TorchOps(torch.device("cpu"), torch.float32)
X, WEIGHT, BIAS = torch.randn(ROWS, INPUTS), torch.randn(OUTPUTS, INPUTS), torch.randn(OUTPUTS)
A, B = torch.randn(3, RANK, INPUTS), torch.randn(3, OUTPUTS, RANK)
SCALES = torch.tensor([0.5, 2.0, 1.0])


def multiplied(x: Tensor, bias: Tensor | None, lora: LoraView | None) -> Tensor:
    return OPS.linear(x, OPS.pack(WeightPart.plain(WEIGHT.clone())), bias, lora)


@pytest.mark.parametrize("places", [[-1] * 5, [0, -1, 2, 2, 1]], ids=["none", "several"])
@pytest.mark.parametrize("bias", [None, BIAS], ids=["plain", "bias"])
def test_each_row_gets_its_own_adapter(bias: Tensor | None, places: list[int]) -> None:
    lora = LoraView(torch.tensor(places), SCALES, A, B)
    merged = [WEIGHT if p < 0 else WEIGHT + SCALES[p] * B[p] @ A[p] for p in places]

    ours = multiplied(X, bias, lora)

    expected = torch.stack([functional.linear(x, weight, bias) for x, weight in zip(X, merged, strict=True)])
    assert torch.allclose(ours, expected, atol=1e-4)


def test_an_adapter_with_divided_inputs_is_the_sum_over_ranks() -> None:
    """Each rank has all of B, and the part of A for its own inputs."""
    places = torch.tensor([0, -1, 2, 2, 1])
    whole = multiplied(X, None, LoraView(places, SCALES, A, B))

    halves = []
    for inputs in (slice(0, 8), slice(8, 16)):
        packed = OPS.pack(WeightPart.plain(WEIGHT[:, inputs].contiguous()))
        halves.append(OPS.linear(X[:, inputs], packed, None, LoraView(places, SCALES, A[:, :, inputs], B)))

    assert torch.allclose(halves[0] + halves[1], whole, atol=1e-4)


def test_a_weight_in_an_unknown_format_is_a_bug() -> None:
    part = WeightPart({"data": torch.zeros(4, 4), "scales": torch.ones(4, 1)}, "int4", group_size=4)

    with pytest.raises(AssertionError, match="int4"):
        OPS.pack(part)


def rms(x: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()


def standard(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize("shape", [(6,), (3, 6)], ids=["one weight", "one per head"])
def test_norms_follow_their_formulas(shape: tuple[int, ...]) -> None:
    x, weight, bias = torch.randn(4, 3, 6), torch.randn(shape), torch.randn(shape)

    ours = [
        OPS.make_norm("rms", weight, None, 1e-5)(x),
        OPS.make_norm("rms_plus_one", weight, None, 1e-5)(x),
        OPS.make_norm("layer", weight, None, 1e-5)(x),
        OPS.make_norm("layer", weight, bias, 1e-5)(x),
    ]

    theirs = [rms(x) * weight, rms(x) * (1 + weight), standard(x) * weight, standard(x) * weight + bias]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["rms", "rms_plus_one", "layer"])
def test_a_norm_first_adds_to_the_residual(kind: str) -> None:
    norm = OPS.make_norm(kind, torch.randn(6), None, 1e-5)  # type: ignore[arg-type]
    residual, x = torch.randn(4, 6), torch.randn(4, 6)
    expected = residual + 0.5 * x

    normed = norm.add(residual, x, 0.5)

    torch.testing.assert_close([residual, normed], [expected, norm(expected)])
