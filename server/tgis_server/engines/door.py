"""What an engine can say about a model's files and the machine before anything is loaded. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from tgis_server.model_files import Length
from tgis_server.run import Run


@dataclass(frozen=True, slots=True)
class KvBudget:
    """The KV cache that fits into the memory left by the weights and a step."""

    num_blocks: int
    max_sequence_length: int
    notes: tuple[str, ...] = ()


class RankMemory(Protocol):
    """The memory that one rank of a run needs, computed in the same way as when the engine loads."""

    @property
    def weight_bytes(self) -> int:
        """Size of the weights as held in memory, including copies that the device needs."""

    @property
    def step_bytes(self) -> int: ...

    @property
    def kv_bytes_per_token(self) -> int: ...

    def usable_gpu_bytes(self, free_bytes: int, total_bytes: int) -> int:
        """How much of a GPU's memory the rank may use."""

    def check_kv_cache_memory(self) -> None:
        """Check that the memory set by --kv-cache-memory, if any, can hold a sequence.

        Raises:
            NotEnoughDevices: it does not.
        """

    def check(self, free_bytes: int) -> None:
        """Check that weights, a step and one sequence fit.

        Args:
            free_bytes: free memory before loading.

        Raises:
            NotEnoughDevices: they do not fit.
        """

    def divide(self, free_bytes: int) -> KvBudget:
        """Size the KV cache.

        Args:
            free_bytes: free memory after loading the weights.

        Raises:
            NotEnoughDevices: one sequence does not fit.
        """


@dataclass(frozen=True, slots=True)
class StepWork:
    """What a rank reads and computes in a step, for comparing times with the limits of a machine."""

    weight_bytes: int  # read in each step; without embeddings, of which a step reads only a few rows, and experts
    token_flops: int  # for each token, without attention and the output head
    head_flops: int  # for each row that samples
    layer_kv_bytes: int  # keys and values of one token in one layer
    layer_pair_flops: int  # attention in one layer, for each pair of a token and a key
    windows: tuple[int | None, ...]  # for each layer the keys that a token sees; None: all
    expert_bytes: int = 0  # of the experts in all layers
    expert_share: float = 0.0  # of them, each token uses so many

    def read_bytes(self, num_tokens: int) -> float:
        """The weights that a step of so many tokens reads, if its tokens choose experts independently of each other."""
        return self.weight_bytes + self.expert_bytes * (1 - (1 - self.expert_share) ** num_tokens)


class ModelSizes(Protocol):
    """The sizes of a model whose files have been checked, for any valid number of shards."""

    def weight_bytes(self, rank: int, num_shard: int, dtype: str) -> int:
        """Size of the weights that ``rank`` reads, held as ``dtype``."""

    def kv_bytes_per_token(self, rank: int, num_shard: int, dtype: str) -> int: ...

    def step_work(self, rank: int, num_shard: int, dtype: str) -> StepWork: ...

    def rank_memory(self, run: Run, rank: int, *, packs_weights: bool | None = None) -> RankMemory:
        """
        Args:
            packs_weights: whether the CPU has instructions for packed weights; ``None``: as this one has.
        """

    def explain_cpu_pool(self, sequence_bytes: int, free_bytes: int) -> str:
        """Say in words how large the KV cache of a shard on a CPU is by default.

        Args:
            sequence_bytes: size of the longest sequence.
            free_bytes: free memory for each shard.
        """


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """A model as an engine would serve it."""

    kind: Literal["decoder", "encoder_decoder"]
    family: str
    layout: str  # layers, heads and the like, in words
    vocab_size: int  # 0: not in config.json
    length: Length | None  # None: not in config.json
    end_ids: tuple[int, ...]
    pad_id: int | None
    dtype: str | None  # from config.json or, once the weights have been inspected, that of most weights
    valid_num_shards: tuple[int, ...]  # empty: any number
    tensors: Mapping[str, tuple[int, ...]]  # names and shapes of the tensors that the engine reads
    warnings: tuple[str, ...] = ()
    sizes: ModelSizes | None = None  # None: the weights have not been inspected, or none are needed


@dataclass(frozen=True, slots=True)
class CpuOps:
    """The operations with which an engine computes on this machine's CPU."""

    state: Literal["packaged", "cached", "compiles", "reference"]  # compiles: at the next start, once
    kernels: str  # the instruction set of compiled operations; empty: torch's are used
    reason: str  # why these

    @property
    def sentence(self) -> str:
        if self.kernels:
            return f"Operations for {self.kernels} are used ({self.reason})."
        return f"The slower torch operations are used: {self.reason}."


class Door(Protocol):
    """The part of an engine that runs in the launcher: a module or an object without torch."""

    def summarize(self, model_dir: Path, num_shard: int = 1) -> ModelSummary:
        """Describe a model from its config.json alone.

        Raises:
            ModelError: the engine does not serve the model.
            UsageError: ``num_shard`` does not divide it.
        """

    def inspect(self, model_dir: Path, num_shard: int) -> ModelSummary:
        """Describe a model from its config.json and the headers of its weights, and check them.

        Raises:
            ModelError: as in :meth:`summarize`, or because weights are missing, damaged, or from another model.
            UsageError: as in :meth:`summarize`.
        """

    def cpu_environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Environment variables for a shard on a CPU, without those that ``environ`` sets."""

    def describe_cpu_ops(self, choice: str, dtype: str, environ: Mapping[str, str]) -> CpuOps:
        """Predict which operations will serve a model in ``dtype`` on this CPU; takes a few milliseconds.

        Args:
            choice: the value of ``--cpu-ops``.

        Raises:
            UsageError: this CPU does not run what ``choice`` names.
        """
