"""The operations that take time, behind one interface. ``select_ops`` chooses an implementation during loading.

The package itself imports no torch, so that the launcher can ask which implementation will serve.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from tgis_server.engines.api import Progress
    from tgis_server.engines.native.ops.api import Ops

__all__ = ["select_ops"]


def select_ops(
    device: torch.device, dtype: torch.dtype, choice: str, progress: Progress, run_dir: Path | None = None
) -> tuple[Ops, str]:
    """The fastest implementation for this device and dtype.

    Args:
        choice: the value of ``--cpu-ops``.
        progress: called while operations are compiled.
        run_dir: see ``open_library``.

    Returns:
        The implementation, and a sentence if a faster one could serve but does not.

    Raises:
        UsageError: this CPU does not run what ``choice`` names.
    """
    from tgis_server.engines.native.ops.reference import TorchOps

    if device.type != "cpu":
        return TorchOps(device, dtype), ""
    from tgis_server.engines.native.ops.cpu.library import open_library
    from tgis_server.engines.native.ops.cpu.ops import CpuOps

    opened = open_library(progress, dtype=str(dtype).removeprefix("torch."), choice=choice, run_dir=run_dir)
    if opened.cdll is None:
        return TorchOps(device, dtype), opened.why
    return CpuOps(opened.cdll, opened.kernels, dtype), opened.why
