"""Loads one rank: checks files and memory, joins the other ranks, reads weights, and allocates the cache."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from dataclasses import dataclass, replace

import torch

from tgis_server.engines.api import Capacity, ModelFacts, Progress
from tgis_server.engines.door import CpuOps, KvBudget
from tgis_server.engines.native.checkpoint.inspect import inspect_checkpoint
from tgis_server.engines.native.checkpoint.read import PHASE, read_parameters
from tgis_server.engines.native.families import ALL_FAMILIES, read_spec
from tgis_server.engines.native.memory import MemoryRequest, free_gpu_bytes, rank_memory
from tgis_server.engines.native.models.decoder import Decoder, pack_weights
from tgis_server.engines.native.models.encoder_decoder import EncoderDecoder
from tgis_server.engines.native.models.rope_table import build_table, find_rope_border
from tgis_server.engines.native.ops import select_ops
from tgis_server.engines.native.ops.api import Cache, CacheShape, Ops
from tgis_server.engines.native.ops.reference import TorchOps
from tgis_server.engines.native.parallel import Group, ShardGroup, SoloGroup
from tgis_server.engines.native.spec import DecoderSpec, EncoderDecoderSpec
from tgis_server.host import cgroup
from tgis_server.run import Run

GPU = 0  # a shard sees only its own GPU


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """The parts of a runner."""

    spec: DecoderSpec
    decoder: Decoder
    ops: Ops
    cache: Cache
    group: Group
    device: torch.device
    dtype: torch.dtype
    num_slots: int
    capacity: Capacity
    facts: ModelFacts
    rope_border: int | None  # see RunnerCaps


@torch.inference_mode()
def load(run: Run, rank: int, progress: Progress) -> LoadedModel:
    """See ``load_runner`` for errors."""
    # 1. Files and memory are checked before anything large is read
    checkpoint = inspect_checkpoint(run.model_dir, read_spec(run.model_dir, ALL_FAMILIES), run.num_shard)
    spec = checkpoint.spec
    dtype: torch.dtype = getattr(torch, run.dtype)
    device = torch.device("cuda", GPU) if run.device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif run.shard_threads > 0:
        torch.set_num_threads(run.shard_threads)
    memory = rank_memory(run, checkpoint, rank)
    memory.check(_free_bytes(run))

    # 2. The other ranks
    group: Group = SoloGroup()
    if run.num_shard > 1:
        timeout_s = max(run.config.startup_timeout, run.config.step_timeout)
        group = ShardGroup.join(run.rendezvous_file, rank, run.num_shard, device, timeout_s)

    # 3. Weights
    found = select_ops(device, dtype, run.config.cpu_ops, progress, run.run_dir)
    ops, why_slower = agree_on_ops(group, *found, dtype)
    memory = rank_memory(replace(run, cpu_ops=ops.kernels or "reference"), checkpoint, rank)  # until now, as foreseen
    progress(PHASE, 0, 0)
    weights = pack_weights(spec, read_parameters(checkpoint, rank, dtype, device, progress), ops)
    _return_freed_memory()

    # 4. The remaining memory is for keys and values, the same amount on every rank
    progress("allocating", 0, 0)
    # No rank measures before all ranks have read their weights: ranks on one CPU host share its memory.
    group.smallest(0)
    budget = _agree(group, memory.divide(_free_bytes(run)), memory.request)
    assert not spec.length.is_limit or budget.max_sequence_length <= spec.length.num_tokens, "too few positions"
    rope_tables = [build_table(rope, budget.max_sequence_length, dtype, device) for rope in spec.ropes]
    decoder: Decoder
    if isinstance(spec, EncoderDecoderSpec):
        decoder = EncoderDecoder(spec, weights, rope_tables, ops, group)
    else:
        decoder = Decoder(spec, weights, rope_tables, ops, group)
    cache = ops.make_cache(CacheShape(spec.num_layers, budget.num_blocks, run.config.kv_block_size, decoder.heads))
    facts = ModelFacts(
        model_type=spec.family,
        dtype=run.dtype,
        device=run.device,
        vocab_size=spec.vocab_size,
        end_ids=spec.eos_ids,
        weight_bytes=memory.weight_bytes,
        kernels=ops.kernels,
        notes=(*budget.notes, *filter(None, [why_slower])),
    )
    return LoadedModel(
        spec=spec,
        decoder=decoder,
        ops=ops,
        cache=cache,
        group=group,
        device=device,
        dtype=dtype,
        num_slots=run.config.max_batch_size,
        capacity=Capacity(budget.num_blocks, run.config.kv_block_size, budget.max_sequence_length),
        facts=facts,
        rope_border=find_rope_border(spec.rope, budget.max_sequence_length),
    )


def agree_on_ops(group: Group, ops: Ops, why_slower: str, dtype: torch.dtype) -> tuple[Ops, str]:
    """The compiled operations, unless a rank lacks them: they add up float32 tensors, torch's those of the dtype."""
    if group.smallest(int(bool(ops.kernels))) or not ops.kernels:
        return ops, why_slower
    why = CpuOps("reference", "", "another shard lacks the compiled ones")
    return TorchOps(torch.device("cpu"), dtype), why.sentence


def _free_bytes(run: Run) -> int:
    """Memory that this rank may take. Ranks on one CPU host share its memory evenly."""
    if run.device == "cuda":
        return free_gpu_bytes(GPU, run.config.cuda_process_memory_fraction)
    return cgroup.available_bytes() // run.num_shard


def _return_freed_memory() -> None:
    """Give the kernel the memory that packing freed: of float32 weights, the C library would keep a seventh."""
    with suppress(OSError, AttributeError):  # not the GNU C library
        ctypes.CDLL(None).malloc_trim(0)


def _agree(group: Group, budget: KvBudget, request: MemoryRequest) -> KvBudget:
    """All ranks take the smallest budget."""
    num_blocks = group.smallest(budget.num_blocks)
    length = group.smallest(budget.max_sequence_length)
    notes = budget.notes
    if length < budget.max_sequence_length:
        lowered = f"max_sequence_length lowered from {request.max_sequence_length} to {length}"
        notes = (f"{lowered}: another shard has less memory.",)
    return KvBudget(num_blocks, length, notes)
