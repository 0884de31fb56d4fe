"""The operations that take time, behind one interface. ``select_ops`` chooses an implementation during loading.

The package itself imports no torch, so that the launcher can ask which implementation will serve.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from tgis_server.engines.native.ops.api import Ops

__all__ = ["select_ops"]


def select_ops(device: torch.device, dtype: torch.dtype) -> Ops:
    """The fastest implementation for this device and dtype."""
    from tgis_server.engines.native.ops.reference import TorchOps

    return TorchOps(device, dtype)
