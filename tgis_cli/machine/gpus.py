"""The NVIDIA GPUs that a server may use, and facts about each. Never imports torch.

The driver is queried through NVML; if that library is missing, GPUs are counted by their device files.
``CUDA_VISIBLE_DEVICES`` selects and reorders them as CUDA would. ``NVIDIA_VISIBLE_DEVICES`` has already been applied by
the container runtime.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

NO_DEVICES = frozenset({"", "none", "void", "nodevfiles", "-1"})
CPU_MASK_WORDS = 64  # of 64 bits each, for up to 4,096 CPUs
NOTE_AFTER_S = 5.0
GIVE_UP_AFTER_S = 60.0  # a driver that no daemon keeps awake may need seconds for each GPU
DRIVER_HANGS = (
    "No GPU can be used: the NVIDIA driver has not answered for {:.0f} s (see `dmesg` for GPU errors; reboot, or serve "
    "on the CPU with CUDA_VISIBLE_DEVICES='')."
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU or MIG instance."""

    device: str  # its entry in CUDA_VISIBLE_DEVICES: the UUID, or an index if only device files are known
    name: str = ""
    total_bytes: int = 0  # 0 = unknown
    free_bytes: int = 0
    cpus: frozenset[int] = frozenset()  # the CPUs near it; empty = unknown
    instances: tuple[Gpu, ...] | None = None  # of a GPU in MIG mode; used instead of the GPU itself
    board: str = ""  # UUID of the GPU that a MIG instance is part of
    mig_path: str = ""  # older name of a MIG instance: MIG-GPU-.../gpu instance/compute instance
    capability: tuple[int, int] | None = None  # compute capability; None = unknown

    def __str__(self) -> str:
        """For sentences: ``GPU 0``, or the UUID, which starts with ``GPU-`` or ``MIG-``."""
        return f"GPU {self.device}" if self.device.isdigit() else self.device

    @property
    def usable(self) -> tuple[Gpu, ...]:
        """The devices that CUDA can use: the GPU itself, or its instances."""
        return (self,) if self.instances is None else self.instances


@dataclass(frozen=True, slots=True)
class GpuReport:
    """The GPUs in order, their driver, and their problems."""

    gpus: tuple[Gpu, ...] = ()
    driver: str = ""  # "driver 570.86.10 for CUDA 12.8"
    problem: str = ""  # a sentence: why some or all cannot be used


def find_gpus(environ: Mapping[str, str], list_installed: Callable[[], GpuReport] | None = None) -> GpuReport:
    """The GPUs that CUDA would show to processes with this environment, in CUDA's order."""
    listed = split_devices(environ.get("CUDA_VISIBLE_DEVICES"))
    if listed == []:
        return GpuReport()  # the driver is not queried, as that may take a second
    installed = ask_patiently(list_installed or list_installed_gpus)
    if not installed.gpus:
        return installed
    if listed is None:
        usable = tuple(instance for gpu in installed.gpus for instance in gpu.usable)
        return GpuReport(usable, installed.driver, installed.problem)
    visible, problem = select_devices(listed, installed.gpus)
    return GpuReport(visible, installed.driver, problem or installed.problem)


def ask_patiently(list_installed: Callable[[], GpuReport]) -> GpuReport:
    """Query the driver in a thread, and give up if it hangs, as it may if a GPU has failed."""
    answers: list[GpuReport] = []
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            answers.append(list_installed())
        except BaseException as error:  # noqa: BLE001  raised below
            errors.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(NOTE_AFTER_S)
    if asking.is_alive():
        logger.warning("the NVIDIA driver has not answered for %.0f s: waiting for it", NOTE_AFTER_S)
        asking.join(GIVE_UP_AFTER_S - NOTE_AFTER_S)
    if errors:
        raise errors[0]
    return answers[0] if answers else GpuReport(problem=DRIVER_HANGS.format(GIVE_UP_AFTER_S))


def split_devices(value: str | None) -> list[str] | None:
    """The entries of a ``*_VISIBLE_DEVICES`` variable; ``None`` = unset or ``all``, empty = no GPU.

    ``-1`` ends the list, as in CUDA.
    """
    if value is None or value.strip().lower() == "all":
        return None
    entries = [entry.strip() for entry in value.split(",")]
    if entries[0].lower() in NO_DEVICES:
        return []
    end = entries.index("-1") if "-1" in entries else len(entries)
    return [entry for entry in entries[:end] if entry]


