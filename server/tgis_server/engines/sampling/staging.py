"""Copies values to a device and results back to the host, without waiting."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Staging:
    """Copies between the host and one device. On a CPU nothing is copied.

    Pinned memory comes from torch's caching allocator, which does not reuse a buffer before its copies have finished,
    so several steps can be in flight.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pins = device.type == "cuda"

    def put(self, values: np.ndarray | Sequence[float], dtype: torch.dtype) -> Tensor:
        """A tensor on the device with these values."""
        if not self._pins:
            return torch.as_tensor(values, dtype=dtype)
        pinned = torch.empty(np.shape(values), dtype=dtype, pin_memory=True)
        pinned.numpy()[...] = values
        return pinned.to(self.device, non_blocking=True)

    def put_all(self, arrays: Sequence[np.ndarray]) -> list[Tensor]:
        """Put several int64 arrays on the device with one copy. The tensors keep their shapes and share memory."""
        flat = self.put(np.concatenate([array.ravel() for array in arrays]), torch.int64)
        parts = torch.split(flat, [array.size for array in arrays])
        return [part if array.ndim == 1 else part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]

    def fetch(self, tensor: Tensor) -> Tensor:
        """A copy on the host; on CUDA, it is valid only once the stream has reached this point."""
        if not self._pins:
            return tensor
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return pinned.copy_(tensor, non_blocking=True)
