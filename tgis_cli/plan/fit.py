"""How a model and its KV cache fit on a number of shards. Pure: computed from a run, a machine and a model's sizes.

The engine divides the memory, as it does when a shard loads. Only the memory that a shard will find free is
predicted here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from tgis_cli.decide.preflight import check_memory
from tgis_cli.machine import Machine
from tgis_server.engines.door import ModelSizes, RankMemory
from tgis_server.errors import NotEnoughDevices
from tgis_server.run import Run
from tgis_server.words.sizes import MIB

# Memory that is still free at the time of the plan, but that shards use before they load the model.
CUDA_CONTEXT_BYTES = 560 * MIB  # with torch's kernels and cuBLAS; 400 to 650, by GPU and driver
NCCL_BYTES = 400 * MIB  # channel buffers, with more than one shard
CPU_PROCESS_BYTES = 200 * MIB  # 160 for a process that imports torch, and the front-end's

MAX_COMPARED_SHARDS = 8
TYPICAL_LENGTHS = (4096, 1024)


@dataclass(frozen=True, slots=True)
class Fit:
    """The result for a number of shards. Bytes are per shard; where shards differ, the worst one counts."""

    num_shard: int
    weights_by_rank: tuple[int, ...]  # bytes in memory
    step_bytes: int
    free_bytes: int  # before loading
    kv_bytes_per_token: int
    block_size: int
    max_batch_size: int
    num_blocks: int = 0  # 0: it does not fit
    max_sequence_length: int = 0
    notes: tuple[str, ...] = ()
    problem: NotEnoughDevices | None = None  # why startup would fail

    @property
    def weight_bytes(self) -> int:
        """The weights on the shard that has the most."""
        return max(self.weights_by_rank)

    @property
    def num_tokens(self) -> int:
        """Capacity of the KV cache in tokens, for all sequences together."""
        return self.num_blocks * self.block_size

    @property
    def kv_bytes(self) -> int:
        return self.num_tokens * self.kv_bytes_per_token

    def num_sequences(self, length: int) -> int:
        """How many sequences of this length run at once; 0 if it is too long."""
        if not 0 < length <= self.max_sequence_length:
            return 0
        return min(self.max_batch_size, self.num_blocks // -(-length // self.block_size))

    @property
    def sequences(self) -> dict[int, int]:
        """Sequences at once by length: the longest, and typical ones."""
        lengths = (self.max_sequence_length, *(n for n in TYPICAL_LENGTHS if n < self.max_sequence_length))
        return {length: self.num_sequences(length) for length in lengths if length}

    def as_dict(self) -> dict[str, Any]:
        return {
            "num_shard": self.num_shard,
            "fits": self.problem is None,
            "weight_bytes": self.weight_bytes,
            "weight_bytes_by_rank": self.weights_by_rank,
            "step_bytes": self.step_bytes,
            "free_bytes": self.free_bytes,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "kv_bytes": self.kv_bytes,
            "kv_blocks": self.num_blocks,
            "kv_tokens": self.num_tokens,
            "max_sequence_length": self.max_sequence_length,
            "sequences": self.sequences,
            "notes": self.notes,
            "problem": str(self.problem) if self.problem else None,
        }


def fit_shards(run: Run, machine: Machine, sizes: ModelSizes) -> Fit:
    """What a launch of ``run`` would decide. The run's number of shards must divide the model."""
    ranks = [sizes.rank_memory(run, rank, packs_weights=machine.packs_weights) for rank in range(run.num_shard)]
    free = [free_before_loading(run, machine, rank, memory) for rank, memory in enumerate(ranks)]
    fit = Fit(
        num_shard=run.num_shard,
        weights_by_rank=tuple(rank.weight_bytes for rank in ranks),
        step_bytes=max(rank.step_bytes for rank in ranks),
        free_bytes=min(free),
        kv_bytes_per_token=max(rank.kv_bytes_per_token for rank in ranks),
        block_size=run.config.kv_block_size,
        max_batch_size=run.config.max_batch_size,
    )
    try:
        check_memory(run, machine, sizes)
        return divide(fit, ranks, free)
    except NotEnoughDevices as error:
        return replace(fit, problem=error)


def divide(fit: Fit, ranks: list[RankMemory], free: list[int]) -> Fit:
    """The rank with the smallest budget decides for all, as after loading."""
    for rank, free_bytes in zip(ranks, free, strict=True):
        rank.check(free_bytes)
    budgets = [rank.divide(free_bytes - rank.weight_bytes) for rank, free_bytes in zip(ranks, free, strict=True)]
    smallest = min(budgets, key=lambda budget: (budget.num_blocks, budget.max_sequence_length))
    return replace(
        fit,
        num_blocks=smallest.num_blocks,
        max_sequence_length=smallest.max_sequence_length,
        notes=smallest.notes,
    )


def free_before_loading(run: Run, machine: Machine, rank: int, memory: RankMemory) -> int:
    """The memory that a rank will find free when it starts loading."""
    if run.device == "cpu":
        return max(0, machine.free_bytes // run.num_shard - CPU_PROCESS_BYTES)
    gpu = machine.gpus[rank]
    if not gpu.total_bytes:
        raise NotEnoughDevices(f"The memory of {gpu} is unknown: state it, for example with --gpu 80GiB.")
    context = CUDA_CONTEXT_BYTES + (NCCL_BYTES if run.num_shard > 1 else 0)
    return memory.usable_gpu_bytes(gpu.free_bytes - context, gpu.total_bytes)


def compare_shards(run: Run, machine: Machine, sizes: ModelSizes, valid: Iterable[int]) -> Iterator[Fit]:
    """Try valid numbers of shards up to the usual maximum, and more until one fits; on a CPU, try only the run's."""
    if run.device == "cpu":
        yield fit_shards(run, machine, sizes)
        return
    usual = max(MAX_COMPARED_SHARDS, run.num_shard)
    has_fit = False
    for num_shard in valid:
        if num_shard > len(machine.gpus) or (num_shard > usual and has_fit):
            return
        fit = fit_shards(replace(run, num_shard=num_shard), machine, sizes)
        has_fit = has_fit or fit.problem is None
        yield fit
