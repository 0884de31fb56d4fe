"""What an engine can: asked by scheduler and step loop of a loaded runner, and by the command line before it loads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class RunnerCaps:
    """What scheduler and step loop may ask of a runner."""

    memory: Literal["paged", "rows"] = "paged"  # KV blocks, or one row of a padded batch per sequence
    chunked_prefill: bool = True  # a prompt may be computed in several steps
    mixed_steps: bool = True  # a step may have prefill and decode rows
    plan_ahead: bool = False  # launch returns before the device is done: the next plan may be made meanwhile
    prefix_cache: bool = True  # a sequence may begin with blocks that another one has computed
    input_details: bool = True  # facts about prompt tokens
    encoder_decoder: bool = False
    adapters: frozenset[str] = frozenset()  # kinds that can be staged
    rope_border: int | None = None  # sequences of more tokens have ``is_rope_long`` (LongRoPE)
