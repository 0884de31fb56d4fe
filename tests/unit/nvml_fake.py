"""A fake of ``pynvml`` with GPUs that a test defines."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pynvml

GIB = 1 << 30


@dataclass
class Instance:
    """A MIG instance, with its numbers within the GPU."""

    uuid: str
    gpu_instance: int
    compute_instance: int = 0
    total_bytes: int = 20 * GIB
    free_bytes: int = 19 * GIB
    name: str = "NVIDIA A100 MIG 2g.20gb"


@dataclass
class Board:
    """A GPU."""

    uuid: str
    name: str = "NVIDIA A100"
    total_bytes: int = 80 * GIB
    free_bytes: int = 79 * GIB
    cpu_words: tuple[int, ...] = ()  # empty = not supported
    instances: list[Instance | None] | None = None  # None = no MIG mode; None in the list = an empty slot
    error: int = 0  # raised instead of returning its handle
    capability: tuple[int, int] | None = None


class FakeNvml:
    """Handles are the boards and instances themselves. Errors and constants are pynvml's own."""

    def __init__(self, *boards: Board, init_error: int = 0) -> None:
        self.boards = boards
        self.init_error = init_error
        self.num_open = 0

    def __getattr__(self, name: str) -> Any:
        assert name.startswith("NVML"), f"{name} is not part of the fake"
        return getattr(pynvml, name)

    def nvmlInit(self) -> None:  # noqa: N802  pynvml's name, as all below
        if self.init_error:
            raise pynvml.NVMLError(self.init_error)
        self.num_open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.num_open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "570.86.10"

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:  # noqa: N802
        return 12080

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.boards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Board:  # noqa: N802
        board = self.boards[index]
        if board.error:
            raise pynvml.NVMLError(board.error)
        return board

    def nvmlDeviceGetUUID(self, handle: Board | Instance) -> str:  # noqa: N802
        return handle.uuid

    def nvmlDeviceGetName(self, handle: Board | Instance) -> str:  # noqa: N802
        return handle.name

    def nvmlDeviceGetMemoryInfo(self, handle: Board | Instance) -> SimpleNamespace:  # noqa: N802
        if not handle.total_bytes:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(total=handle.total_bytes, free=handle.free_bytes)

    def nvmlDeviceGetCpuAffinity(self, handle: Board, num_words: int) -> list[int]:  # noqa: N802
        if not handle.cpu_words:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [*handle.cpu_words, *[0] * (num_words - len(handle.cpu_words))]

    def nvmlDeviceGetCudaComputeCapability(self, handle: Board) -> tuple[int, int]:  # noqa: N802
        if handle.capability is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return handle.capability

    def nvmlDeviceGetMigMode(self, handle: Board) -> list[int]:  # noqa: N802
        if handle.instances is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [pynvml.NVML_DEVICE_MIG_ENABLE] * 2

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Board) -> int:  # noqa: N802
        return len(handle.instances or ())

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Board, index: int) -> Instance:  # noqa: N802
        instance = (handle.instances or [])[index]
        if instance is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return instance

    def nvmlDeviceGetGpuInstanceId(self, handle: Instance) -> int:  # noqa: N802
        return handle.gpu_instance

    def nvmlDeviceGetComputeInstanceId(self, handle: Instance) -> int:  # noqa: N802
        return handle.compute_instance
