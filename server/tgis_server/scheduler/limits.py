"""What the scheduler may use: a server's options, within what its engine can and has room for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tgis_server.engines.api import Capacity, RunnerCaps


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """Capabilities decide, never an engine's name. The defaults are those of an engine that can do everything."""

    num_blocks: int
    block_size: int
    max_batch_size: int  # sequences with a slot
    max_batch_tokens: int  # tokens per step
    prefix_cache: bool = True
    target_s: float = math.inf  # longest that a step should take: the time between two tokens of an answer
    rope_border: int | None = None  # sequences of more tokens are rotated otherwise (LongRoPE)
    max_padded_tokens: int | None = None  # memory is rows: so many times the longest one's tokens; None: it is blocks
    chunked_prefill: bool = True  # else prompts are computed whole
    mixed_steps: bool = True  # else steps have either prefill or decode rows
    max_adapters: int = 0  # places

    @classmethod
    def of(
        cls,
        caps: RunnerCaps,
        capacity: Capacity,
        *,
        max_batch_size: int,
        max_batch_tokens: int,
        prefix_cache: bool = True,
        target_s: float = math.inf,
    ) -> SchedulerLimits:
        """The limits of a server with this engine; the arguments by name are its options."""
        has_rows = caps.memory == "rows"
        return cls(
            num_blocks=0 if has_rows else capacity.num_blocks,
            block_size=max(1, capacity.block_size),
            max_batch_size=min(max_batch_size, capacity.max_rows) if has_rows else max_batch_size,
            max_batch_tokens=max_batch_tokens,
            prefix_cache=prefix_cache and caps.prefix_cache and not has_rows,
            target_s=target_s,
            rope_border=caps.rope_border,
            max_padded_tokens=capacity.max_padded_tokens if has_rows else None,
            chunked_prefill=caps.chunked_prefill,
            mixed_steps=caps.mixed_steps,
            max_adapters=capacity.max_adapters,
        )
