"""What the scheduler may use: the server's options, within the capabilities and capacity of its engine."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tgis_server.engines.api import Capacity, RunnerCaps


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """The defaults are those of an engine with every capability."""

    num_blocks: int
    block_size: int
    max_batch_size: int  # sequences with a slot
    max_batch_tokens: int  # tokens per step
    prefix_cache: bool = True
    target_s: float = math.inf  # most seconds that a step should take: the time between two tokens of an answer
    rope_border: int | None = None  # sequences with more tokens use other factors (LongRoPE)
    max_padded_tokens: int | None = None  # rows times tokens of the longest row; None if memory is blocks
    chunked_prefill: bool = True  # False: prompts are computed whole
    mixed_steps: bool = True  # False: a step has either prefill or decode rows
    max_adapters: int = 0  # places for adapters

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
        """The limits of a server with this engine; the keyword arguments are the server's options."""
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
