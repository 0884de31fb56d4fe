"""Linear layers: oneDNN's own weight layout on a CPU, torch's elsewhere.

On a CPU a weight is reordered once at load into the blocks that oneDNN computes with; otherwise each call would reorder
it, or use a slower kernel. One reordered copy serves every number of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class LinearWeight:
    """A weight (outputs, inputs) in one of the two forms."""

    tensor: Tensor
    is_prepacked: bool


def can_prepack(dtype: torch.dtype) -> bool:
    """Whether this build of torch and this CPU multiply prepacked weights of ``dtype``."""
    try:
        probe = _reorder(torch.zeros(16, 16, dtype=dtype))
        _multiply(torch.zeros(1, 16, dtype=dtype), probe, None)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False  # no oneDNN in this build, or no instructions for this dtype
    return True


def pack(weight: Tensor, *, prepack: bool) -> LinearWeight:
    return LinearWeight(_reorder(weight) if prepack else weight, prepack)


def linear(x: Tensor, weight: LinearWeight, bias: Tensor | None) -> Tensor:
    """(rows, inputs) -> (rows, outputs)."""
    if weight.is_prepacked:
        return _multiply(x, weight.tensor, bias)
    return functional.linear(x, weight.tensor, bias)


def _reorder(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return packed


def _multiply(x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product