def select_devices(listed: list[str], installed: tuple[Gpu, ...]) -> tuple[tuple[Gpu, ...], str]:
    """Apply CUDA's rules: an entry that is not found ends the list, and a GPU named twice hides all of them.

    Returns:
        The GPUs, and a sentence about what is wrong with the list, if anything.
    """
    found: list[Gpu] = []
    for entry in listed:
        gpu = find_device(entry, installed)
        if gpu is None:
            return tuple(found), (
                f"CUDA_VISIBLE_DEVICES names {entry}, which is not exactly one usable GPU of this machine: CUDA "
                "ignores it and all that follow it (`nvidia-smi -L` lists the GPUs)."
            )
        if gpu in found:
            return (), f"CUDA_VISIBLE_DEVICES names {entry}, a GPU that it already names, so CUDA shows no GPU."
        found.append(gpu)
    return tuple(found), ""


def find_device(entry: str, installed: tuple[Gpu, ...]) -> Gpu | None:
    """Find a GPU by index or by the start of its UUID. For a GPU in MIG mode, CUDA uses its first instance."""
    if entry.isdigit():
        matches = list(installed[int(entry) : int(entry) + 1])
    elif not entry.startswith(("GPU-", "MIG-")):
        matches = []
    elif installed[0].device == "0":
        return Gpu(entry)  # only device files are known: the UUID cannot be checked
    else:
        devices = [device for gpu in installed for device in (gpu, *(gpu.instances or ()))]
        matches = [device for device in devices if device.device.startswith(entry) or device.mig_path == entry]
    return next(iter(matches[0].usable), None) if len(matches) == 1 else None


def list_installed_gpus(nvml: Any = None, dev: Path = Path("/dev")) -> GpuReport:
    """Query the driver, or count device files if its library is missing.

    Args:
        nvml: the module ``pynvml``, or a stand-in.
    """
    nvml = nvml or importlib.import_module("pynvml")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        if error.value == nvml.NVML_ERROR_LIBRARY_NOT_FOUND:
            return count_device_files(dev)
        return GpuReport(problem=f"No GPU can be used: {explain_nvml_error(nvml, error)}.")
    try:
        return ask_driver(nvml)
    except nvml.NVMLError as error:
        return GpuReport(problem=f"No GPU can be used: {explain_nvml_error(nvml, error)}.")
    finally:
        nvml.nvmlShutdown()


def ask_driver(nvml: Any) -> GpuReport:
    """All GPUs that this process may open, in the order of their PCI addresses."""
    gpus, problems = [], []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            gpu = describe_gpu(nvml, nvml.nvmlDeviceGetHandleByIndex(index))
        except nvml.NVMLError as error:
            problems.append(f"GPU {index} is left out: {explain_nvml_error(nvml, error)}.")
            continue
        if gpu.instances == ():
            problems.append(f"GPU {index} is left out: it is in MIG mode but has no instance (see `nvidia-smi mig`).")
        gpus.append(gpu)
    cuda = nvml.nvmlSystemGetCudaDriverVersion_v2()  # 12080 = 12.8
    driver = f"driver {nvml.nvmlSystemGetDriverVersion()} for CUDA {cuda // 1000}.{cuda % 1000 // 10}"
    return GpuReport(tuple(gpus), driver, " ".join(problems))


def describe_gpu(nvml: Any, handle: Any) -> Gpu:
    total, free = read_memory(nvml, handle)
    gpu = Gpu(
        nvml.nvmlDeviceGetUUID(handle),
        nvml.nvmlDeviceGetName(handle),
        total,
        free,
        read_near_cpus(nvml, handle),
        capability=read_capability(nvml, handle),
    )
    if not is_in_mig_mode(nvml, handle):
        return gpu
    return replace(
        gpu, instances=tuple(describe_instance(nvml, instance, gpu) for instance in mig_handles(nvml, handle))
    )


def describe_instance(nvml: Any, handle: Any, board: Gpu) -> Gpu:
    total, free = read_memory(nvml, handle)
    path = f"{board.device}/{nvml.nvmlDeviceGetGpuInstanceId(handle)}/{nvml.nvmlDeviceGetComputeInstanceId(handle)}"
    uuid, name = nvml.nvmlDeviceGetUUID(handle), nvml.nvmlDeviceGetName(handle)
    return Gpu(
        uuid, name, total, free, board.cpus, board=board.device, mig_path=f"MIG-{path}", capability=board.capability
    )


