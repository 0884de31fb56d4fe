"""The devices of a plan: this machine's, or those stated with ``--gpu`` and ``--cpu``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tgis_cli.machine import Gpu, Machine
from tgis_cli.plan.gpu_table import find_cards, find_close_cards, is_foreign, usable_bytes
from tgis_server.errors import UsageError
from tgis_server.options import ServeConfig, parse_bytes
from tgis_server.words.close_words import or_list
from tgis_server.words.sizes import format_bytes

STATED_GPUS = 64  # the maximum number tried if --gpu states none
ACCEPTED_GPU = "a size such as 80GiB, or a name such as L4, H100, A100-80 or RTX4090"
MAX_GB = 1000  # a larger number is a name
MIN_BYTES = 1 << 20  # a smaller size lacks its unit


@dataclass(frozen=True, slots=True)
class Devices:
    """The devices to run on."""

    machine: Machine
    stated: str = ""  # as the user named them; empty: this machine's own
    warnings: tuple[str, ...] = ()


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
    memory = read_gpu_memory(gpu, name)
    size = memory.usable_bytes
    gpus = tuple(Gpu(str(index), name, size, size) for index in range(count or max(num_shard, STATED_GPUS)))
    stated = f"{f'{count} ' if count else ''}{memory.describe(is_one=count == 1)}"
    machine = replace(machine, gpus=gpus, gpu_problem="", driver="", torch_has_cuda=True)
    return Devices(machine, stated, memory.warnings)


def read_gpu(text: str) -> tuple[str, int]:
    """Parse ``80GiB``, ``H100``, ``L4x2``, ``2xL4`` or ``L4:2``: a size or name, and a number; 0: as many as needed."""
    if re.search(r"\s*[x*:]\s*0+$", text, re.IGNORECASE):
        raise UsageError(f"--gpu is {text!r}, but must state at least one GPU.")
    number = r"[1-9]\d{0,2}"
    times = r"\s*(?<![rg]t)[x*:]\s*"  # but not the x in RTX
    found = re.fullmatch(rf"(?:({number}){times})?(.+?)(?:{times}({number}))?", text.strip(), re.IGNORECASE)
    return (found[2], int(found[1] or found[3] or 0)) if found else (text, 0)


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """The memory of a stated GPU."""

    usable_bytes: int
    sold_gb: float | None = None  # what it is sold with; None: the usable memory was stated
    title: str = ""  # of the card, if it was named
    warnings: tuple[str, ...] = ()

    def describe(self, *, is_one: bool) -> str:
        """``L4 GPUs (22.0 GiB usable of 24 GB)``, ``GPU of 24.0 GiB``."""
        usable = format_bytes(self.usable_bytes)
        name = f"{self.title} GPU{'' if is_one else 's'}".lstrip()
        return f"{name} of {usable}" if self.sold_gb is None else f"{name} ({usable} usable of {self.sold_gb:g} GB)"


def read_gpu_memory(text: str, name: str) -> GpuMemory:
    """The memory of a GPU that is named, or whose size is given.

    A number alone, or with G or GB, is what the GPU is sold with; with GiB or MiB it is what can be allocated.

    Args:
        text: the whole value of ``--gpu``, for errors.

    Raises:
        UsageError: the text is neither a name nor a size.
    """
    cards = find_cards(name)
    if len(cards) == 1:
        card = cards[0]
        return GpuMemory(card.usable_bytes, card.nominal_gb, card.title, tuple(filter(None, [card.warning])))
    if cards:
        titles = or_list([card.title for card in cards])
        raise UsageError(f"--gpu is {text!r}, which is sold in several sizes (did you mean {titles}?).")
    if (sold := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:gb?)?", name.strip(), re.IGNORECASE)) and 0 < float(
        sold[1]
    ) <= MAX_GB:
        return GpuMemory(usable_bytes(float(sold[1])), float(sold[1]))
    if is_foreign(name):
        raise UsageError(
            f"--gpu is {text!r}, but models run on NVIDIA GPUs and CPUs only: for a GPU with as much memory, give its "
            "size, such as 80GiB."
        )
    return GpuMemory(read_size("--gpu", name, ACCEPTED_GPU, find_close_cards(name)))


def read_size(flag: str, text: str, accepted: str, close: Sequence[str] = ()) -> int:
    try:
        size = parse_bytes(text)
    except (ValueError, OverflowError):
        size = 0
    if size < MIN_BYTES:
        hint = f" (did you mean {or_list(close)}?)" if close else ""
        raise UsageError(f"{flag} is {text!r}{hint}, but must be {accepted}.")
    return size
