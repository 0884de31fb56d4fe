"""The devices of a plan: this machine's, or those stated with ``--gpu`` and ``--cpu``."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace

from tgis_cli.machine import Gpu, Machine
from tgis_server.errors import UsageError
from tgis_server.options import ServeConfig, parse_bytes
from tgis_server.words.sizes import GIB, format_bytes

# GiB that CUDA can allocate; the nominal size is larger, but ECC and firmware use some of it.
GPU_GIB = {
    "T4": 14.6,
    "A10": 22.0,
    "A10G": 22.0,
    "L4": 22.0,
    "A100-40": 39.4,
    "A40": 44.4,
    "L40": 44.4,
    "L40S": 44.4,
    "A6000": 47.4,
    "A100-80": 79.1,
    "H100": 79.1,
    "H200": 139.7,
    "B200": 178.3,
}
STATED_GPUS = 64  # the maximum number tried if --gpu states none
MIN_BYTES = 1 << 20  # if a size is smaller, its unit has been forgotten


@dataclass(frozen=True, slots=True)
class Devices:
    """The devices to run on."""

    machine: Machine
    stated: str = ""  # as the user named them; empty: this machine's own


def read_devices(gpu: str | None, cpu: str | None, config: ServeConfig, machine: Machine) -> Devices:
    """This machine with its devices replaced by the stated ones, if any.

    Raises:
        UsageError: the options are malformed, or contradict others.
    """
    if gpu is not None and cpu is not None:
        raise UsageError("--gpu and --cpu contradict each other: leave one out.")
    if cpu is not None:
        free_bytes = read_size("--cpu", cpu, "a size such as 64GiB")
        machine = replace(machine, gpus=(), gpu_problem="", free_bytes=free_bytes, limit_bytes=None)
        return Devices(machine, f"a CPU with {format_bytes(free_bytes)} free")
    if gpu is None:
        return Devices(machine)
    if config.device == "cpu":
        raise UsageError("--gpu and --device cpu contradict each other: leave one out.")
    name, count = read_gpu(gpu)
    num_shard = config.num_shard or config.num_gpus or 1
    if count and num_shard > count:
        raise UsageError(f"--num-shard {num_shard} needs that many GPUs, but --gpu {gpu} states {count}.")
    size = known_gpu_bytes(name) or read_size("--gpu", name, f"a size such as 80GiB, or one of {', '.join(GPU_GIB)}")
    gpus = tuple(Gpu(str(index), name, size, size) for index in range(count or max(num_shard, STATED_GPUS)))
    stated = f"{f'{count} ' if count else ''}GPU{'s' if count != 1 else ''} of {format_bytes(size)}"
    return Devices(replace(machine, gpus=gpus, gpu_problem="", driver="", torch_has_cuda=True), stated)


def read_gpu(text: str) -> tuple[str, int]:
    """Parse ``80GiB``, ``H100``, ``L4x2`` or ``2xL4``: a size or name, and a number; 0 means as many as needed."""
    if re.search(r"\s*[x*]\s*0+$", text, re.IGNORECASE):
        raise UsageError(f"--gpu is {text!r}, but must state at least one GPU.")
    number = r"[1-9]\d{0,2}"
    found = re.fullmatch(rf"(?:({number})\s*[x*]\s*)?(.+?)(?:\s*[x*]\s*({number}))?", text.strip(), re.IGNORECASE)
    return (found[2], int(found[1] or found[3] or 0)) if found else (text, 0)


def known_gpu_bytes(name: str) -> int:
    """The memory of a GPU by name, in any spelling; 0 if it is not in the table."""
    key = re.sub(r"nvidia|tesla|rtx|[-_\s]|gi?b$", "", name.lower())
    sizes = {known.lower().replace("-", ""): gib for known, gib in GPU_GIB.items()}
    return int(sizes.get(key, 0) * GIB)


def read_size(flag: str, text: str, accepted: str) -> int:
    try:
        size = parse_bytes(text)
    except (ValueError, OverflowError):
        size = 0
    if size < MIN_BYTES:
        variants = [name for name in GPU_GIB if name.startswith(f"{text.upper()}-")]
        close = variants or difflib.get_close_matches(text.upper(), GPU_GIB, n=1)
        hint = f" (did you mean {' or '.join(close)}?)" if close else ""
        raise UsageError(f"{flag} is {text!r}{hint}, but must be {accepted}.")
    return size