def is_in_mig_mode(nvml: Any, handle: Any) -> bool:
    try:
        current, _pending = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:  # a GPU without MIG
        return False
    return bool(current == nvml.NVML_DEVICE_MIG_ENABLE)


def mig_handles(nvml: Any, handle: Any) -> Iterator[Any]:
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
        except nvml.NVMLError:  # an index without an instance, or an instance of another user
            continue


def read_memory(nvml: Any, handle: Any) -> tuple[int, int]:
    """Total and free bytes; zeros if GPU and CPU share their memory."""
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError:
        return 0, 0
    return int(memory.total), int(memory.free)


def read_capability(nvml: Any, handle: Any) -> tuple[int, int] | None:
    try:
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    except nvml.NVMLError:
        return None
    return int(major), int(minor)


def read_near_cpus(nvml: Any, handle: Any) -> frozenset[int]:
    try:
        words = nvml.nvmlDeviceGetCpuAffinity(handle, CPU_MASK_WORDS)
    except nvml.NVMLError:  # often unavailable in virtual machines
        return frozenset()
    return frozenset(64 * place + bit for place, word in enumerate(words) for bit in range(64) if word >> bit & 1)


def explain_nvml_error(nvml: Any, error: Any) -> str:
    """An NVML error in words, with advice."""
    known = {
        nvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA driver is installed but not loaded (see `nvidia-smi`)",
        nvml.NVML_ERROR_NO_PERMISSION: "this user may not open /dev/nvidia* (check their mode and group, or the "
        "container's devices)",
        nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "the NVIDIA driver's library and kernel module have different "
        "versions (reboot, or load the new module)",
        nvml.NVML_ERROR_GPU_IS_LOST: "it has fallen off the bus (reboot)",
    }
    return known.get(error.value, f"the NVIDIA driver says: {str(error).rstrip('.')}")


@dataclass(frozen=True, slots=True)
class GpuUse:
    """The current use of a GPU."""

    gpu: Gpu
    processes: tuple[tuple[int, int], ...]  # pid and bytes of each compute process; 0 bytes = unknown
    num_ecc_errors: int  # uncorrectable errors since the driver was loaded


def read_use(gpus: tuple[Gpu, ...], nvml: Any = None) -> list[GpuUse]:
    """The use of GPUs that the driver has described; GPUs that it cannot read are left out."""
    nvml = nvml or importlib.import_module("pynvml")
    found = []
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return []
    try:
        for gpu in gpus:
            with contextlib.suppress(nvml.NVMLError):
                handle = nvml.nvmlDeviceGetHandleByUUID(gpu.device)
                found.append(GpuUse(gpu, list_processes(nvml, handle), count_ecc_errors(nvml, handle)))
        return found
    finally:
        nvml.nvmlShutdown()


def list_processes(nvml: Any, handle: Any) -> tuple[tuple[int, int], ...]:
    try:
        processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except nvml.NVMLError:  # unavailable for virtual GPUs
        return ()
    return tuple((int(process.pid), int(process.usedGpuMemory or 0)) for process in processes)


def count_ecc_errors(nvml: Any, handle: Any) -> int:
    try:
        kind, counter = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
        return int(nvml.nvmlDeviceGetTotalEccErrors(handle, kind, counter))
    except nvml.NVMLError:  # a GPU without ECC, or a MIG instance
        return 0


def count_device_files(dev: Path) -> GpuReport:
    """Count ``/dev/nvidia0``, ``/dev/nvidia1``, ...; CUDA numbers GPUs from 0, whatever the files are called."""
    files = [file for file in dev.glob("nvidia*") if re.fullmatch(r"nvidia\d+", file.name)]
    if not files and (dev / "dxg").exists():  # the GPU of Windows Subsystem for Linux
        files = [dev / "dxg"]
    allowed = [file for file in files if os.access(file, os.R_OK | os.W_OK)]
    problem = ""
    if len(allowed) < len(files):
        problem = (
            f"{len(files) - len(allowed)} of {len(files)} GPUs cannot be used: this user may not open "
            f"{min(set(files) - set(allowed))} (check the file's mode and group)."
        )
    return GpuReport(tuple(Gpu(str(index)) for index in range(len(allowed))), problem=problem)


def torch_has_cuda() -> bool | None:
    """Whether the installed torch can use a GPU, from the local part of its version; ``None`` = unknown."""
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return False
    _, _, build = version.partition("+")
    return False if build == "cpu" else (True if build.startswith("cu") else None)
