"""Divides a rank's memory among weights, the tensors of a step, and keys and values.

Decisions are plain arithmetic on the caller's numbers; torch is imported only to query a GPU. A loading shard and
``tgis plan``, which only predicts, call the same functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tgis_server import failures
from tgis_server.engines.door import KvBudget
from tgis_server.engines.native.checkpoint.inspect import Checkpoint
from tgis_server.engines.native.parameters.pieces import padded_vocab_rows
from tgis_server.engines.native.spec import DecoderSpec
from tgis_server.host.cpu_flags import CPUINFO, read_cpu_flags
from tgis_server.model_files import ITEM_BYTES
from tgis_server.run import Run
from tgis_server.words.sizes import format_bytes, format_bytes_for_option

GIB = 1 << 30
CPU_KV_BYTES = 4 * GIB  # default pool on a CPU, unless the next limit is lower
CPU_KV_SHARE = 0.25  # most of the free memory that the default pool takes
CPU_USABLE_SHARE = 0.9  # the rest is for the process itself and other processes
SHORTEST_SEQUENCE = 2  # one prompt token and one output token

# oneDNN compiles a primitive of about half a MiB for each number of rows and each shape of packed linear layers. By
# default oneDNN and torch keep the last 1024, which took hundreds of MiB with mixed lengths. 64 primitives cover the
# last dozen numbers of rows; recompiling one takes about half a millisecond.
MAX_PRIMITIVES = 64
PRIMITIVE_BYTES = 3 << 19  # including fragmentation in the C library's allocator

PANEL = 16  # kPanel of ops/cpu/csrc/cache.h
GATHERED_BYTES = 256 << 20  # copies of keys and values, and masks, for torch's attention

# oneDNN can pack linear weights of a dtype if the CPU has all flags of any of these sets; torch makes the same check
# (ATen/native/mkldnn/Utils.h). float32 needs no flags.
PACKING_FLAGS = {
    "bfloat16": ({"avx_ne_convert"}, {"avx512bw", "avx512vl", "avx512dq"}, {"bf16"}),  # the last is ARM's
    "float16": ({"avx_ne_convert"}, {"avx512_fp16"}),
}


@dataclass(frozen=True, slots=True)
class MemoryRequest:
    """The settings that determine how many keys and values a rank can hold."""

    device: str  # "cpu" or "cuda"
    block_bytes: int  # keys and values of one block, all layers
    block_size: int
    max_sequence_length: int
    is_explicit: bool  # True: the length must fit; False: it may be lowered
    kv_cache_memory: int | None = None  # in bytes, if the option is set
    max_batch_size: int = 1
    margin_percent: int = 0  # share of free GPU memory that is left unused


@dataclass(frozen=True, slots=True)
class RankMemory:
    """The memory needs of one rank, known before anything is read."""

    what: str  # model and dtype, for errors
    weight_bytes: int  # in the run's dtype
    step_bytes: int
    request: MemoryRequest
    gpu_share: float = 1.0  # share of a GPU's memory that a process may use

    @property
    def kv_bytes_per_token(self) -> int:
        return self.request.block_bytes // self.request.block_size

    def usable_gpu_bytes(self, free_bytes: int, total_bytes: int) -> int:
        """See :func:`usable_gpu_bytes`."""
        return usable_gpu_bytes(free_bytes, total_bytes, self.gpu_share)

    def check_kv_cache_memory(self) -> None:
        """See :func:`check_kv_cache_memory`."""
        check_kv_cache_memory(self.request)

    def check(self, free_bytes: int) -> None:
        """See :func:`check_fits`; ``free_bytes`` is before loading."""
        check_fits(self.request, free_bytes, self.weight_bytes, self.step_bytes, self.what)

    def divide(self, free_bytes: int) -> KvBudget:
        """See :func:`decide_kv_budget`; ``free_bytes`` is after loading."""
        return decide_kv_budget(self.request, max(0, free_bytes - self.step_bytes))


def rank_memory(run: Run, checkpoint: Checkpoint, rank: int, *, packs_weights: bool | None = None) -> RankMemory:
    """The memory that a rank of ``run`` needs; the checkpoint is for the same number of shards.

    Args:
        packs_weights: whether torch's operations pack weights on the CPU; ``None``: as on this one. The compiled
            operations always do.
    """
    config, spec = run.config, checkpoint.spec
    is_compiled = run.device == "cpu" and run.cpu_ops not in ("", "reference")
    may_pack = cpu_packs(run.dtype) if packs_weights is None else packs_weights
    is_packed = run.device == "cpu" and (is_compiled or may_pack)
    # Compiled operations keep most of a step in float32, and pad keys and values. A node of which nothing is known may
    # have them too.
    may_be_compiled = is_compiled or (run.device == "cpu" and packs_weights is True)
    request = MemoryRequest(
        device=run.device,
        block_bytes=block_bytes(checkpoint, rank, run.dtype, config.kv_block_size, PANEL if may_be_compiled else 1),
        block_size=config.kv_block_size,
        max_sequence_length=run.max_sequence_length,
        is_explicit=run.is_max_sequence_length_explicit,
        kv_cache_memory=config.kv_cache_memory,
        max_batch_size=config.max_batch_size,
        margin_percent=config.batch_safety_margin,
    )
    step = step_bytes(
        num_tokens=run.max_batch_tokens,
        num_rows=config.max_batch_size,
        hidden_size=spec.hidden_size,
        inner_size=inner_elements(spec) // run.num_shard,
        qkv_size=(spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim // run.num_shard,
        vocab_size=spec.vocab_size,
        item_bytes=ITEM_BYTES["float32" if may_be_compiled else run.dtype],
    )
    if not is_compiled:
        step += GATHERED_BYTES + (MAX_PRIMITIVES * PRIMITIVE_BYTES if is_packed else 0)
    weights = checkpoint.weight_bytes(rank, run.dtype) + (head_copy_bytes(spec, run) if is_packed else 0)
    return RankMemory(
        what=f"{run.model_id} in {run.dtype}",
        weight_bytes=weights,
        step_bytes=step,
        request=request,
        gpu_share=config.cuda_process_memory_fraction,
    )


def block_bytes(checkpoint: Checkpoint, rank: int, dtype: str, block_size: int, multiple: int) -> int:
    """Size of a block of keys and values in all layers, whose tokens and head size are padded to a multiple."""
    head_dim = checkpoint.spec.head_dim
    element_bytes = checkpoint.kv_bytes_per_token(rank, dtype) // head_dim
    return element_bytes * round_up(head_dim, multiple) * round_up(block_size, multiple)


def round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def head_copy_bytes(spec: DecoderSpec, run: Run) -> int:
    """A tied head is the embedding itself, except on a CPU that packs linear weights: there it is a packed copy."""
    if not spec.is_head_tied:
        return 0
    return padded_vocab_rows(spec.vocab_size, run.num_shard) * spec.hidden_size * ITEM_BYTES[run.dtype]


def cpu_packs(dtype: str, cpuinfo: Path = CPUINFO) -> bool:
    """Whether linear weights are packed on this CPU, as ``ops/linear.py`` finds out by trying. Needs no torch."""
    if dtype not in PACKING_FLAGS:
        return True
    flags = read_cpu_flags(cpuinfo)
    return flags is None or any(flags.issuperset(needed) for needed in PACKING_FLAGS[dtype])


def decide_kv_budget(request: MemoryRequest, free_bytes: int) -> KvBudget:
    """Decide how much of the memory left by weights and a step is for keys and values.

    Raises:
        NotEnoughDevices: one sequence does not fit, or as in :func:`check_kv_cache_memory`.
    """
    check_kv_cache_memory(request)
    blocks_per_sequence = -(-request.max_sequence_length // request.block_size)
    if request.device == "cpu":
        usable = int(free_bytes * CPU_USABLE_SHARE)
        pool = min(CPU_KV_BYTES, int(free_bytes * CPU_KV_SHARE))
        # No more than all running sequences can fill.
        most = request.max_batch_size * blocks_per_sequence
        target = max(blocks_per_sequence, min(pool // request.block_bytes, most))
    else:
        usable = int(free_bytes * (1 - request.margin_percent / 100))
        target = usable // request.block_bytes
    fitting = max(0, usable) // request.block_bytes
    if request.kv_cache_memory is not None:
        target = request.kv_cache_memory // request.block_bytes
        if target > fitting:
            raise failures.KV_CACHE_TOO_LARGE.error(asked_bytes=request.kv_cache_memory, free_bytes=max(0, usable))
    num_blocks = min(target, fitting)
    if num_blocks >= blocks_per_sequence:
        return KvBudget(num_blocks, request.max_sequence_length)
    longest = num_blocks * request.block_size
    available_bytes, need_bytes = num_blocks * request.block_bytes, blocks_per_sequence * request.block_bytes
    if request.is_explicit or longest < SHORTEST_SEQUENCE:
        shorter = [f"--max-sequence-length {longest} or less"] if longest >= SHORTEST_SEQUENCE else []
        raise failures.SEQUENCE_TOO_LONG.error(
            length=request.max_sequence_length,
            need_bytes=need_bytes,
            room_bytes=available_bytes,
            advice=", ".join([*shorter, "more shards (--num-shard)"]),
        )
    note = (
        f"max_sequence_length lowered from {request.max_sequence_length} to {longest}: keys and values of one sequence "
        f"need {format_bytes(need_bytes)}, and each shard has {format_bytes(available_bytes)} for them."
    )
    return KvBudget(num_blocks, longest, (note,))


def check_kv_cache_memory(request: MemoryRequest) -> None:
    """Check that --kv-cache-memory holds a sequence: the longest if its length was set, else the shortest possible.

    Raises:
        NotEnoughDevices: it does not.
    """
    asked = request.kv_cache_memory
    if asked is not None and asked < sequence_bytes(request, shortest_length(request)):
        need = format_bytes_for_option(sequence_bytes(request, request.max_sequence_length))
        longest = asked // request.block_bytes * request.block_size
        if longest >= SHORTEST_SEQUENCE:
            what_fits = f"--kv-cache-memory {need} or more, or --max-sequence-length {longest} or less"
        else:
            what_fits = f"--kv-cache-memory {need}, enough for one of {request.max_sequence_length:,} tokens"
        raise failures.KV_CACHE_TOO_SMALL.error(asked_bytes=asked, length=shortest_length(request), what_fits=what_fits)


def shortest_length(request: MemoryRequest) -> int:
    """The length, in tokens, of the shortest sequence that must fit."""
    return request.max_sequence_length if request.is_explicit else SHORTEST_SEQUENCE


def sequence_bytes(request: MemoryRequest, length: int) -> int:
    """Keys and values of a sequence of ``length`` tokens, in whole blocks."""
    return -(-length // request.block_size) * request.block_bytes


def check_fits(request: MemoryRequest, free_bytes: int, weight_bytes: int, step_bytes: int, what: str) -> None:
    """Before weights are read, check that they, a step and one sequence fit on this rank.

    Raises:
        NotEnoughDevices: they do not fit, or as in :func:`check_kv_cache_memory`.
    """
    check_kv_cache_memory(request)
    kv_bytes = sequence_bytes(request, shortest_length(request))
    need = weight_bytes + step_bytes + kv_bytes
    if need > free_bytes:
        raise failures.MODEL_TOO_LARGE.error(
            model=what,
            need_bytes=need,
            weights_bytes=weight_bytes,
            step_bytes=step_bytes,
            sequence_bytes=kv_bytes,
            length=shortest_length(request),
            free_bytes=free_bytes,
        )


def step_bytes(
    *,
    num_tokens: int,
    num_rows: int,
    hidden_size: int,
    inner_size: int,
    qkv_size: int,
    vocab_size: int,
    item_bytes: int,
) -> int:
    """Estimated peak memory of a step: activations of its tokens, and float32 logits of its rows, including copies."""
    widest = max(inner_size, 2 * qkv_size)
    activations = num_tokens * item_bytes * (4 * hidden_size + widest)
    logits = min(num_rows, num_tokens) * vocab_size * (item_bytes + 3 * 4)
    return activations + logits


def inner_elements(spec: DecoderSpec) -> int:
    """What a token's MLP keeps at a time: gate, up and their product; of each expert also its input and its output."""
    mlp = 3 * spec.intermediate_size
    if spec.mixture is None:
        return mlp
    shared = 3 * spec.mixture.shared_size
    return max(mlp, shared, spec.mixture.num_chosen * (3 * spec.mixture.intermediate_size + 2 * spec.hidden_size))


def free_gpu_bytes(index: int, fraction: float) -> int:
    """Query the GPU; see :func:`usable_gpu_bytes`."""
    import torch

    return usable_gpu_bytes(*torch.cuda.mem_get_info(index), fraction)


def usable_gpu_bytes(free_bytes: int, total_bytes: int, fraction: float) -> int:
    """Free memory of a GPU, less the share of its total memory that a process may not use."""
    return max(0, int(free_bytes - total_bytes * (1 - fraction)))
