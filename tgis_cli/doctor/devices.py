"""Checks of GPUs, of their driver, of the variables that select them, and of CPUs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from tgis_cli.decide.decisions import Decisions
from tgis_cli.decide.resources import GPU_LISTS, choose_device, choose_num_shard
from tgis_cli.doctor.libraries import find_version
from tgis_cli.doctor.verdict import Subject, Verdict, failed, ok, warn
from tgis_cli.machine.gpus import read_use, split_devices
from tgis_cli.machine.words import count
from tgis_server import failures
from tgis_server.engines.catalogue import DEFAULT, REHEARSAL
from tgis_server.errors import TgisError
from tgis_server.words.sizes import format_bytes

# The oldest driver for each major CUDA version: https://docs.nvidia.com/deploy/cuda-compatibility/
FIRST_DRIVER = {11: "450.80", 12: "525.60", 13: "580.65"}
# The lowest compute capability for each of them: https://docs.nvidia.com/cuda/cuda-toolkit-release-notes/
FIRST_CAPABILITY = {12: (5, 0), 13: (7, 5)}
CUDA_RUNTIMES = ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12", "nvidia-cuda-runtime-cu11")
MIN_FREE_SHARE = 0.9  # of the memory of a GPU that no other process uses
MAX_NAMED_PROCESSES = 3


def check_devices(subject: Subject) -> Iterator[Verdict]:
    """Where the launcher would run a model."""
    decide = Decisions(subject.loaded, subject.environ, subject.machine)
    engine = REHEARSAL if subject.config.rehearse else DEFAULT
    try:
        device = choose_device(decide, engine)
        num_shard = choose_num_shard(decide, engine, device)
    except TgisError as error:
        yield failed(error)
        return
    yield from map(warn, decide.warnings)
    place = f"{count(num_shard, 'GPU')}" if device == "cuda" else "the CPU"
    yield ok(f"Models run on {place}: {decide.reasons['device']}.", device=device, num_shard=num_shard)
    for gpu in subject.machine.gpus:
        memory = f", {format_bytes(gpu.free_bytes)} of {format_bytes(gpu.total_bytes)} free" if gpu.total_bytes else ""
        yield ok(f"{gpu}: {gpu.name or 'only its device file is known'}{memory}.", uuid=gpu.device, name=gpu.name)


def check_visible_devices(subject: Subject) -> Iterator[Verdict]:
    """The container's and CUDA's lists of GPUs. An invalid list has already been refused."""
    for variable in GPU_LISTS:
        if (value := subject.environ.get(variable)) is not None:
            listed = split_devices(value)
            shown = "all GPUs" if listed is None else count(len(listed), "GPU")
            yield ok(f"{variable} is {value!r}: {shown}.", value=value)


def check_driver(subject: Subject) -> Iterator[Verdict]:
    """Whether the driver supports torch's CUDA version, and whether that version supports the GPUs."""
    driver = re.search(r"CUDA (\d+)\.(\d+)", subject.machine.driver)
    if not subject.uses_gpus or driver is None or (needs := find_torch_cuda(subject)) is None:
        return
    has = (int(driver[1]), int(driver[2]))
    versions = f"{subject.machine.driver}, and torch is built for CUDA {format_version(needs)}"
    if has[0] < needs[0]:
        first = FIRST_DRIVER.get(needs[0])
        reason = versions + (f", which needs driver {first} or newer" if first else "")
        yield failed(failures.DRIVER_TOO_OLD.error(process="launcher", reason=reason))
    else:
        older = ", which works because minor versions are compatible" if has < needs else ""
        yield ok(f"The GPUs have {versions}{older}.", driver=has, torch=needs)
    least = FIRST_CAPABILITY.get(needs[0], (0, 0))
    for gpu in subject.machine.gpus[: subject.num_shard]:
        if gpu.capability and gpu.capability < least:
            reason = (
                f"{gpu.name} has compute capability {format_version(gpu.capability)}, but CUDA {format_version(needs)} "
                f"needs {format_version(least)} or newer"
            )
            yield failed(failures.GPU_NOT_SUPPORTED.error(process="launcher", reason=reason))


