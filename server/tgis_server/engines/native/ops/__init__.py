"""The operations that cost time, behind one signature per operation. ``select_ops`` picks the implementation once."""

from __future__ import annotations

import torch

from tgis_server.engines.native.ops.api import Ops
from tgis_server.engines.native.ops.reference import TorchOps

__all__ = ["Ops", "select_ops"]


def select_ops(device: torch.device, dtype: torch.dtype) -> Ops:
    """The fastest implementation for this device and dtype."""
    return TorchOps(device, dtype)
