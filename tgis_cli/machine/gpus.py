"""Which NVIDIA GPUs are visible, and how much memory they have. Never imports torch.

What the driver says (through nvidia-ml-py, where installed) is preferred; without it GPUs are counted by their device
files. ``CUDA_VISIBLE_DEVICES`` narrows and reorders what CUDA shows; inside a container ``NVIDIA_VISIBLE_DEVICES``
has been applied by the container runtime already, so that only the count in it is of interest.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Gpu:
    """One visible GPU."""

    device: str  # what CUDA_VISIBLE_DEVICES says to get this one: an index or a UUID
    name: str = ""
    total_bytes: int = 0  # 0 = not known
    free_bytes: int = 0


def find_gpus(environ: Mapping[str, str], dev: Path = Path("/dev")) -> tuple[Gpu, ...]:
    """The GPUs that CUDA would show to this process, in its order."""
    installed = query_driver() or count_device_files(dev)
    visible = split_devices(environ.get("CUDA_VISIBLE_DEVICES"))
    if visible is None or not installed:
        return installed
    by_index = {gpu.device: gpu for gpu in installed}
    # A UUID (GPU-..., MIG-...) is taken on trust; an index that does not exist ends the list, as it does in CUDA.
    found = []
    for device in visible:
        if device.isdigit() and device not in by_index:
            break
        found.append(by_index.get(device, Gpu(device)))
    return tuple(found)


def split_devices(value: str | None) -> list[str] | None:
    """Entries of a ``*_VISIBLE_DEVICES`` variable; ``None`` = not set or ``all``, empty = no GPU."""
    if value is None or value.strip().lower() == "all":
        return None
    entries = [entry.strip() for entry in value.split(",")]
    if entries[0].lower() in ("", "none", "void", "nodevfiles", "-1"):
        return []
    return [entry for entry in entries if entry]


def query_driver() -> tuple[Gpu, ...]:
    """Ask the driver through nvidia-ml-py; nothing where either is missing."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return ()
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return ()
    try:
        return tuple(describe_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount()))
    except nvml.NVMLError:
        return ()
    finally:
        nvml.nvmlShutdown()


def describe_gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    name = nvml.nvmlDeviceGetName(handle)
    return Gpu(str(index), name if isinstance(name, str) else name.decode(), int(memory.total), int(memory.free))


def count_device_files(dev: Path) -> tuple[Gpu, ...]:
    """``/dev/nvidia0``, ``/dev/nvidia1``, ...: CUDA numbers what it finds from 0, whatever the files are called."""
    files = [file for file in dev.glob("nvidia*") if re.fullmatch(r"nvidia\d+", file.name)]
    if not files and (dev / "dxg").exists():  # Windows Subsystem for Linux shows its GPU only so
        return (Gpu("0"),)
    return tuple(Gpu(str(index)) for index in range(len(files)))


def torch_has_cuda() -> bool | None:
    """Whether the installed torch can use a GPU, by its version's local part; ``None`` where that does not tell."""
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return False
    _, _, build = version.partition("+")
    return False if build == "cpu" else (True if build.startswith("cu") else None)
