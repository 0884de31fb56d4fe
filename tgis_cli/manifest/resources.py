"""Memory, CPUs and GPUs of a container, from a plan. Pure arithmetic.

On a CPU the launcher divides the container's memory limit, so the limit must leave at least what was planned. On GPUs
host memory only has to hold the processes, and each file of weights while it is read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tgis_cli.machine import Cpu, Machine
from tgis_cli.plan.fit import CPU_PROCESS_BYTES, Fit, fit_shards
from tgis_server.engines.door import ModelSizes
from tgis_server.run import Run
from tgis_server.words.sizes import GIB, MIB, format_bytes

SERVER_BYTES = 256 * MIB  # launcher and front-end (80 MiB under load), and requests held (at most 128 MiB)
GPU_PROCESS_BYTES = 3 * GIB  # torch with CUDA's libraries and its buffers in host memory; not measured
MAX_FILE_BYTES = 10 * GIB  # weights are usually split into files of at most half that size
SHM_BYTES = 1 * GIB  # for NCCL; the default of 64 MiB is too little
CPUS_PER_SHARD = 4
SMALL_BYTES = 256 * MIB  # weights of a shard for which one CPU is enough
MAX_SEQUENCES = 8  # of maximum length, in the KV cache on a CPU: more would wait for the CPU anyway
UNLIMITED_BYTES = 1 << 50


@dataclass(frozen=True, slots=True)
class Resources:
    """What a container asks for, and why."""

    memory_bytes: int
    memory_why: str
    cpus: int
    cpus_why: str
    gpus_why: str = ""
    num_gpus: int = 0
    shm_bytes: int = 0  # 0 if the default is enough
    kv_cache_memory: int | None = None  # the option's value for each shard on a CPU; None if the launcher decides


def imagine_node(num_cpus: int) -> Machine:
    """A node of which only the number of CPUs is known, so that a manifest is the same wherever it is made.

    Its CPUs have the instructions with which a model takes the most memory, so that the memory is enough on any node.
    """
    return Machine(
        gpus=(),
        cpus=tuple(Cpu(index, index) for index in range(num_cpus)),
        has_bf16=False,  # the weights become float32, unless an option says otherwise
        cpu_kernels="",
        packs_weights=True,
        free_bytes=UNLIMITED_BYTES,
        limit_bytes=None,
    )


def size_for_cpu(run: Run, sizes: ModelSizes, fit: Fit, node: Machine, cpus: int | None) -> Resources:
    """The memory that the planned KV cache needs. The launcher is told that size, so that it takes no more.

    Args:
        fit: the plan for ``node``, whose free memory the limit never exceeds.
        cpus: ``--cpu-cores``.
    """
    fit = limit_kv_cache(run, sizes, fit, node)
    shards = fit.num_shard
    kv_cache_memory: int | None = run.config.kv_cache_memory or round_up(fit.kv_bytes, MIB)
    assert kv_cache_memory is not None, "it is a number until it turns out to be too much"
    kv = kv_cache_memory * shards
    memory = round_memory(find_least_bytes(run, sizes, fit, node, kv_cache_memory) + SERVER_BYTES)
    if memory > node.free_bytes:  # all of it is needed: the launcher divides it as the plan did
        memory, kv, kv_cache_memory = node.free_bytes // MIB * MIB, fit.kv_bytes * shards, run.config.kv_cache_memory
    weights, processes = sum(fit.weights_by_rank), CPU_PROCESS_BYTES * shards + SERVER_BYTES
    rest = max(0, memory - weights - kv - processes)
    why = (
        f"{format_bytes(weights)} of weights as {run.dtype} + {format_bytes(kv)} of KV cache "
        f"({fit.num_tokens:,} tokens) + {format_bytes(processes)} of processes + {format_bytes(rest)} for steps and "
        "as a reserve"
    )
    each = 1 if fit.weight_bytes <= SMALL_BYTES else CPUS_PER_SHARD
    cpus_why = (
        "as given (--cpu-cores); all of them compute"
        if cpus
        else f"{each} for each shard; more make it faster (--cpu-cores)"
    )
    return Resources(memory, why, cpus or each * shards, cpus_why, kv_cache_memory=kv_cache_memory)


def limit_kv_cache(run: Run, sizes: ModelSizes, fit: Fit, node: Machine) -> Fit:
    """The plan with a KV cache no larger than a small model on a CPU can use, unless its size is given."""
    most = round_up(MAX_SEQUENCES * fit.max_sequence_length * fit.kv_bytes_per_token, MIB)
    if run.config.kv_cache_memory is not None or fit.kv_bytes <= most:
        return fit
    return fit_shards(replace(run, config=replace(run.config, kv_cache_memory=most)), node, sizes)


def size_for_rehearsal(num_shard: int, cpus: int | None) -> Resources:
    """What the processes take if they compute nothing and load neither torch nor a model."""
    num_bytes = round_memory(SERVER_BYTES + CPU_PROCESS_BYTES * num_shard)
    return Resources(num_bytes, "a rehearsal's processes, without a model", cpus or 1, "a rehearsal computes nothing")


def find_least_bytes(run: Run, sizes: ModelSizes, fit: Fit, node: Machine, kv_cache_memory: int) -> int:
    """The least free memory, in whole MiB, that fits as many tokens and as long sequences as the plan."""
    run = replace(run, config=replace(run.config, kv_cache_memory=kv_cache_memory))

    def is_enough(mib: int) -> bool:
        tried = fit_shards(run, replace(node, free_bytes=mib * MIB), sizes)
        enough = tried.num_tokens >= fit.num_tokens and tried.max_sequence_length >= fit.max_sequence_length
        return tried.problem is None and enough

    low, high = 0, 1
    while not is_enough(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high * MIB


def size_for_gpus(fit: Fit, stated: str, num_bytes: int, num_files: int, cpus: int | None) -> Resources:
    """
    Args:
        stated: the GPUs of the plan, in words.
        num_bytes: the total size of the weight files.
        cpus: ``--cpu-cores``.
    """
    shards = fit.num_shard
    processes = GPU_PROCESS_BYTES * shards + SERVER_BYTES
    file_bytes = min(-(-num_bytes // num_files), MAX_FILE_BYTES)
    shm = SHM_BYTES if shards > 1 else 0
    parts = [
        f"{format_bytes(processes)} of processes",
        f"{format_bytes(file_bytes)} for a file of weights while it is read",
        *([f"{format_bytes(shm)} of /dev/shm"] if shm else []),
    ]
    gpus_why = (
        f"each: {format_bytes(fit.weight_bytes)} of weights + {format_bytes(fit.step_bytes)} for a step + "
        f"{format_bytes(fit.kv_bytes)} of KV cache ({fit.num_tokens:,} tokens). --gpu states {stated}, of "
        f"which each pod uses {shards}"
    )
    cpus_why = "as given (--cpu-cores)" if cpus else "1 for the front-end, and 1 for each shard, which drives its GPU"
    return Resources(
        memory_bytes=round_memory(processes + file_bytes + shm),
        memory_why=" + ".join(parts),
        cpus=cpus or 1 + shards,
        cpus_why=cpus_why,
        gpus_why=gpus_why,
        num_gpus=shards,
        shm_bytes=shm,
    )


def round_memory(num_bytes: int) -> int:
    """Round up to a readable size: whole GiB above 4 GiB, else a multiple of 128 MiB."""
    return round_up(num_bytes, GIB if num_bytes > 4 * GIB else 128 * MIB)


def round_up(num_bytes: int, unit: int) -> int:
    return -(-num_bytes // unit) * unit


def write_quantity(num_bytes: int) -> str:
    """``17Gi``, ``2304Mi``: this many bytes or, if they are not whole MiB, a few more."""
    return f"{num_bytes // GIB}Gi" if num_bytes % GIB == 0 else f"{round_up(num_bytes, MIB) // MIB}Mi"
