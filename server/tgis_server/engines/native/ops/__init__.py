"""The operations that take time, behind one interface. ``select_ops`` chooses an implementation during loading."""

from __future__ import annotations

import torch

from tgis_server.engines.native.ops.api import Ops
from tgis_server.engines.native.ops.reference import TorchOps

__all__ = ["Ops", "select_ops"]


def select_ops(device: torch.device, dtype: torch.dtype) -> Ops:
    """The fastest implementation for this device and dtype."""
    return TorchOps(device, dtype)
