"""Whether values are finite: those that are not must affect only their own request."""

from __future__ import annotations

import torch
from torch import Tensor


def are_finite(values: Tensor) -> Tensor:
    """(rows, n) -> (rows,) bool: whether all values of a row are finite.

    Summing a row shows this in one pass over its values. A sum of finite values can overflow too, but only if they are
    near 1e34, which is not a plausible logit.
    """
    return values.sum(-1, dtype=torch.float32).isfinite()
