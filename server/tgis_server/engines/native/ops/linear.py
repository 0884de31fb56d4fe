"""Linear layers, with oneDNN's weight layout on a CPU and torch's elsewhere.

On a CPU a weight is reordered into oneDNN's blocks when it is loaded; otherwise each call would reorder it or use a
slower kernel. One reordered copy serves any number of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tgis_server.engines.native.ops.api import LoraView, WeightPart


@dataclass(frozen=True, slots=True)
class LinearWeight:
    """A weight (outputs, inputs), in either layout."""

    tensor: Tensor
    is_prepacked: bool


def can_prepack(dtype: torch.dtype) -> bool:
    """Whether this build of torch and this CPU can multiply prepacked weights of ``dtype``."""
    try:
        probe = _reorder(torch.zeros(16, 16, dtype=dtype))
        _multiply(torch.zeros(1, 16, dtype=dtype), probe, None)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False  # the build lacks oneDNN, or the CPU lacks instructions for this dtype
    return True


def pack(weight: WeightPart, *, prepack: bool) -> LinearWeight:
    assert weight.format == "plain", f"no implementation multiplies {weight.format} weights"
    plain = weight.tensors["weight"]
    return LinearWeight(_reorder(plain) if prepack else plain, prepack)


def linear(x: Tensor, weight: LinearWeight, bias: Tensor | None, lora: LoraView | None) -> Tensor:
    """(rows, inputs) -> (rows, outputs)."""
    multiply = _multiply if weight.is_prepacked else functional.linear
    product = multiply(x, weight.tensor, bias)
    return product if lora is None else _add_lora(product, x, lora)


def _add_lora(product: Tensor, x: Tensor, lora: LoraView) -> Tensor:
    """Add each row's adapter.

    Every row is multiplied by all adapters, and the products with adapters that it does not use are dropped: selecting
    the right adapters first would mean waiting for the device.
    """
    num_places, rank, num_inputs = lora.a.shape
    places = torch.arange(num_places, device=x.device)
    is_own = lora.places[:, None] == places  # (rows, places)
    inner = (x @ lora.a.reshape(-1, num_inputs).T).view(-1, num_places, rank)
    inner = (inner * (is_own * lora.scales).to(x.dtype)[:, :, None]).flatten(1)
    outer = lora.b.transpose(1, 2).reshape(num_places * rank, -1)
    return product.addmm_(inner, outer)


def _reorder(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return packed


def _multiply(x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product