def format_version(numbers: tuple[int, int]) -> str:
    return f"{numbers[0]}.{numbers[1]}"


def find_torch_cuda(subject: Subject) -> tuple[int, int] | None:
    """From torch's version (2.11.0+cu130), or from the CUDA libraries that its PyPI wheel depends on."""
    if found := re.search(r"\+cu(\d+)(\d)$", find_version(subject, "torch")):
        return int(found[1]), int(found[2])
    for package in CUDA_RUNTIMES:
        if found := re.match(r"(\d+)\.(\d+)", find_version(subject, package)):
            return int(found[1]), int(found[2])
    return None


def check_gpu_use(subject: Subject) -> Iterator[Verdict]:
    """Other users of the GPUs, and memory errors."""
    if not subject.uses_gpus:
        return
    for use in read_use(subject.machine.gpus, subject.host.nvml):
        gpu = use.gpu
        if gpu.total_bytes and gpu.free_bytes < MIN_FREE_SHARE * gpu.total_bytes:
            yield warn(
                f"{gpu} has {format_bytes(gpu.free_bytes)} of {format_bytes(gpu.total_bytes)} free; the rest is used "
                f"by {describe_processes(use.processes)}.",
                "Stop those processes, or choose other GPUs with CUDA_VISIBLE_DEVICES.",
                uuid=gpu.device,
                pids=[pid for pid, _ in use.processes],
            )
        if use.num_ecc_errors:
            yield warn(
                f"{gpu} has had {use.num_ecc_errors} memory errors that ECC could not correct since the driver was "
                "loaded.",
                "Reset or replace it: see `nvidia-smi -q -d ECC`.",
                uuid=gpu.device,
            )


def describe_processes(processes: tuple[tuple[int, int], ...]) -> str:
    """``python (pid 12, 3.0 GiB)``; the names of processes in other containers are unknown."""
    import psutil

    def describe(pid: int, num_bytes: int) -> str:
        try:
            name = psutil.Process(pid).name()
        except psutil.Error:
            name = "a process of another container or user"
        return f"{name} (pid {pid}{f', {format_bytes(num_bytes)}' if num_bytes else ''})"

    most = sorted(processes, key=lambda process: -process[1])[:MAX_NAMED_PROCESSES]
    more = len(processes) - len(most)
    named = ", ".join(describe(*process) for process in most)
    return named + (f" and {more} more" if more else "") if named else "processes that the driver does not list"


def check_cpus(subject: Subject) -> Iterator[Verdict]:
    """How many CPUs there are, and how many may be used."""
    machine = subject.machine
    quota, num_cores = machine.cpu_quota, len({cpu.core for cpu in machine.cpus})
    facts = {"cpus": len(machine.cpus), "cores": num_cores, "quota": quota, "bf16": machine.has_bf16}
    if quota is not None and quota < 1:
        yield warn(
            f"The control group allows {quota:g} CPUs: all threads are paused for {1 - quota:.0%} of the time.",
            "Raise the CPU limit to 1 or more.",
            **facts,
        )
        return
    threads = f" ({count(num_cores, 'core')})" if num_cores < len(machine.cpus) else ""
    limit = ""
    if machine.has_tight_quota and quota is not None:
        limit = f", of which the control group allows {quota:g}"
        limit += f"; {math.floor(quota)} are used" if quota % 1 else ""
    bf16 = "with" if machine.has_bf16 else "without"
    yield ok(f"{count(len(machine.cpus), 'CPU')}{threads}{limit}, {bf16} bf16 instructions.", **facts)


def check_cpu_ops(subject: Subject) -> Iterator[Verdict]:
    """Which operations compute on the CPU."""
    if subject.uses_gpus or subject.config.rehearse:
        return
    dtype = subject.resolved.run.dtype if subject.resolved else "bfloat16"
    try:
        found = DEFAULT.door.describe_cpu_ops(subject.config.cpu_ops, dtype, subject.environ)
    except TgisError as error:
        yield failed(error)
        return
    is_wanted = found.kernels or subject.config.cpu_ops == found.state
    yield (ok if is_wanted else warn)(found.sentence, state=found.state, kernels=found.kernels)
