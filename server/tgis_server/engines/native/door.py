"""The native engine's ``Door``, for commands and the launcher. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tgis_server.engines.door import CpuOps, ModelSummary, StepWork
from tgis_server.engines.native.checkpoint.inspect import Checkpoint, check_num_shard, inspect_checkpoint
from tgis_server.engines.native.families import parameters_of, read_spec
from tgis_server.engines.native.memory import CPU_KV_BYTES, CPU_KV_SHARE, MAX_PRIMITIVES, RankMemory, rank_memory
from tgis_server.engines.native.ops.cpu import library
from tgis_server.engines.native.parameters.pieces import valid_num_shards
from tgis_server.engines.native.spec import DecoderSpec, EncoderDecoderSpec
from tgis_server.model_files import read_json
from tgis_server.run import Run
from tgis_server.words.sizes import format_bytes


def summarize(model_dir: Path, num_shard: int = 1) -> ModelSummary:
    spec = read_spec(model_dir)
    check_num_shard(spec, num_shard)
    return summarize_spec(model_dir, spec)


def inspect(model_dir: Path, num_shard: int) -> ModelSummary:
    checkpoint = inspect_checkpoint(model_dir, read_spec(model_dir), num_shard)
    summary = summarize_spec(model_dir, checkpoint.spec)
    return replace(
        summary,
        dtype=summary.dtype or checkpoint.dtype,
        warnings=checkpoint.warnings,
        sizes=CheckpointSizes(checkpoint),
    )


def summarize_spec(model_dir: Path, spec: DecoderSpec) -> ModelSummary:
    heads = f"{spec.num_heads} heads" + (f" ({spec.num_kv_heads} for KV)" if spec.num_kv_groups > 1 else "")
    if spec.mixture:
        heads += f" and {spec.mixture.num_experts} experts ({spec.mixture.num_chosen} for each token)"
    return ModelSummary(
        kind="encoder_decoder" if isinstance(spec, EncoderDecoderSpec) else "decoder",
        family=spec.family,
        layout=f"{spec.num_layers} layers of {spec.hidden_size:,} with {heads}",
        vocab_size=spec.vocab_size,
        length=spec.length,
        end_ids=spec.eos_ids,
        pad_id=read_pad_id(model_dir),
        dtype=spec.dtype,
        valid_num_shards=tuple(valid_num_shards(spec)),
        tensors={piece.tensor: piece.tensor_shape for parameter in parameters_of(spec) for piece in parameter.pieces},
        warnings=spec.warnings,
    )


def read_pad_id(model_dir: Path) -> int | None:
    found = read_json(model_dir / "config.json").get("pad_token_id")
    return found if isinstance(found, int) else None


@dataclass(frozen=True, slots=True)
class CheckpointSizes:
    """The ``ModelSizes`` of a checkpoint."""

    checkpoint: Checkpoint

    def among(self, num_shard: int) -> Checkpoint:
        return replace(self.checkpoint, num_shard=num_shard)

    def weight_bytes(self, rank: int, num_shard: int, dtype: str) -> int:
        return self.among(num_shard).weight_bytes(rank, dtype)

    def kv_bytes_per_token(self, rank: int, num_shard: int, dtype: str) -> int:
        return self.among(num_shard).kv_bytes_per_token(rank, dtype)

    def step_work(self, rank: int, num_shard: int, dtype: str) -> StepWork:
        return self.among(num_shard).step_work(rank, dtype)

    def rank_memory(self, run: Run, rank: int, *, packs_weights: bool | None = None) -> RankMemory:
        return rank_memory(run, self.among(run.num_shard), rank, packs_weights=packs_weights)

    def explain_cpu_pool(self, sequence_bytes: int, free_bytes: int) -> str:
        return (
            f"one sequence of maximum length ({format_bytes(sequence_bytes)}) or, if larger, the smaller of "
            f"{format_bytes(CPU_KV_BYTES)} and {CPU_KV_SHARE:.0%} of what is free after loading "
            f"(now {format_bytes(free_bytes)} per shard), but no more than --max-batch-size sequences can fill"
        )


def cpu_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Environment for fast computation in bounded memory on a shared CPU."""
    defaults = {"THP_MEM_ALLOC_ENABLE": "1"}  # huge pages for weights: fewer TLB misses
    for cache in (
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY",
        "LRU_CACHE_CAPACITY",
    ):  # oneDNN's cache, and torch's in front of it
        defaults[cache] = str(MAX_PRIMITIVES)
    if "OMP_WAIT_POLICY" not in environ:
        # Spinning threads take the core from other work; sleeping at once makes them late for the next operation.
        # About 10 us of spinning bridges most gaps between operations.
        defaults["GOMP_SPINCOUNT"] = "1000"
    return defaults


def describe_cpu_ops(choice: str, dtype: str, environ: Mapping[str, str]) -> CpuOps:
    return library.describe_cpu_ops(choice, dtype, environ)
